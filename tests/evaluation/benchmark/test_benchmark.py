"""`hrmedseg benchmark` on tiny images: measurements, counts, and errors."""

from __future__ import annotations

import json
from functools import partial
from unittest import mock

import pytest
import torch

from nnunet_hrmedseg.architectures import HRMedSeg
from nnunet_hrmedseg.cli import main
from nnunet_hrmedseg.evaluation.benchmark import run
from nnunet_hrmedseg.evaluation.benchmark.memory import saved_activation_bytes, saved_activation_bytes_fake
from nnunet_hrmedseg.evaluation.benchmark.networks import (
    CONTENDERS,
    DEFAULT_CONTENDERS,
    DEFAULT_CONTENDERS_3D,
    OF_EXTRAS,
    SEGMENTATION_MODELS,
    planned_architecture,
)
from nnunet_hrmedseg.evaluation.benchmark.report import table
from nnunet_hrmedseg.evaluation.benchmark.steps import autocast, describe_precision, random_batch, run_once

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    file = tmp_path_factory.mktemp("benchmark") / "figures.json"
    arguments = ["--sizes", "64", "--classes", "2", "--training_batch_sizes", "2", "--inference_batch_sizes", "1"]
    options = [
        "--networks",
        "hrmedseg",
        "hrmedseg_recompute",
        "nnunet",
        "--repeats",
        "2",
        "-device",
        "cpu",
        "-o",
        str(file),
    ]
    assert main(["benchmark", *arguments, *options]) == 0
    return json.loads(file.read_text())


def test_all_values_are_recorded(content):
    assert {"machine", "versions", "date", "threads", "precision"} <= content.keys()
    assert len(content["rows"]) == 3 * 2
    for row in content["rows"]:
        assert row["parameters"] > 1e6 and row["multiply_accumulates"] > 1e6
        assert len(row["seconds"]) == 2 and row["median_seconds"] > 0
        assert ("kept_for_backward_bytes" in row) == row["training"]
        if run.RESETS_PEAK.exists() and row["training"]:
            assert row["peak_resident_bytes"] > 0


@pytest.mark.parametrize("wanted, in_bfloat16", [("nnunet", True), ("float32", False)])
def test_float32_option_disables_bfloat16(monkeypatch, tmp_path, wanted, in_bfloat16):
    monkeypatch.setenv("HRMEDSEG_CPU_BFLOAT16", "1")
    seen = []
    monkeypatch.setattr(HRMedSeg, "forward", noting_precision(HRMedSeg.forward, seen))
    arguments = ["--sizes", "64", "--classes", "2", "--training_batch_sizes", "1", "--inference_batch_sizes", "1"]
    options = ["--networks", "hrmedseg", "--repeats", "1", "-device", "cpu", "-o", str(tmp_path / "figures.json")]
    assert main(["benchmark", *arguments, *options, "--precision", wanted]) == 0
    assert seen and set(seen) == {in_bfloat16}
    assert ("bfloat16" in json.loads((tmp_path / "figures.json").read_text())["precision"]) == in_bfloat16


def noting_precision(forward, seen):
    def noting(network, image):
        if not network.training and image.device.type == "cpu":
            seen.append(network.cpu_bfloat16)
        return forward(network, image)

    return noting


def test_mixed_precision_on_cuda_is_described():
    assert describe_precision("nnunet", torch.device("cuda")) == "mixed precision (fp16), not compiled"


def test_bytes_kept_on_cuda_are_those_of_mixed_precision():
    """They are counted without a GPU. In float32 they would exceed the measured peak."""
    shapes = [(1, 3, 64, 64), (2, 3, 64, 64)]
    build = CONTENDERS["nnunet"].build
    on_cuda = partial(autocast, torch.device("cuda"), "nnunet")
    with mock.patch("torch.cuda.amp.common.amp_definitely_not_available", return_value=False):
        one, two = saved_activation_bytes_fake(build(3, 2, 64), shapes, torch.device("cuda"), on_cuda)
    one_in_float32, two_in_float32 = saved_activation_bytes_fake(build(3, 2, 64), shapes)
    # of one image: a second image adds no copy of the weights
    assert 0.4 < (two - one) / (two_in_float32 - one_in_float32) < 0.8


