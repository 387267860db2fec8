import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.inference.sliding_window_prediction import compute_gaussian
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from nnunet_hrmedseg.evaluation.benchmark.memory import saved_activation_bytes
from nnunet_hrmedseg.evaluation.benchmark.networks import hrmedseg_trainable, nnunet_trainable
from nnunet_hrmedseg.evaluation.comparison import cost as module
from nnunet_hrmedseg.evaluation.comparison.cost import (
    Cost,
    cache_tile_weights,
    costs,
    count,
    epochs_of_logs,
    length_of_training,
    load,
)
from nnunet_hrmedseg.trainers.base import BaseTrainer
from nnunet_hrmedseg.trainers.hrmedseg import nnUNetTrainerHRMedSeg
from nnunet_hrmedseg.trainers.losses import LARGE_STRIP, SMALL_STRIP
from tests.deployment.tiny_models import Tiny
from tests.plans.stock_plans import stock_plans

CPU = torch.device("cpu")


def test_epochs_are_read_from_all_logs_of_a_fold(tmp_path: Path) -> None:
    line = "2026-01-01 10:00:00.000000: Epoch time: {} s\n"
    (tmp_path / "training_log_2026_1_1_10_00_00.txt").write_text(line.format(30.5) + "Epoch 1\n" + line.format(10))
    (tmp_path / "training_log_2026_1_2_10_00_00.txt").write_text(line.format(11.25))
    assert epochs_of_logs(tmp_path) == (11.25, 3)
    assert epochs_of_logs(tmp_path / "nowhere") == (None, 0)


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"training_seconds": 1}'])
def test_invalid_budget_file_gives_no_length(tmp_path: Path, content: str) -> None:
    (tmp_path / "budget.json").write_text(content)
    assert length_of_training(tmp_path) == (None, None)


def test_length_of_a_training_with_a_budget(tmp_path: Path) -> None:
    (tmp_path / "budget.json").write_text(json.dumps({"training_seconds": 601.5, "iterations": 432}))
    assert length_of_training(tmp_path) == (601.5, 432)
    assert length_of_training(tmp_path / "nowhere") == (None, None)


def test_model_that_cannot_be_loaded_has_a_reason_instead_of_a_cost(tmp_path: Path) -> None:
    found = costs({"gone": (tmp_path / "gone", "0")}, [], torch.device("cpu"), [])
    assert "no fold 0 has checkpoint_final.pth or checkpoint_best.pth" in str(found["gone"])


@pytest.mark.parametrize(("recompute", "strip"), [(True, SMALL_STRIP), (False, LARGE_STRIP)])
def test_memory_is_counted_with_the_strips_of_the_trainer(recompute: bool, strip: int) -> None:
    trainable = hrmedseg_trainable(nnUNetTrainerHRMedSeg, nn.Conv2d(3, 2, 1), recompute)
    assert trainable.loss.logits_in_a_strip == strip


def counted_by_running(network: nn.Module, image: torch.Tensor) -> tuple[int, int]:
    """Return parameters and multiply-accumulates."""
    with FlopCounterMode(display=False) as counter:
        network.eval()(image)
    return sum(parameter.numel() for parameter in network.parameters()), counter.get_total_flops() // 2


@pytest.mark.parametrize("recompute", [True, False])
def test_cost_of_hrmedseg_equals_that_of_its_trained_network(tmp_path: Path, recompute: bool) -> None:
    model = Tiny(steps=1).write(tmp_path / "model")
    plans = json.loads((model / "plans.json").read_text())
    plans["configurations"]["2d"]["architecture"]["arch_kwargs"]["recompute"] = recompute
    plans["configurations"]["2d"]["batch_size"] = 7
    (model / "plans.json").write_text(json.dumps(plans))
    predictor = load(model, "0", CPU)
    cost = count(predictor)

    network, image = predictor.network, torch.randn(1, 3, 64, 48)
    assert (cost.parameters, cost.multiply_accumulates) == counted_by_running(network, image)
    assert (cost.patch_size, cost.batch_size) == ([64, 48], 7)
    network.train().upsample_in_training = False
    loss = nnUNetTrainerHRMedSeg.build_loss(regions=False, recompute=recompute)
    target = torch.zeros(1, 1, 64, 48, dtype=torch.int16)
    assert cost.training_bytes == saved_activation_bytes(network, loss, image, target)


