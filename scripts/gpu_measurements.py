"""The checks of gpu_check.py: each function measures one property on the GPU and returns values for a line of JSON.

Training and validation of our networks use our trainers, on batches created on the GPU, so that the same code runs as
in nnU-Net. `Skip` is raised with a reason if a check cannot run on this machine.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from skimage import io
from torch import Tensor, nn
from torch.nn import functional as F

SIDE = 1024
CUDA = torch.device("cuda", 0)
WORKERS = min(12, os.cpu_count() or 1)


class Skip(Exception):
    """A check that cannot run on this machine."""


# ------------------------------------------------------------------------------------------------------------- batches


def random_batch(images: int, classes: int = 2) -> dict[str, Tensor]:
    """Return a batch like nnU-Net's loader, on the GPU: (B, 3, 1024, 1024) images and (B, 1, 1024, 1024) labels."""
    generator = torch.Generator(CUDA).manual_seed(0)
    data = torch.randn(images, 3, SIDE, SIDE, device=CUDA, generator=generator)
    target = torch.randint(0, classes, (images, 1, SIDE, SIDE), device=CUDA, generator=generator)
    return {"data": data, "target": target.to(torch.int16)}


# ------------------------------------------------------------------------------------------- our trainers without data


def plans(network: str, batch_size: int, recompute: bool) -> dict[str, Any]:
    """Return stock plans of RGB images like nnU-Net's planner, with the given batch size and recomputation."""
    from nnunet_hrmedseg.plans.overrides import hrmedseg_plans

    configuration = {
        "data_identifier": "nnUNetPlans_2d",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": [SIDE, SIDE],
        "median_image_size_in_voxels": [float(SIDE), float(SIDE)],
        "spacing": [1.0, 1.0],
        "normalization_schemes": ["ZScoreNormalization"] * 3,
        "use_mask_for_norm": [False] * 3,
        "batch_dice": True,
        "architecture": {"network_class_name": "torch.nn.Identity", "arch_kwargs": {}, "_kw_requires_import": []},
    }
    stock = {
        "dataset_name": "Dataset001_Check",
        "plans_name": "nnUNetPlans",
        "original_median_spacing_after_transp": [999.0, 1.0, 1.0],
        "original_median_shape_after_transp": [1, SIDE, SIDE],
        "image_reader_writer": "NaturalImage2DIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": {"2d": configuration},
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {},
        "continue_training": False,
    }
    changed = hrmedseg_plans(stock, num_training_cases=1000, network=network)
    changed["configurations"]["2d"]["batch_size"] = batch_size
    changed["configurations"]["2d"]["architecture"]["arch_kwargs"]["recompute"] = recompute
    changed["configurations"]["2d"]["encoder_weights"] = "none"
    return changed


def trainer(
    name: str = "nnUNetTrainerHRMedSeg",
    *,
    batch_size: int = 16,
    recompute: bool = False,
    compiled: bool = False,
    cuda_graphs: bool = False,
    classes: int = 2,
):
    """Return one of our trainers, ready for `train_step` and `validation_step` without a dataset."""
    from nnunet_hrmedseg.nnunet_versions import find_trainer
    from nnunet_hrmedseg.trainers import hrmedseg as module
    from nnunet_hrmedseg.trainers.progress import EpochProgress

    module.ensure_canvas_data = lambda *args, **kwargs: None  # batches are created on the GPU
    os.environ["nnUNet_compile"] = "t" if compiled else "f"
    torch._dynamo.reset()
    torch.cuda.empty_cache()
    dataset = {
        "channel_names": {"0": "R", "1": "G", "2": "B"},
        "labels": {"background": 0, **{f"class {number}": number for number in range(1, classes)}},
        "numTraining": 1000,
        "file_ending": ".png",
    }
    found: Any = find_trainer(name)
    made = found(plans(found.network_name, batch_size, recompute), "2d", 0, dataset, CUDA)
    made.cuda_graphs = cuda_graphs
    data = Path(made.preprocessed_dataset_folder)
    data.mkdir(parents=True, exist_ok=True)
    (data / "case.b2nd").touch()  # sets the format of data, which is never read
    made.initialize()
    made.num_iterations_per_epoch = 250
    made.progress = EpochProgress("", 250, show=False)
    return made


