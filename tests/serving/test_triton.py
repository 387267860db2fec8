"""The backend and the config in serving/triton, with a stand-in for Triton's module."""

from __future__ import annotations

import importlib.util
import io
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from google.protobuf.text_format import ParseError

from hrmedseg_onnx import OnnxModel
from tests.deployment.tiny_models import blobs
from tests.serving import triton_python_backend_utils as pb_utils
from tests.serving.model_config import read_config

pytestmark = pytest.mark.slow  # exported models

TEMPLATE = Path(__file__).parents[2] / "serving" / "triton" / "hrmedseg"
CONFIG = (TEMPLATE / "config.pbtxt").read_text()
PROBABILITIES = "data_type: TYPE_FP32\n    dims: [ -1, -1, -1"
VOLUMES = CONFIG.replace(PROBABILITIES, f"{PROBABILITIES}, -1").replace("dims: [ -1, -1 ]", "dims: [ -1, -1, -1 ]")


@pytest.fixture(scope="module")
def backend():
    """Return the module 1/model.py."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "triton_python_backend_utils", pb_utils)
        spec = importlib.util.spec_from_file_location("triton_model", TEMPLATE / "1" / "model.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return module


def load(backend, repository: Path, exported: Path, config: str = CONFIG) -> Any:
    """Return the backend's model for a folder as the guide describes it."""
    repository.mkdir()
    (repository / "1").mkdir()
    shutil.copytree(exported, repository / "1" / "onnx")
    model = backend.TritonPythonModel()
    arguments = {"model_config": json.dumps(read_config(config)), "model_version": "1"}
    model.initialize({**arguments, "model_repository": str(repository), "model_name": "hrmedseg"})
    return model


@pytest.fixture(scope="module")
def served(backend, pictures, tmp_path_factory):
    model = load(backend, tmp_path_factory.mktemp("triton") / "hrmedseg", pictures.folder)
    yield model
    model.finalize()


@pytest.fixture(scope="module")
def expected(pictures) -> OnnxModel:
    return OnnxModel(pictures.folder, threads=1)


def picture(seed: int, size: tuple[int, int]) -> np.ndarray:
    return np.moveaxis(blobs(np.random.default_rng(seed), size, 3), 0, -1)


def png(image: np.ndarray) -> bytes:
    content = io.BytesIO()
    PIL.Image.fromarray(image).save(content, "PNG")
    return content.getvalue()


def request(outputs: tuple[str, ...] = ("labels",), **inputs: np.ndarray) -> pb_utils.InferenceRequest:
    """Return a request whose tensors fit config.pbtxt, as Triton checks before it calls the backend."""
    declared = {each["name"]: each for each in read_config(CONFIG)["input"]}
    for name, value in inputs.items():
        assert value.dtype == pb_utils.triton_string_to_numpy(declared[name]["data_type"])
        assert value.ndim == len(declared[name]["dims"])
    return pb_utils.InferenceRequest([pb_utils.Tensor(name, value) for name, value in inputs.items()], [*outputs])


def contents(*files: bytes) -> np.ndarray:
    return np.array(files, dtype=np.object_)


def outputs_of(response) -> dict[str, np.ndarray]:
    assert not response.has_error(), response.error().message()
    return {tensor.name(): tensor.as_numpy() for tensor in response.output_tensors()}


def test_config_declares_what_the_backend_reads_and_writes(backend):
    config = read_config(CONFIG)
    assert config["backend"] == "python" and config["max_batch_size"] == 0
    assert [each["name"] for each in config["input"]] == [backend.IMAGE, backend.IMAGE_FILES]
    assert all(each["optional"] for each in config["input"])
    assert [each["name"] for each in config["output"]] == [backend.LABELS, backend.PROBABILITIES]
    assert set(config["parameters"]) == {"mirror", "threads"}


@pytest.mark.parametrize("right, wrong", [("name:", "names:"), ("TYPE_UINT8", "TYPE_BYTE"), ("]", "")])
def test_mistakes_in_a_config_are_detected(right, wrong):
    with pytest.raises(ParseError):
        read_config(CONFIG.replace(right, wrong, 1))


def test_requests_of_several_sizes_are_answered_in_their_order(served, expected):
    images = [picture(seed, size) for seed, size in enumerate([(50, 70), (33, 20), (64, 48)])]
    responses = served.execute([request(image=image) for image in images])
    for image, response in zip(images, responses, strict=True):
        outputs = outputs_of(response)
        assert list(outputs) == ["labels"]
        labels = outputs["labels"]
        assert labels.dtype == np.uint8 and labels.shape == image.shape[:2] and labels.flags.c_contiguous
        assert len(np.unique(labels)) > 1
        np.testing.assert_array_equal(labels, expected.predict(image).labels)


def test_outputs_agree_with_the_config(served):
    outputs = outputs_of(served.execute([request(("labels", "probabilities"), image=picture(0, (40, 30)))])[0])
    for declared in read_config(CONFIG)["output"]:
        array = outputs[declared["name"]]
        assert array.dtype == pb_utils.triton_string_to_numpy(declared["data_type"])
        assert array.ndim == len(declared["dims"])
    np.testing.assert_allclose(outputs["probabilities"].sum(axis=0), 1, atol=1e-5)