def test_table_has_one_row_per_network(content):
    text = table(content)
    for name in ("hrmedseg", "hrmedseg_recompute", "nnunet"):
        assert text.count(f"| {CONTENDERS[name].title} |") == 1


def test_table_states_once_why_peaks_are_missing(content):
    rows = [{**row, run.NO_PEAK: "only Linux reports it"} for row in content["rows"] if row["training"]]
    for row in rows:
        row.pop("peak_resident_bytes", None)
    text = table({**content, "rows": rows})
    names = ", ".join(f"{CONTENDERS[row['network']].title} at batch 2" for row in rows)
    assert text.count("No peak of") == 1 and f"No peak of {names}: only Linux reports it" in text
    assert "peak resident" not in text


def test_table_shows_values_per_image_with_units():
    row = {"network": "hrmedseg", "size": 64, "classes": 2, "batch_size": 4, "parameters": 12_340_000}
    row |= {"multiply_accumulates": 5_670_000_000}
    training = {"training": True, "kept_for_backward_bytes": 4 * 250 * 2**20, "peak_resident_bytes": 4 * 31 * 2**20}
    rows = [{**row, **training, "median_seconds": 8.0}, {**row, "training": False, "median_seconds": 0.5}]
    surroundings = {"machine": "m", "device": "cpu", "precision": "float32", "date": "2026-01-01"}
    lines = table({**surroundings, "rows": rows}).splitlines()
    header, of_network = ([cell.strip() for cell in line.split("|")[1:-1]] for line in (lines[-3], lines[-1]))
    assert dict(zip(header, of_network, strict=True)) == {
        "network": "HRMedSeg",
        "parameters, M": "12.34",
        "GMACs": "5.67",
        "kept, MiB per image, batch 4": "250",
        "peak resident, MiB per image, batch 4": "31",
        "training step, s per image, batch 4": "2",
        "prediction, s per image, batch 4": "0.125",
    }


def test_counting_without_measuring(tmp_path, capsys):
    file = tmp_path / "counts.json"
    assert main(["benchmark", "--count_only", "--sizes", "64", "--networks", "hrmedseg", "-o", str(file)]) == 0
    rows = json.loads(file.read_text())["rows"]
    assert all("seconds" not in row for row in rows)
    assert "kept, MiB per image, batch 16" in capsys.readouterr().out


def test_reason_is_given_for_skipped_measurements(content):
    row = {**content["rows"][0], "left_out": "would take about 100 s"}
    row.pop("median_seconds")
    text = table({**content, "rows": [row]})
    assert "HRMedSeg, training at batch 2: left out, would take about 100 s" in text


ALL = [(name, (64, 64)) for name in DEFAULT_CONTENDERS] + [(name, (16, 16, 16)) for name in DEFAULT_CONTENDERS_3D]
FAST = ("hrmedseg", "nnunet", "segmaformer")
CASES = [pytest.param(*case, marks=[] if case[0] in FAST else pytest.mark.slow) for case in ALL]


@pytest.mark.parametrize("name, size", CASES)
def test_counts_without_running_equal_counts_with_running(name, size):
    build = CONTENDERS[name].build
    one, counted = saved_activation_bytes_fake(build(3, 4, size[0]), [(1, 3, *size), (2, 3, *size)])
    trained = build(3, 4, size[0])
    trained.mode(training=True)
    kept = saved_activation_bytes(trained.network, trained.loss, *random_batch((2, 3, *size), 4, CPU))
    # with AVX512, 3D convolutions keep the layout channels_last, which saves a copy
    assert one < counted == pytest.approx(kept, rel=0 if len(size) == 2 else 0.02)


@pytest.mark.parametrize("name, size", CASES)
def test_only_a_training_step_changes_the_weights(name, size):
    trained = CONTENDERS[name].build(1, 3, size[0])
    image, target = random_batch((2, 1, *size), 3, CPU)
    before = [p.detach().clone() for p in trained.network.parameters()]
    run_once(trained, image, target, False, "nnunet")
    assert all(torch.equal(a, b) for a, b in zip(before, trained.network.parameters(), strict=True))
    run_once(trained, image, target, True, "nnunet")
    changed = [not torch.equal(a, b) for a, b in zip(before, trained.network.parameters(), strict=True)]
    assert sum(changed) > 0.5 * len(changed)  # biases before a norm have no gradient
    trained.mode(training=False)
    with torch.no_grad():
        assert trained.network(image).shape == (2, 3, *size)  # one output, independent of training