def stepped(step: Callable[[], Any], images: int, repeats: int) -> dict[str, Any]:
    """Time a step with synchronization; the first step (compilation, cuDNN's choices) is reported separately."""
    seconds: list[float] = []
    torch.cuda.reset_peak_memory_stats()
    for number in range(repeats + 2):
        torch.cuda.synchronize()
        began = time.perf_counter()
        step()
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
        if number == 1:
            first_peak = torch.cuda.max_memory_allocated()
            torch.cuda.reset_peak_memory_stats()
    median, peak = statistics.median(seconds[2:]), torch.cuda.max_memory_allocated()
    return {
        "first_step_s": seconds[0],
        "step_s": median,
        "images_per_s": images / median,
        "peak_gb": peak / 1e9,
        "peak_gb_per_image": peak / 1e9 / images,
        "peak_gb_of_first_steps": first_peak / 1e9,
        "reserved_gb": torch.cuda.max_memory_reserved() / 1e9,
    }


def training(images: int, *, repeats: int = 10, **options: Any) -> dict[str, Any]:
    """Measure training steps of one of our trainers."""
    made = trainer(batch_size=images, **options)
    batch = random_batch(images, options.get("classes", 2))
    made.network.train()
    losses: list[float] = []
    found = stepped(lambda: losses.append(float(made.train_step(dict(batch))["loss"])), images, repeats)
    return {**found, "losses_finite": bool(np.isfinite(losses).all()), "scale": made.grad_scaler.get_scale()}


def validation(images: int, classes: int, *, compiled: bool = False, repeats: int = 3) -> dict[str, Any]:
    """Measure steps of nnU-Net's validation after each epoch."""
    made = trainer(batch_size=images, classes=classes, compiled=compiled)
    batch = random_batch(images, classes)
    made.network.eval()

    def step() -> None:
        with torch.no_grad():
            made.validation_step({name: tensor.clone() for name, tensor in batch.items()})

    return stepped(step, images, repeats)


# ---------------------------------------------------------------------------------------------------------- comparison


def segformer_b0(classes: int = 2):
    """Return SegFormer-B0 of transformers from its configuration, with random weights; trained by AdamW."""
    try:
        from transformers import SegformerConfig, SegformerForSemanticSegmentation
    except ImportError:
        raise Skip("transformers is not installed: pip install transformers") from None
    from nnunet_hrmedseg.evaluation.benchmark.networks import Trainable, nnunet_loss

    network, loss = SegformerForSemanticSegmentation(SegformerConfig(num_labels=classes)), nnunet_loss()

    def upsampled_loss(output: Any, target: Tensor) -> Tensor:
        return loss(F.interpolate(output.logits, scale_factor=4, mode="bilinear", align_corners=False), target)

    return Trainable(network, upsampled_loss, torch.optim.AdamW(network.parameters(), lr=6e-5))


def peer(name: str, images: int, *, compiled: bool = False, repeats: int = 5) -> dict[str, Any]:
    """Measure nnU-Net's training step of another network: "nnunet", "resenc" or "segformer"."""
    from nnunet_hrmedseg.evaluation.benchmark.networks import CONTENDERS

    torch._dynamo.reset()
    torch.cuda.empty_cache()
    trained = segformer_b0() if name == "segformer" else CONTENDERS[name].build(3, 2, SIDE)
    trained.network.to(CUDA)
    trained.mode(training=True)
    network = torch.compile(trained.network) if compiled else trained.network
    batch, scaler = random_batch(images), torch.amp.GradScaler("cuda")

    def step() -> None:
        trained.optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cuda"):
            value = trained.loss(network(batch["data"]), batch["target"])
        scaler.scale(value).backward()
        scaler.unscale_(trained.optimizer)
        nn.utils.clip_grad_norm_(trained.network.parameters(), 12)
        scaler.step(trained.optimizer)
        scaler.update()
        value.item()

    return stepped(step, images, repeats)


