"""hrmedseg export: exported files, rejected models, and smaller files."""

from __future__ import annotations

import argparse
import copy
import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper

from hrmedseg_onnx import dicom
from hrmedseg_onnx.model import OnnxModel
from hrmedseg_onnx.sidecar import Normalization, Sidecar
from nnunet_hrmedseg.cli import export as export_command
from nnunet_hrmedseg.deployment import onnx_export
from nnunet_hrmedseg.deployment.onnx_export import export_onnx
from nnunet_hrmedseg.deployment.onnx_weights import OUTPUT_AXIS, _as_int8, store_weights
from nnunet_hrmedseg.errors import HRMedSegError, SetupError

BIAS = "encoder.patch_embedding.proj.bias"


@pytest.fixture
def no_conversion(pictures, monkeypatch):
    """Skip the two slow steps of an export: reuse the graph of another export, without simplification."""
    monkeypatch.setattr(onnx_export, "_graph", lambda *_: pictures.graph)
    monkeypatch.setattr("onnxscript.optimizer.optimize", lambda model: model)


@pytest.fixture(scope="module")
def plain(pictures, tmp_path_factory):
    """Return one fold of the model for pictures."""
    copied = shutil.copytree(pictures.model, tmp_path_factory.mktemp("plain") / pictures.model.name)
    shutil.rmtree(copied / "fold_1")
    return copied


def _run(*words) -> int:
    parser = argparse.ArgumentParser()
    export_command.add_arguments(parser)
    return export_command.run(parser.parse_args([str(word) for word in words]))


def _edited(model, tmp_path, **changes):
    """Copy a model folder and change its plans or their configuration 2d."""
    copied = shutil.copytree(model, tmp_path / "edited")
    plans = json.loads((copied / "plans.json").read_text())
    for name, value in changes.items():
        (plans if name in plans else plans["configurations"]["2d"])[name] = value
    (copied / "plans.json").write_text(json.dumps(plans))
    return copied


@pytest.mark.slow
def test_export_writes_all_files(pictures, volumes):
    assert sorted(file.name for file in pictures.folder.iterdir()) == ["fold_0.onnx", "fold_1.onnx", "model.json"]
    sidecar = Sidecar.read(pictures.folder)
    assert (sidecar.network, sidecar.trainer, sidecar.weights) == ("HRMedSeg", "nnUNetTrainerHRMedSeg", "float32")
    assert sidecar.channels == ["R", "G", "B"] and sidecar.canvas == [64, 48] and sidecar.mirror_axes == [0, 1]
    assert sidecar.labels["ignore"] == 3 and sidecar.num_outputs == 3
    assert sidecar.normalization == [Normalization("ZScoreNormalization", False)] * 3
    assert all(0 < sidecar.logit_difference[fold] < 1e-4 for fold in ("0", "1"))
    sidecar = Sidecar.read(volumes.folder)
    assert sidecar.network == "HERSeg" and sidecar.regions_class_order == [1, 2] and sidecar.num_outputs == 2
    assert sidecar.transpose_forward == [2, 0, 1] and sidecar.image_reader == "SimpleITKIO"


@pytest.mark.slow
def test_graph_takes_any_batch_size_and_contains_no_local_paths(pictures):
    file = pictures.folder / "fold_0.onnx"
    onnx.checker.check_model(str(file), full_check=True)
    (session,) = OnnxModel(pictures.folder, folds=["0"], threads=1).sessions
    images = np.random.default_rng(0).normal(size=(3, 3, 64, 48)).astype(np.float32)
    (together,) = session.run(None, {"image": images})
    one_by_one = [session.run(None, {"image": image[None]})[0][0] for image in images]
    np.testing.assert_allclose(together, one_by_one, atol=1e-4)
    assert b".py" not in file.read_bytes() and b"/site-packages" not in file.read_bytes()


@pytest.mark.slow
def test_folds_give_different_predictions(pictures):
    images = {"image": np.random.default_rng(0).normal(size=(1, 3, 64, 48)).astype(np.float32)}
    first, second = (session.run(None, images)[0] for session in OnnxModel(pictures.folder, threads=1).sessions)
    assert np.abs(first - second).max() > 0.1


def _weights_of_products(model) -> list[str]:
    """Return the weights of products that are float32."""
    whole = {i.name for i in model.graph.initializer if len(i.dims) >= 2 and i.data_type == onnx.TensorProto.FLOAT}
    return [node.input[1] for node in model.graph.node if node.op_type in OUTPUT_AXIS and node.input[1] in whole]


