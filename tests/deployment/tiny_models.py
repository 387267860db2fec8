"""Small models in nnU-Net's folders, trained for a few steps to segment by brightness, and images for them."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from hrmedseg_onnx.model import OnnxModel
from nnunet_hrmedseg.plans.overrides import hrmedseg_plans
from nnunet_hrmedseg.trainers.hrmedseg import nnUNetTrainerHERSeg, nnUNetTrainerHRMedSeg
from tests.plans.stock_plans import stock_plans

TRAINERS = {"HRMedSeg": nnUNetTrainerHRMedSeg, "HERSeg": nnUNetTrainerHERSeg}
CT = {"mean": 90.0, "std": 40.0, "percentile_00_5": 5.0, "percentile_99_5": 240.0}


@dataclass
class Tiny:
    """Properties of a model; the defaults are RGB pictures with two labels and an ignore label."""

    network: str = "HRMedSeg"
    channels: list[str] = field(default_factory=lambda: ["R", "G", "B"])
    labels: dict[str, Any] = field(default_factory=lambda: {"background": 0, "gray": 1, "bright": 2, "ignore": 3})
    regions_class_order: list[int] | None = None
    canvas: tuple[int, int] = (64, 48)
    schemes: list[str] = field(default_factory=lambda: ["ZScoreNormalization"] * 3)
    use_mask: bool = False
    transpose: tuple[int, int, int] = (0, 1, 2)
    reader: str = "NaturalImage2DIO"
    ending: str = ".png"
    folds: int = 1
    steps: int = 25

    def write(self, model: Path) -> Path:
        """Write the folder that nnUNetv2_train leaves."""
        description = {
            "channel_names": {str(c): name for c, name in enumerate(self.channels)},
            "labels": self.labels,
            "numTraining": 5,
            "file_ending": self.ending,
        }
        if self.regions_class_order:
            description["regions_class_order"] = self.regions_class_order
        plans = self._plans()
        model.mkdir(parents=True)
        (model / "plans.json").write_text(json.dumps(plans))
        (model / "dataset.json").write_text(json.dumps(description))
        for fold in range(self.folds):
            self._checkpoint(plans, description, model / f"fold_{fold}" / "checkpoint_final.pth", seed=fold)
        return model

    def _plans(self) -> dict[str, Any]:
        stock = stock_plans()
        stock.update(
            transpose_forward=list(self.transpose),
            transpose_backward=np.argsort(self.transpose).tolist(),
            image_reader_writer=self.reader,
            foreground_intensity_properties_per_channel={str(c): CT for c in range(len(self.channels))},
        )
        stock["configurations"]["2d"].update(
            normalization_schemes=self.schemes, use_mask_for_norm=[self.use_mask] * len(self.channels)
        )
        plans = hrmedseg_plans(stock, num_training_cases=5, network=self.network)
        configuration = plans["configurations"]["2d"]
        configuration["patch_size"] = list(self.canvas)
        configuration["architecture"]["arch_kwargs"].update(
            embed_dim=16, depth=1, channel_interactive_layers=1, decoder_dim=32, decoder_depth=1, decoder_mlp_dim=16
        )
        return hrmedseg_plans(plans, num_training_cases=5)  # as in training: the data folder is renamed

    def _checkpoint(self, plans: dict, description: dict, file: Path, seed: int) -> None:
        manager = PlansManager(plans)
        label_manager = manager.get_label_manager(description)
        outputs = label_manager.num_segmentation_heads
        torch.manual_seed(seed)
        network = TRAINERS[self.network].build_network_architecture(
            manager, manager.get_configuration("2d"), len(self.channels), outputs, False
        )
        _learn_brightness(network, len(self.channels), outputs, self.canvas, label_manager.has_regions, self.steps)
        file.parent.mkdir(parents=True)
        checkpoint = {
            "trainer_name": TRAINERS[self.network].__name__,
            "init_args": {"configuration": "2d"},
            "inference_allowed_mirroring_axes": (0, 1),
            "network_weights": network.state_dict(),
        }
        torch.save(checkpoint, file)


def _learn_brightness(network: torch.nn.Module, channels: int, outputs: int, canvas, regions: bool, steps: int) -> None:
    """Train for a few steps, so that logits are large and every label is predicted somewhere."""
    optimizer = torch.optim.Adam(network.parameters(), lr=5e-3)
    random = np.random.default_rng(0)
    for _ in range(steps):
        images = np.stack([blobs(random, canvas, channels) for _ in range(2)]).astype(np.float32)
        images = torch.from_numpy((images - images.mean()) / images.std())
        brightness = images.mean(1)
        bins = (brightness > -0.3).long() + (brightness > 1.0)
        logits = network(images)
        if regions:
            wanted = torch.stack([bins >= 1, bins >= 2], dim=1).float()
            loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, wanted)
        else:
            loss = torch.nn.functional.cross_entropy(logits, bins.clamp_max(outputs - 1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def blobs(random: np.random.Generator, size: tuple[int, int], channels: int) -> np.ndarray:
    """Return (channels, Y, X) uint8 in 1 to 255: discs of different brightness on a dark background."""
    rows, columns = np.mgrid[: size[0], : size[1]]
    image = np.full(size, 20.0)
    for _ in range(6):
        y, x, radius = random.uniform(0, size[0]), random.uniform(0, size[1]), random.uniform(0.1, 0.25) * min(size)
        image[np.hypot(rows - y, columns - x) < radius] = random.choice([100.0, 220.0])
    noisy = image[None] * random.uniform(0.8, 1.1, (channels, 1, 1)) + random.normal(0, 5, (channels, *size))
    return np.clip(noisy, 1, 255).astype(np.uint8)


def predictor_of(model: Path) -> nnUNetPredictor:
    """Return nnU-Net's predictor, in float32."""
    predictor = nnUNetPredictor(device=torch.device("cpu"), perform_everything_on_device=False, allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(model), None, "checkpoint_final.pth")
    predictor.network.eval()
    predictor.network.cpu_bfloat16 = False
    return predictor


def difference_in_logits(predictor: nnUNetPredictor, exported: OnnxModel, data: np.ndarray, spacing) -> float:
    """Return the largest difference on the canvas, over all slices, averaged over mirrorings and folds.

    The reference are the logits before nnU-Net's sliding window, which stores them in float16 weighted by a Gaussian.
    """
    preprocessor = predictor.configuration_manager.preprocessor_class(verbose=False)
    on_canvas, _, _ = preprocessor.run_case_npy(
        data,
        None,
        {"spacing": spacing},
        predictor.plans_manager,
        predictor.configuration_manager,
        predictor.dataset_json,
    )
    largest = 0.0
    for z in range(on_canvas.shape[1]):
        wanted = 0
        for parameters in predictor.list_of_parameters:
            predictor.network.load_state_dict(parameters)
            image = torch.from_numpy(on_canvas[:, z])[None].float()
            wanted = wanted + predictor._internal_maybe_mirror_and_predict(image)[0].numpy()
        wanted = wanted / len(predictor.list_of_parameters)
        largest = max(largest, float(np.abs(exported.logits(on_canvas[:, z]) - wanted).max()))
    return largest


def write_example_model(folder: Path) -> None:
    """Write the trained model that examples in docstrings use, below `folder`/nnUNet_results."""
    Tiny().write(folder / "nnUNet_results" / "Dataset001_Photos" / "nnUNetTrainerHRMedSeg__nnUNetPlans__2d")