def test_stock_model_is_counted_with_deep_supervision() -> None:
    plans = stock_plans()
    layers = {"n_stages": 3, "features_per_stage": [4, 8, 8], "strides": [1, 2, 2], "kernel_sizes": [3, 3, 3]}
    layers |= {"n_conv_per_stage": 1, "n_conv_per_stage_decoder": 1, "conv_op": "torch.nn.modules.conv.Conv2d"}
    plans["configurations"]["2d"]["architecture"]["arch_kwargs"] = layers
    plans["configurations"]["2d"]["patch_size"] = [32, 48]
    manager = PlansManager(plans)
    description = {"channel_names": {"0": "R", "1": "G", "2": "B"}, "labels": {"background": 0, "a": 1, "b": 2}}
    network = PlainConvUNet(3, num_classes=3, **{**layers, "conv_op": nn.Conv2d})
    predictor = SimpleNamespace(
        plans_manager=manager,
        configuration_manager=manager.get_configuration("2d"),
        dataset_json=description,
        trainer_name="nnUNetTrainer",
        label_manager=manager.get_label_manager(description),
        network=network,
    )
    cost = count(predictor)

    image = torch.randn(1, 3, 32, 48)
    assert (cost.parameters, cost.multiply_accumulates) == counted_by_running(network, image)
    trained = nnunet_trainable(network)
    trained.mode(training=True)
    assert len(network(image)) == 2
    target = torch.zeros(1, 1, 32, 48, dtype=torch.int16)
    assert cost.training_bytes == saved_activation_bytes(network, trained.loss, image, target)


def test_time_of_prediction_excludes_the_first_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = {"a": iter([100.0, 3.0, 1.0, 9.0]), "b": iter([50.0, 4.0, 5.0, 60.0])}
    order = []

    def predict(name: str, files: list[Path]) -> float:
        order.append((name, files[0].name))
        return next(seconds[name])

    monkeypatch.setattr(module, "load", lambda folder, fold, device: folder.name)  # predictors are names in this test
    monkeypatch.setattr(module, "count", lambda predictor: Cost([64, 64], 2, 1, 1, 1))
    monkeypatch.setattr(module, "predict_seconds", predict)
    notes: list[str] = []
    images = [[tmp_path / f"{name}.png"] for name in "xyz"]
    found = costs({name: (tmp_path / name, "0") for name in "ab"}, images, CPU, notes)
    assert [found[name].predict_seconds for name in "ab"] == [3.0, 5.0]
    assert [found[name].predicted_images for name in "ab"] == [3, 3]
    assert order == [(name, f"{image}.png") for image in "xxyz" for name in "ab"]  # alternating
    assert not notes


def predictor_of_canvas(side: int) -> nnUNetPredictor:
    predictor = nnUNetPredictor(
        use_mirroring=False, perform_everything_on_device=False, device=torch.device("cpu"), allow_tqdm=False
    )
    predictor.network = nn.Conv2d(1, 2, 1)
    predictor.configuration_manager = SimpleNamespace(patch_size=[side, side])
    predictor.label_manager = SimpleNamespace(num_segmentation_heads=2)
    return predictor


def test_timing_excludes_the_computation_of_tile_weights() -> None:
    compute_gaussian.cache_clear()
    predictors = [predictor_of_canvas(side) for side in (16, 24, 32)]  # one more than nnU-Net caches
    missed = []
    for predictor in [*predictors, *predictors]:
        cache_tile_weights(predictor)
        before = compute_gaussian.cache_info()
        predictor.predict_sliding_window_return_logits(torch.zeros(1, 1, 16, 16))
        after = compute_gaussian.cache_info()
        assert after.hits + after.misses > before.hits + before.misses, "the weights were not used"
        missed.append(after.misses - before.misses)
    assert missed == [0] * 6


def test_new_trainer_is_counted_with_its_own_loss() -> None:
    class NewTrainer(BaseTrainer):
        build_loss = staticmethod(lambda **options: ("its loss", options["regions"]))

    assert hrmedseg_trainable(NewTrainer, nn.Conv2d(1, 2, 1), False).loss == ("its loss", False)
    assert hrmedseg_trainable(BaseTrainer, nn.Conv2d(1, 2, 1), False).loss.dc is not None  # that of nnU-Net