def test_probabilities_are_those_of_the_model(served, expected):
    image = picture(3, (40, 30))
    (response,) = served.execute([request(("probabilities",), image=image)])
    outputs = outputs_of(response)
    assert list(outputs) == ["probabilities"]
    wanted = expected.predict(image, with_probabilities=True).probabilities
    np.testing.assert_allclose(outputs["probabilities"], wanted, atol=1e-6)


def test_content_of_a_file_gives_the_labels_of_its_pixels(served, expected):
    image = picture(4, (50, 30))
    (response,) = served.execute([request(("labels", "probabilities"), image_files=contents(png(image)))])
    outputs = outputs_of(response)
    np.testing.assert_array_equal(outputs["labels"], expected.predict(image).labels)
    assert outputs["probabilities"].shape == (3, 50, 30)


def test_a_file_for_each_channel(served, expected):
    image = picture(5, (30, 40))
    files = contents(*(png(image[..., channel]) for channel in range(3)))
    labels = outputs_of(served.execute([request(image_files=files)])[0])["labels"]
    np.testing.assert_array_equal(labels, expected.predict(image).labels)


@pytest.mark.parametrize(
    "inputs",
    [
        {},
        {"image": picture(0, (8, 8)), "image_files": contents(png(picture(0, (8, 8))))},
        {"image": picture(0, (8, 8))[..., :1]},
        {"image_files": contents(b"no image")},
        {"image_files": contents()},
    ],
    ids=["no input", "both inputs", "one channel of three", "no image file", "no file"],
)
def test_wrong_request_gets_an_error_and_others_an_answer(served, inputs):
    responses = served.execute([request(**inputs), request(image=picture(0, (20, 20)))])
    assert responses[0].has_error() and responses[0].output_tensors() == []
    assert responses[0].error().code() == pb_utils.TritonError.INVALID_ARG
    assert outputs_of(responses[1])["labels"].shape == (20, 20)


def test_unexpected_error_is_logged_and_does_not_stop_other_requests(served, monkeypatch):
    predict = served.model.predict
    monkeypatch.setattr(pb_utils.Logger, "messages", [])

    def failing(image, **options):
        if image.shape[0] == 8:
            raise MemoryError("no memory")
        return predict(image, **options)

    monkeypatch.setattr(served.model, "predict", failing)
    responses = served.execute([request(image=picture(0, (8, 8))), request(image=picture(0, (9, 9)))])
    assert responses[0].error().code() == pb_utils.TritonError.INTERNAL
    assert responses[0].error().message().startswith("MemoryError")
    assert "MemoryError: no memory" in pb_utils.Logger.messages[0]
    assert not responses[1].has_error()


def test_volumes_with_the_dims_of_the_comments(backend, volumes, tmp_path):
    model = load(backend, tmp_path / "hrmedseg", volumes.folder, VOLUMES)
    volume = np.stack([blobs(np.random.default_rng(z), (30, 40), 1)[0] for z in range(3)])
    outputs = outputs_of(model.execute([request(("labels", "probabilities"), image=volume)])[0])
    np.testing.assert_array_equal(outputs["labels"], OnnxModel(volumes.folder, threads=1).predict(volume).labels)
    assert outputs["probabilities"].shape == (2, 3, 30, 40)


def test_parameters_are_passed_to_the_model(backend, pictures, tmp_path):
    config = CONFIG.replace('"mirror" value { string_value: "true"', '"mirror" value { string_value: "false"')
    model = load(backend, tmp_path / "hrmedseg", pictures.folder, config)
    assert model.model.mirrored == [()]
    image = picture(6, (40, 40))
    labels = outputs_of(model.execute([request(image=image)])[0])["labels"]
    np.testing.assert_array_equal(labels, OnnxModel(pictures.folder, mirror=False).predict(image).labels)


@pytest.mark.parametrize(
    "before, after",
    [
        ('string_value: "true"', 'string_value: "yes"'),
        ('string_value: "0"', 'string_value: "-1"'),
        ("data_type: TYPE_UINT8\n    dims: [ -1, -1 ]", "data_type: TYPE_UINT16\n    dims: [ -1, -1 ]"),
        ("dims: [ -1, -1 ]", "dims: [ -1, -1, -1 ]"),
    ],
)
def test_config_that_does_not_fit_the_model_is_rejected_at_start(backend, pictures, tmp_path, before, after):
    assert before in CONFIG
    with pytest.raises(pb_utils.TritonModelException, match=r"config\.pbtxt"):
        load(backend, tmp_path / "hrmedseg", pictures.folder, CONFIG.replace(before, after))


def test_model_that_cannot_be_loaded_is_reported_at_start(backend, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(pb_utils.TritonModelException, match=r"model\.json"):
        load(backend, tmp_path / "hrmedseg", tmp_path / "empty")