@pytest.mark.slow
@pytest.mark.parametrize("kind, tolerance", [("float16", 0.0005), ("int8", 0.008)])
def test_smaller_files_predict_similar_logits(pictures, tmp_path, kind, tolerance):
    """Truncating integers instead of rounding them would give a difference of 0.016."""
    copied = shutil.copytree(pictures.folder, tmp_path / "copy")
    model = onnx.load(copied / "fold_0.onnx")
    weights = [i for i in model.graph.initializer if len(i.dims) >= 2 and i.data_type == onnx.TensorProto.FLOAT]
    assert len(_weights_of_products(model)) > 30
    store_weights(model, kind)
    assert not _weights_of_products(model)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, copied / "fold_0.onnx")
    left = [i for i in model.graph.initializer if len(i.dims) >= 2 and i.data_type == onnx.TensorProto.FLOAT]
    assert sum(np.prod(i.dims) for i in left) < 0.05 * sum(np.prod(i.dims) for i in weights)
    image = np.random.default_rng(0).normal(size=(3, 64, 48)).astype(np.float32)
    wanted = OnnxModel(pictures.folder, folds=["0"], threads=1).logits(image)
    logits = OnnxModel(copied, folds=["0"], threads=1).logits(image)
    assert 0 < np.sqrt(np.square(logits - wanted).mean()) < tolerance * np.sqrt(np.square(wanted).mean())


PRODUCTS = {
    "MatMul": ("MatMul", (6, 4), -1, (5, 6), {}),
    "MatMul of heads": ("MatMul", (2, 6, 4), -1, (2, 5, 6), {}),
    "Gemm": ("Gemm", (6, 4), -1, (5, 6), {}),
    "Gemm, turned": ("Gemm", (4, 6), 0, (5, 6), {"transB": 1}),
    "Conv": ("Conv", (4, 6, 3, 3), 0, (1, 6, 8, 8), {}),
    "Conv of groups": ("Conv", (4, 1, 3, 3), 0, (1, 4, 8, 8), {"group": 4}),
    "ConvTranspose": ("ConvTranspose", (6, 4, 2, 2), 1, (1, 6, 8, 8), {"strides": [2, 2]}),
}
"""Operator, shape of its weight, axis of that which runs over outputs, shape of what it is multiplied with."""


@pytest.mark.parametrize("kind", ["float16", "int8"])
@pytest.mark.parametrize("product", PRODUCTS)
def test_small_outputs_stay_precise_beside_large_ones(product, kind):
    """One scale per weight, or one per input, would round the smallest values to zero."""
    operator, shape, axis, of_image, attributes = PRODUCTS[product]
    random = np.random.default_rng(0)
    sizes = np.moveaxis(np.float32([1, 0.1, 0.01, 0.001])[(..., *[None] * (len(shape) - 1))], 0, axis)
    weight = (random.normal(size=shape) * sizes).astype(np.float32)
    image = random.normal(size=of_image).astype(np.float32)
    model = _product(operator, weight, of_image, attributes)
    wanted = _computed(model, image)
    store_weights(model, kind)
    assert not _weights_of_products(model)
    outputs = -1 if operator in ("MatMul", "Gemm") else 1
    difference, wanted = (np.moveaxis(a, outputs, 0).reshape(4, -1) for a in (_computed(model, image) - wanted, wanted))
    assert (np.abs(difference).max(1) < 0.02 * np.abs(wanted).max(1)).all()


def _product(operator: str, weight: np.ndarray, of_image: tuple, attributes: dict) -> onnx.ModelProto:
    taken, given = (
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
        for name, shape in (("image", of_image), ("logits", None))
    )
    node = onnx.helper.make_node(operator, ["image", "weight"], ["logits"], **attributes)
    graph = onnx.helper.make_graph([node], "product", [taken], [given], [numpy_helper.from_array(weight, "weight")])
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10)


def _computed(model: onnx.ModelProto, image: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"image": image})[0]


def test_int8_has_one_scale_per_output():
    weight = np.array([[1.0, 100.0], [-0.5, 3.0], [0.0, 0.0]], np.float32)  # (in, out) of a MatMul
    whole, scale = _as_int8(weight, -1)
    assert scale.shape == (1, 2) and np.abs(whole).max() == 127
    assert (np.abs(whole * scale - weight) <= scale / 2 + 1e-6).all()


def test_command_exports_the_model(plain, no_conversion, tmp_path, capsys):
    output = tmp_path / "new" / "onnx"
    assert _run(plain, "--onnx", output, "--weights", "float16", "-f", "0") == 0
    assert "hrmedseg predict-onnx" in capsys.readouterr().out
    sidecar = Sidecar.read(output)
    assert sidecar.weights == "float16" and 0 < sidecar.logit_difference["0"] < 0.1
    assert [path.name for path in output.parent.iterdir()] == ["onnx"]
    with pytest.raises(HRMedSegError, match="--overwrite"):
        _run(plain, "--onnx", output)
    assert _run(plain, "--onnx", output, "--overwrite") == 0
    assert Sidecar.read(output).weights == "float32"