@pytest.mark.parametrize("name", [name for name in CONTENDERS if name.startswith(OF_EXTRAS)])
def test_networks_of_other_libraries_predict_and_train(name):
    needed = {
        "monai_swinunetr": ("monai", "einops"),
        **dict.fromkeys(SEGMENTATION_MODELS, ("segmentation_models_pytorch",)),
    }
    for module in needed.get(name, ("monai",)):
        pytest.importorskip(module)
    trained = CONTENDERS[name].build(3, 2, 64)
    image, target = random_batch((2, 3, 64, 64), 2, CPU)
    outputs = []
    trained.network.register_forward_hook(lambda network, inputs, output: outputs.append(output))
    run_once(trained, image, target, False, "nnunet")
    run_once(trained, image, target, True, "nnunet")
    for output in outputs:
        assert (output[0] if isinstance(output, list) else output).shape == (2, 2, 64, 64)
    gradients = [p.grad is not None and p.grad.abs().sum() > 0 for p in trained.network.parameters()]
    assert sum(gradients) > 0.5 * len(gradients)


def test_networks_for_volumes_are_measured(tmp_path, capsys):
    file = tmp_path / "figures.json"
    sizes = ["--dimensions", "3", "--sizes", "16", "--classes", "2", "--channels", "1", "--training_batch_sizes", "2"]
    options = ["--networks", "segmaformer", "nnunet_3d", "--count_only", "-o", str(file)]
    assert main(["benchmark", *sizes, *options]) == 0
    rows = json.loads(file.read_text())["rows"]
    assert [(row["network"], row["training"]) for row in rows] == [
        (name, training) for name in ("segmaformer", "nnunet_3d") for training in (True, False)
    ]
    assert all(row["kept_for_backward_bytes"] > 0 for row in rows if row["training"])
    printed = capsys.readouterr().out
    assert "16 x 16 x 16, 2 classes" in printed and "| SegMaFormer |" in printed and "| nnU-Net |" in printed


def test_stock_network_for_volumes_is_that_of_3d_fullres():
    planned = planned_architecture("ExperimentPlanner", 64, 1, 3)
    assert planned["arch_kwargs"]["conv_op"].endswith("Conv3d")
    assert planned["arch_kwargs"]["strides"][1:] == ((2, 2, 2),) * 4


def test_stock_networks_equal_those_of_nnunets_planners():
    plain, residual = (planned_architecture(p, 256, 3) for p in ("ExperimentPlanner", "nnUNetPlannerResEncL"))
    assert plain["network_class_name"].endswith(".PlainConvUNet")
    assert residual["network_class_name"].endswith(".ResidualEncoderUNet")
    assert plain["arch_kwargs"]["n_stages"] == residual["arch_kwargs"]["n_stages"] == 7
    assert planned_architecture("nnUNetPlannerResEncM", 256, 3) == residual


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--networks", "hrmedsge"], "Unknown network 'hrmedsge'"),
        (["--sizes", "1000"], "powers of two"),
        (["--sizes", "32"], "powers of two"),
        (["--networks", "segmaformer"], "'segmaformer' is 3D: measure it with --dimensions 3"),
        (["--dimensions", "3", "--networks", "nnunet"], "Networks for --dimensions 3: segmaformer"),
        (["--dimensions", "3", "--sizes", "24"], "powers of two from 16"),
    ],
)
def test_wrong_arguments_are_reported(capsys, arguments, message):
    assert main(["benchmark", *arguments]) == 1
    assert message in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_missing_gpu_is_reported(capsys):
    assert main(["benchmark", "-device", "cuda"]) == 1
    assert "finds no cuda device" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["monai_unet", "smp_segformer_b0"])
def test_missing_library_is_reported(monkeypatch, capsys, tmp_path, name):
    for module in ("monai", "monai.networks.nets", "segmentation_models_pytorch"):
        monkeypatch.setitem(__import__("sys").modules, module, None)
    assert main(["benchmark", "--networks", name, "--sizes", "64", "-o", str(tmp_path / "f.json")]) == 1
    assert "pip install 'nnunet_hrmedseg[benchmark]'" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
