"""nnU-Net's planning with SegMaFormer instead of the U-Net, from a fingerprint."""

from __future__ import annotations

import json
import os

import pytest

from nnunet_hrmedseg.errors import DataError, PlanError
from nnunet_hrmedseg.nnunet_versions import nnunet_folders
from nnunet_hrmedseg.plans.planner import nnUNetPlannerSegMaFormer
from nnunet_hrmedseg.plans.specs import NETWORKS
from nnunet_hrmedseg.plans.volumes import segmaformer_plans

CASES = 20


@pytest.fixture
def dataset(tmp_path):
    """Return a function that writes the fingerprint of a dataset with images of one shape and spacing."""

    def write(shape, spacing):
        ending, reader = (".png", "NaturalImage2DIO") if shape[0] == 1 else (".nii.gz", "SimpleITKIO")
        description = {
            "channel_names": {"0": "MR"},
            "labels": {"background": 0, "organ": 1, "tumour": 2},
            "numTraining": CASES,
            "file_ending": ending,
            "overwrite_image_reader_writer": reader,
            "dataset": {"case": {"images": [f"case_0000{ending}"], "label": f"case{ending}"}},
        }
        fingerprint = {
            "spacings": [spacing] * CASES,
            "shapes_after_crop": [shape] * CASES,
            "foreground_intensity_properties_per_channel": {"0": {"mean": 1.0, "std": 1.0}},
            "median_relative_size_after_cropping": 1.0,
        }
        for name, file, content in (
            ("nnUNet_raw", "dataset.json", description),
            ("nnUNet_preprocessed", "dataset_fingerprint.json", fingerprint),
        ):
            place = tmp_path / name / "Dataset001_Test"
            place.mkdir(parents=True)
            (place / file).write_text(json.dumps(content))
        return tmp_path / "nnUNet_preprocessed" / "Dataset001_Test" / "nnUNetSegMaFormerPlans.json"

    with nnunet_folders(**{name: tmp_path / name for name in ("nnUNet_raw", "nnUNet_preprocessed")}):
        yield write


def test_plans_for_thick_slices(dataset):
    file = dataset([12, 60, 64], [6.0, 1.0, 1.0])
    returned = nnUNetPlannerSegMaFormer("Dataset001_Test").plan_experiment()
    plans = json.loads(file.read_text())
    assert plans == json.loads(json.dumps(returned))
    assert plans["plans_name"] == "nnUNetSegMaFormerPlans"
    assert list(plans["configurations"]) == ["3d_fullres"]
    configuration = plans["configurations"]["3d_fullres"]
    assert configuration["data_identifier"] == "nnUNetPlans_3d_fullres"
    assert configuration["patch_size"] == [12, 64, 64]
    assert configuration["architecture"]["network_class_name"] == NETWORKS["SegMaFormer"].class_path
    assert configuration["architecture"]["arch_kwargs"]["strides"] == [[1, 4, 4], [2, 2, 2], [1, 2, 2], [1, 1, 1]]
    assert segmaformer_plans(plans, num_classes=3) == plans  # plans of the trainer


@pytest.mark.parametrize(
    "options",
    [{"overwrite_target_spacing": (6.0, 2.0, 2.0)}, {"suppress_transpose": True}, {"preprocessor_name": "Another"}],
)
def test_other_data_than_that_of_stock_plans_has_a_folder_of_its_own(dataset, options):
    dataset([12, 60, 64], [6.0, 1.0, 1.0])
    planner = nnUNetPlannerSegMaFormer("Dataset001_Test", plans_name="Coarse", **options)
    assert planner.generate_data_identifier("3d_fullres") == "Coarse_3d_fullres"


def test_large_volumes_have_lowres_but_no_cascade(dataset):
    file = dataset([100, 100, 100], [1.0, 1.0, 1.0])
    nnUNetPlannerSegMaFormer("Dataset001_Test", gpu_memory_target_in_gb=0.3).plan_experiment()
    configurations = json.loads(file.read_text())["configurations"]
    assert set(configurations) == {"3d_fullres", "3d_lowres"}
    assert configurations["3d_lowres"]["data_identifier"] == "nnUNetSegMaFormerPlans_3d_lowres"
    assert "next_stage" not in configurations["3d_lowres"]


def test_names_reserved_by_nnunet_are_rejected(dataset, tmp_path):
    file = dataset([12, 60, 64], [6.0, 1.0, 1.0])
    description = tmp_path / "nnUNet_raw" / "Dataset001_Test" / "dataset.json"
    description.write_text(description.read_text().replace('"case"', '"case_seg"'))
    with pytest.raises(DataError, match="must not end in _seg: case_seg"):
        nnUNetPlannerSegMaFormer("Dataset001_Test").plan_experiment()
    assert not file.exists()


def test_2d_images_are_rejected_with_a_reference_to_hrmedseg(dataset):
    file = dataset([1, 64, 64], [999.0, 1.0, 1.0])
    with pytest.raises(PlanError, match="-pl nnUNetPlannerHRMedSeg"):
        nnUNetPlannerSegMaFormer("Dataset001_Test").plan_experiment()
    assert not file.exists()


@pytest.mark.parametrize("workers", ["0", "2"])
def test_planning_works_without_workers(dataset, monkeypatch, workers):
    monkeypatch.setenv("nnUNet_n_proc_DA", workers)
    dataset([12, 60, 64], [6.0, 1.0, 1.0])
    plans = nnUNetPlannerSegMaFormer("Dataset001_Test").plan_experiment()
    assert list(plans["configurations"]["3d_fullres"]["patch_size"]) == [12, 64, 64]
    assert os.environ["nnUNet_n_proc_DA"] == workers