def prediction(images: int, *, compiled: bool = False, repeats: int = 10) -> dict[str, Any]:
    """Measure prediction of whole images as in nnU-Net's predictor: float16, without mirroring."""
    made = trainer(batch_size=images, compiled=compiled)
    made.network.eval()
    image = random_batch(images)["data"]

    def step() -> None:
        with torch.inference_mode(), torch.autocast("cuda"):
            made.network(image)

    return stepped(step, images, repeats)


# ------------------------------------------------------------------------------------------- augmentation and loading


def transforms():
    """Return nnU-Net's training transforms for two classes on the whole canvas."""
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    return nnUNetTrainer.get_training_transforms(
        (SIDE, SIDE),
        (-np.pi, np.pi),
        None,
        (0, 1),
        False,
        use_mask_for_norm=[False] * 3,
        is_cascaded=False,
        foreground_labels=[1],
        regions=None,
        ignore_label=None,
    )


def augmentation(images: int = 16, repeats: int = 30) -> dict[str, Any]:
    """Measure nnU-Net's augmentation of batches on the GPU."""
    from nnunet_hrmedseg.trainers.batch_augmentation import BatchAugmentation

    augment, batch = BatchAugmentation(transforms(), [0, 1]), random_batch(images)
    seconds = []
    for _ in range(repeats + 2):
        image, target = batch["data"].clone(), batch["target"].clone()
        torch.cuda.synchronize()
        began = time.perf_counter()
        augment(image, target)
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    mean = statistics.mean(seconds[2:])
    return {"ms_per_batch": 1e3 * mean, "images_per_s": images / mean, "slowest_ms": 1e3 * max(seconds[2:])}


def loading(folder: Path, *, augmented: bool, images: int = 16, batches: int = 40) -> dict[str, Any]:
    """Measure the throughput of nnU-Net's workers from cases on the disk to the GPU, with pinned memory."""
    from benchmarks.loading_speed import delivered, write_cases

    cases = write_cases(folder / "cases", SIDE, 24)
    if augmented:
        batches = max(2, batches // 8)
    rate = delivered(cases, SIDE, images, WORKERS, batches, transforms() if augmented else None, CUDA)
    return {"images_per_s": rate, "workers": WORKERS, "cores": os.cpu_count()}


# ------------------------------------------------------------------------------------------------- nnU-Net's commands


def commands(folder: Path) -> dict[str, Any]:
    """Plan, train one epoch and predict with nnU-Net's commands, and predict again on the CPU for comparison."""
    from nnunet_hrmedseg.demo.dataset import build_dataset

    os.environ["nnUNet_compile"] = "f"
    seconds: dict[str, float] = {}
    dataset = build_dataset(folder / "nnUNet_raw")
    few = sorted((dataset / "imagesTs").iterdir())[:2]
    (folder / "few").mkdir()
    for file in few:
        (folder / "few" / file.name).symlink_to(file)
    model = ["-d", "1", "-c", "2d", "-f", "0", "-tr", "nnUNetTrainerHRMedSeg_1epoch", "-i", str(folder / "few")]
    for name, function, *arguments in (
        (
            "plan",
            "experiment_planning.plan_and_preprocess_entrypoints:plan_and_preprocess_entry",
            "-d",
            "1",
            "-c",
            "2d",
        ),
        ("train", "run.run_training:run_training_entry", "1", "2d", "0", "-tr", "nnUNetTrainerHRMedSeg_1epoch"),
        ("predict", "inference.predict_from_raw_data:predict_entry_point", *model, "-o", str(folder / "cuda")),
        (
            "predict on the CPU",
            "inference.predict_from_raw_data:predict_entry_point",
            *(*model, "-o", str(folder / "cpu"), "-device", "cpu"),
        ),
    ):
        module, entry = function.split(":")
        code = f"from nnunetv2.{module} import {entry}; {entry}()"
        began = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
        seconds[name] = time.perf_counter() - began
        assert done.returncode == 0, f"{name}: {(done.stdout + done.stderr)[-1500:]}"
    other = [
        float((io.imread(folder / "cuda" / f"{case}.png") != io.imread(folder / "cpu" / f"{case}.png")).mean())
        for case in (file.name.removesuffix("_0000.png") for file in few)
    ]
    assert max(other) < 0.005, f"masks of GPU and CPU differ in a fraction of {other} of the pixels"
    return {"seconds": seconds, "other_pixels": other}
