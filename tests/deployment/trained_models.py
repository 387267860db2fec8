"""Trained models with everything that nnU-Net leaves in their folder, and with private data."""

import json

import numpy as np
import pytest
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_hrmedseg.plans.overrides import hrmedseg_plans
from nnunet_hrmedseg.plans.volumes import segmaformer_plans
from tests.plans.stock_plans import volume_plans
from tests.teachers.tiny_teachers import nnunet_checkpoint, nnunet_plans

DATASET = "Dataset007_Spots"
CASES = ["patient_0417", "patient_0822", "MR-77a", "12"]
ENCODER = {"file": "/data/somebody/encoders/sam.safetensors", "sha256": "ab" * 32, "name": "distilled from SAM ViT-B"}


def hrmedseg(network="HRMedSeg"):
    plans = hrmedseg_plans(nnunet_plans(), num_training_cases=4, network=network)
    configuration = plans["configurations"]["2d"]
    configuration["patch_size"] = [64, 64]
    tiny = {"embed_dim": 24, "depth": 3, "decoder_dim": 16, "decoder_mlp_dim": 16, "decoder_heads": 2}
    configuration["architecture"]["arch_kwargs"].update(tiny)
    configuration["encoder_weights"] = ENCODER["file"]
    return hrmedseg_plans(plans, num_training_cases=4)  # as in training: the data folder is renamed


def stock():
    plans = nnunet_plans(stages=4)
    plans["configurations"]["2d"]["patch_size"] = [64, 64]
    return plans


def segmaformer():
    plans = volume_plans()
    configuration = plans["configurations"]["3d_fullres"]
    configuration.update(patch_size=[16, 32, 32], normalization_schemes=["ZScoreNormalization"])
    configuration["use_mask_for_norm"] = [False]
    plans = segmaformer_plans(plans, "3d_fullres")
    arguments = plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]
    arguments.update(embed_dims=[6, 12, 12, 12], decoder_dim=16, num_heads=2)
    return plans


MODELS = {
    "hrmedseg": ("nnUNetTrainerHRMedSeg", hrmedseg, "2d", 3),
    "herseg": ("nnUNetTrainerHERSeg", lambda: hrmedseg("HERSeg"), "2d", 3),
    "stock": ("nnUNetTrainer", stock, "2d", 3),
    "segmaformer": ("nnUNetTrainerSegMaFormer", segmaformer, "3d_fullres", 1),
}


@pytest.fixture
def trained(tmp_path, monkeypatch):
    """Return a function that writes a trained model, with all files that nnU-Net leaves, and with private data."""

    def write(kind="hrmedseg", folds=(0, 1), **dataset_more):
        trainer, plans, configuration, channels = MODELS[kind]
        plans = plans()
        plans["configurations"][configuration]["encoder_started_from"] = ENCODER
        dataset = {
            "channel_names": {str(channel): f"T{channel}/x" for channel in range(channels)},
            "labels": {"background": 0, "disc": 1, "square": 2},
            "numTraining": 4,
            "file_ending": ".png" if channels == 3 else ".nii.gz",
            "licence": "CC BY 4.0",
            "reference": "https://example.org/data/set",
            "description": f"drawn from {CASES[0]}",
            "training": [{"image": f"./imagesTr/{case}_0000.png"} for case in CASES],
            "dataset": {case: {"images": [f"/data/somebody/{case}.png"], "label": "x"} for case in CASES},
            "converted_by": "Somebody",
            **dataset_more,
        }
        folder = tmp_path / "results" / DATASET / f"{trainer}__nnUNetPlans__{configuration}"
        manager = PlansManager(plans)
        torch.manual_seed(0)
        for fold in folds:
            network = nnUNetTrainer.build_network_architecture(
                manager, manager.get_configuration(configuration), channels, 3, enable_deep_supervision=False
            )
            optimizer = torch.optim.Adam(network.parameters())
            of_training = {"plans": plans, "configuration": configuration, "fold": fold, "dataset_json": dataset}
            checkpoint = nnunet_checkpoint(network, optimizer, of_training, trainer)
            validation = folder / f"fold_{fold}" / "validation"
            validation.mkdir(parents=True)
            torch.save(checkpoint, folder / f"fold_{fold}" / "checkpoint_final.pth")
            write_summary(validation / "summary.json", 0.5 + 0.25 * (fold == 1), CASES[:3] if fold == 1 else CASES[3:])
            (folder / f"fold_{fold}" / "training_log_2026_1_1.txt").write_text("/data/somebody")
            (folder / f"fold_{fold}" / "debug.json").write_text('{"hostname": "somewhere"}')
        (folder / "plans.json").write_text(json.dumps(plans))
        (folder / "dataset.json").write_text(json.dumps(dataset))
        (folder / "dataset_fingerprint.json").write_text(json.dumps({"spacings": [[1, 1]] * 4}))
        preprocessed = tmp_path / "preprocessed" / DATASET
        preprocessed.mkdir(parents=True, exist_ok=True)
        (preprocessed / "splits_final.json").write_text(json.dumps([{"train": CASES[:2], "val": CASES[2:]}]))
        monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "preprocessed"))
        return folder

    return write


def write_summary(file, dice, cases):
    file.parent.mkdir(parents=True, exist_ok=True)
    metrics = {"1": {"Dice": dice}, "2": {"Dice": float("nan")}}
    of_cases = [
        {"prediction_file": f"/data/somebody/{c}.png", "reference_file": f"/x/{c}.png", "metrics": metrics}
        for c in cases
    ]
    content = {"foreground_mean": {"Dice": dice}, "mean": metrics, "metric_per_case": of_cases}
    file.write_text(json.dumps(content))


def model_in(output):
    [folder] = output.glob("Dataset*/*__*__*")
    return folder


def predict(folder, shape, folds=(0, 1)):
    predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(folder), folds)
    image = np.random.default_rng(0).uniform(0, 255, shape).astype(np.float32)
    properties = {"spacing": [999.0, 1.0, 1.0] if shape[1] == 1 else [3.0, 1.0, 1.0]}
    _, probabilities = predictor.predict_single_npy_array(image, properties, save_or_return_probabilities=True)
    return probabilities