@pytest.mark.slow
def test_inaccurate_export_is_not_written(plain, pictures, no_conversion, tmp_path, monkeypatch):
    model = copy.deepcopy(pictures.graph)
    (bias,) = [i for i in model.graph.initializer if i.name == BIAS]
    values = numpy_helper.to_array(bias) + 1
    bias.CopyFrom(numpy_helper.from_array(values, "something_else"))
    for node in model.graph.node:
        node.input[:] = ["something_else" if name == BIAS else name for name in node.input]
    monkeypatch.setattr(onnx_export, "_graph", lambda *_: model)
    output = tmp_path / "onnx"
    with pytest.raises(HRMedSegError, match="differ from those of the network by up to .* nothing was written"):
        export_onnx(model=plain, output=output)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_failed_export_keeps_the_old_one(plain, pictures, tmp_path, monkeypatch):
    output = shutil.copytree(pictures.folder, tmp_path / "onnx")
    before = (output / "fold_0.onnx").read_bytes()

    def fails(*_):
        raise RuntimeError("in the middle")

    monkeypatch.setattr(onnx_export, "_graph", fails)
    with pytest.raises(RuntimeError, match="in the middle"):
        export_onnx(model=plain, output=output, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["onnx"]
    assert (output / "fold_0.onnx").read_bytes() == before


def test_folders_that_are_not_exports_are_kept(plain, tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(HRMedSegError, match="not of an export, such as thesis.tex"):
        export_onnx(model=plain, output=tmp_path, overwrite=True)
    with pytest.raises(HRMedSegError, match="is a file"):
        export_onnx(model=plain, output=tmp_path / "thesis.tex", overwrite=True)
    assert (tmp_path / "thesis.tex").is_file()


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"format": 1}', '{"format": "graph-model", "folds": {"0": "fold_0.onnx"}}', None]
)
def test_unrelated_onnx_files_are_kept(plain, tmp_path, content):
    """Other programs use the name model.json as well."""
    (tmp_path / "fold_0.onnx").write_text("of somebody")
    if content is not None:
        (tmp_path / "model.json").write_text(content)
    with pytest.raises(HRMedSegError, match="not of an export, such as fold_0.onnx"):
        export_onnx(model=plain, output=tmp_path, overwrite=True)
    assert (tmp_path / "fold_0.onnx").read_text() == "of somebody"


@pytest.mark.slow
def test_onnx_files_that_an_export_does_not_list_are_kept(plain, pictures, tmp_path):
    output = shutil.copytree(pictures.folder, tmp_path / "onnx")
    (output / "another.onnx").write_text("of somebody")
    with pytest.raises(HRMedSegError, match="such as another.onnx"):
        export_onnx(model=plain, output=output, overwrite=True)
    (output / "another.onnx").unlink()
    with pytest.raises(HRMedSegError, match="holds an export already. Add --overwrite"):
        export_onnx(model=plain, output=output)
    content = json.loads((output / "model.json").read_text())
    (output / "model.json").write_text(json.dumps({"format": 99, "folds": content["folds"]}))
    with pytest.raises(HRMedSegError, match="holds an export already"):  # written by a later version
        export_onnx(model=plain, output=output)


@pytest.mark.slow
@pytest.mark.parametrize("there", [True, False])
def test_full_disk_is_reported(plain, pictures, no_conversion, tmp_path, monkeypatch, there):
    output = tmp_path / "onnx"
    if there:
        shutil.copytree(pictures.folder, output)
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}

    def full(_, file):
        file.write_bytes(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(onnx, "save", full)
    with pytest.raises(HRMedSegError, match=r"onnx could not be written \(.*No space left.* untouched.*Make room"):
        export_onnx(model=plain, output=output, overwrite=True)
    assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["onnx"] * there


def test_output_below_a_file_is_rejected(plain, tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(HRMedSegError, match="thesis.tex is a file"):
        export_onnx(model=plain, output=tmp_path / "thesis.tex" / "onnx")


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            {
                "preprocessor_name": "DefaultPreprocessor",
                "architecture": {
                    "network_class_name": "dynamic_network_architectures.PlainConvUNet",
                    "arch_kwargs": {},
                },
            },
            "PlainConvUNet with DefaultPreprocessor.*need nnU-Net",
        ),
        (
            {"architecture": {"network_class_name": "nnunet_hrmedseg.architectures.SegMaFormer", "arch_kwargs": {}}},
            "SegMaFormer",
        ),
        ({"image_reader_writer": "NibabelIOWithReorient"}, "image_reader_writer.*NibabelIOWithReorient"),
        ({"normalization_schemes": ["Mine"] * 3}, "normalization.*Mine"),
        ({"resampling_fn_probabilities": "resample_data_or_seg_to_shape"}, "resampling_fn_probabilities"),
        (
            {"resampling_fn_probabilities_kwargs": {"is_seg": False, "mode": "nearest"}},
            "mode of resampling_fn_probabilities.*nearest",
        ),
    ],
)
def test_unsupported_models_are_rejected(plain, tmp_path, changes, message):
    with pytest.raises(HRMedSegError, match=message):
        export_onnx(model=_edited(plain, tmp_path, **changes), output=tmp_path / "onnx")
    assert not (tmp_path / "onnx").exists()


@pytest.mark.parametrize("has_plans", [True, False])
def test_canvas_that_was_edited_after_training_is_rejected(plain, tmp_path, has_plans):
    edited = _edited(plain, tmp_path, patch_size=[32, 32])
    if has_plans:  # written by nnUNetv2_train; a shared model has none
        file = edited / "fold_0" / "checkpoint_final.pth"
        checkpoint = torch.load(file, weights_only=False)
        checkpoint["init_args"]["plans"] = json.loads((plain / "plans.json").read_text())
        torch.save(checkpoint, file)
    words = "64 x 48, now 32 x 32" if has_plans else "trained on a canvas of 64 x 48, .* is 32 x 32"
    with pytest.raises(HRMedSegError, match=words):
        export_onnx(model=edited, output=tmp_path / "onnx")
    assert not (tmp_path / "onnx").exists()


def test_files_that_are_not_checkpoints_are_reported(plain, tmp_path):
    copied = shutil.copytree(plain, tmp_path / "copy")
    file = copied / "fold_0" / "checkpoint_final.pth"
    torch.save({"network_weights": {}}, file)
    with pytest.raises(HRMedSegError, match="cannot be read as a checkpoint of nnU-Net"):
        export_onnx(model=copied, output=tmp_path / "onnx")


def test_missing_packages_are_reported(plain, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(SetupError, match=r"^onnxscript .*pip install 'nnunet_hrmedseg\[onnx\]'"):
        export_onnx(model=plain, output=tmp_path / "onnx")


@pytest.mark.parametrize(
    "words, message",
    [
        ([], "give --onnx FOLDER"),
        (["--share", "a.zip", "--weights", "int8"], "--weights int8"),
        (["--onnx", "a", "--license", "CC0"], "--license"),
    ],
)
def test_incompatible_arguments_are_rejected(words, message):
    with pytest.raises(HRMedSegError, match=message):
        _run("model", *words)


def test_output_of_share_is_checked_before_conversion(plain, tmp_path):
    (tmp_path / "there.zip").touch()
    with pytest.raises(HRMedSegError, match="there.zip exists already"):
        _run(plain, "--onnx", tmp_path / "onnx", "--share", tmp_path / "there.zip")
    assert [file.name for file in tmp_path.iterdir()] == ["there.zip"]


@pytest.mark.parametrize(
    "reader, package",
    [("NibabelIO", "nibabel"), ("SimpleITKIO", "SimpleITK"), ("HRMedSegDicomIO", dicom.PACKAGES)],
)
def test_package_that_reads_the_images_is_reported(plain, no_conversion, tmp_path, capsys, reader, package):
    model = _edited(plain, tmp_path, image_reader_writer=reader)
    assert _run(model, "--onnx", tmp_path / "onnx", "-f", "0") == 0
    assert f"pip install {package}\n" in capsys.readouterr().out


def test_arguments_are_passed_to_share_model(monkeypatch, tmp_path, capsys):
    given = {}

    def share_model(**options):
        given.update(options)
        return SimpleNamespace(path=options["output"])

    fake = SimpleNamespace(share_model=share_model)
    monkeypatch.setitem(sys.modules, "nnunet_hrmedseg.deployment.sharing", fake)
    output = tmp_path / "model.zip"
    assert _run("model", "-f", "0", "all", "--share", output, "--license", "CC0", "-chk", "checkpoint_best.pth") == 0
    assert given == {
        "model": Path("model"),
        "output": str(output),
        "folds": ["0", "all"],
        "checkpoint": "checkpoint_best.pth",
        "license": "CC0",
        "overwrite": False,
    }
    assert str(output) in capsys.readouterr().out


@pytest.mark.slow
def test_labels_as_text_are_exported_as_numbers(plain, tmp_path):
    model = shutil.copytree(plain, tmp_path / plain.name)
    file = model / "dataset.json"
    description = json.loads(file.read_text())
    wanted = description["labels"]
    # nnU-Net accepts text for all but the ignore label
    description["labels"] = {name: value if name == "ignore" else str(value) for name, value in wanted.items()}
    file.write_text(json.dumps(description))
    assert Sidecar.read(export_onnx(model=model, output=tmp_path / "onnx").folder).labels == wanted
