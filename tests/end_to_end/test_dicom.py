"""From DICOM radiographs and masks to a trained model, and from new radiographs to DICOM SEG."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.end_to_end.conftest import ONE_EPOCH, PLANS
from tests.end_to_end.datasets import dice

pydicom = pytest.importorskip("pydicom")
pytest.importorskip("highdicom")

from nnunet_hrmedseg.io.dicom_seg import read_label_map  # noqa: E402
from tests.io.dicom_files import radiograph  # noqa: E402

pytestmark = pytest.mark.end_to_end

NUMBER = 71
CANVAS = [64, 64]


def disc(rng: np.random.Generator, side: int = 90) -> tuple[np.ndarray, np.ndarray]:
    """Return a 12-bit radiograph of a bright disc and its mask."""
    rows, columns = np.mgrid[:side, :side]
    center, radius = rng.integers(30, 60, 2), rng.integers(12, 25)
    mask = (rows - center[0]) ** 2 + (columns - center[1]) ** 2 < radius**2
    pixels = np.where(mask, 2800, 800) + rng.normal(0, 150, (side, side))
    return pixels.clip(0, 4095).astype(np.uint16), mask


@pytest.fixture(scope="module")
def predicted(nnunet, tmp_path_factory) -> tuple[Path, dict[str, np.ndarray]]:
    """Return the folder with out (nnU-Net's predictions) and onnx_out (those of the exported model), and the masks."""
    folder, rng = tmp_path_factory.mktemp("dicom"), np.random.default_rng(0)
    for part in ("images", "masks", "new"):
        (folder / part).mkdir()
    for index in range(6):
        pixels, mask = disc(rng)
        radiograph(folder / "images" / f"chest_{index}.dcm", pixels, BitsStored=12, HighBit=11)
        Image.fromarray(255 * mask.astype(np.uint8)).save(folder / "masks" / f"chest_{index}.png")
    truth = {}
    for name, photometric in (("plain", "MONOCHROME2"), ("inverted", "MONOCHROME1")):
        pixels, truth[name] = disc(rng)
        stored = pixels if photometric == "MONOCHROME2" else (4095 - pixels).astype(np.uint16)
        file = folder / "new" / f"{name}_0000.dcm"
        radiograph(file, stored, BitsStored=12, HighBit=11, PhotometricInterpretation=photometric)
    nnunet.run("hrmedseg", "dataset", folder / "images", folder / "masks", "-d", NUMBER, "-n", "Discs")
    nnunet.run("nnUNetv2_plan_and_preprocess", "-d", NUMBER, "-pl", "nnUNetPlannerHRMedSeg", "-npfp", 1, "--no_pp")
    nnunet.edit_plans(NUMBER, PLANS, patch_size=CANVAS)
    nnunet.run("nnUNetv2_train", NUMBER, "2d", "all", "-p", PLANS, "-tr", ONE_EPOCH, "-device", "cpu")
    model = ("-d", NUMBER, "-c", "2d", "-f", "all", "-tr", ONE_EPOCH, "-p", PLANS, "-device", "cpu")
    nnunet.run("nnUNetv2_predict", "-i", folder / "new", "-o", folder / "out", *model, "-npp", 1, "-nps", 1)
    trained = nnunet.model(NUMBER, ONE_EPOCH, PLANS)
    nnunet.run("hrmedseg", "export", trained, "-f", "all", "--onnx", folder / "onnx")
    # as scanners name files
    for name in truth:
        (folder / "study" / name).mkdir(parents=True)
        shutil.copy(folder / "new" / f"{name}_0000.dcm", folder / "study" / name / "IM1")
    options = ("-i", folder / "study", "-o", folder / "onnx_out", "-m", folder / "onnx", "--threads", 1)
    nnunet.run("hrmedseg", "predict-onnx", *options, "--dicom_seg")
    return folder, truth


def test_dataset_keeps_the_files(nnunet, predicted):
    folder = nnunet.raw / nnunet.dataset(NUMBER)
    description = json.loads((folder / "dataset.json").read_text())
    assert description["file_ending"] == ".dcm" and description["overwrite_image_reader_writer"] == "HRMedSegDicomIO"
    assert pydicom.dcmread(folder / "imagesTr" / "chest_0_0000.dcm").PatientID == "P1"
    assert pydicom.dcmread(folder / "labelsTr" / "chest_0.dcm").Modality == "SEG"


@pytest.mark.parametrize("case", ["plain", "inverted"])
@pytest.mark.parametrize("file", ["out/{}.dcm", "onnx_out/{}_IM1.dcm"])
def test_predictions_are_segmentations_of_the_radiographs(predicted, case, file):
    folder, truth = predicted
    made, source = pydicom.dcmread(folder / file.format(case)), pydicom.dcmread(folder / "new" / f"{case}_0000.dcm")
    assert made.Modality == "SEG" and made.PatientID == "P1"
    assert made.ReferencedSeriesSequence[0].SeriesInstanceUID == source.SeriesInstanceUID
    assert dice(read_label_map(folder / file.format(case))[0] > 0, truth[case]) > 0.7


@pytest.mark.parametrize("case", ["plain", "inverted"])
def test_exported_model_agrees_with_nnunet(predicted, case):
    folder, _ = predicted
    ours, theirs = (read_label_map(folder / file) for file in (f"onnx_out/{case}_IM1.dcm", f"out/{case}.dcm"))
    assert (ours != theirs).mean() < 0.01


def test_postprocessing_keeps_the_segmentations(nnunet, predicted, tmp_path):
    """The images of the predictions are not in the folder that the commands read."""
    validated = tmp_path / "validation"
    shutil.copytree(nnunet.model(NUMBER, ONE_EPOCH, PLANS) / "fold_all" / "validation", validated)
    described = nnunet.preprocessed / nnunet.dataset(NUMBER)
    model = ("-plans_json", described / f"{PLANS}.json", "-dataset_json", described / "dataset.json", "-np", 1)
    nnunet.run("nnUNetv2_determine_postprocessing", "-i", validated, "-ref", described / "gt_segmentations", *model)
    assert pydicom.dcmread(validated / "postprocessed" / "chest_0.dcm").Modality == "SEG"
    folder, _ = predicted
    steps = ("-pp_pkl_file", validated / "postprocessing.pkl", "-np", 1)
    nnunet.run("nnUNetv2_apply_postprocessing", "-i", folder / "out", "-o", tmp_path / "out", *steps)
    before, after = (pydicom.dcmread(place / "out" / "plain.dcm") for place in (folder, tmp_path))
    assert after.PatientID == before.PatientID and after.ReferencedSeriesSequence == before.ReferencedSeriesSequence
    assert [segment.SegmentLabel for segment in after.SegmentSequence] == [
        segment.SegmentLabel for segment in before.SegmentSequence
    ]


def test_validation_finds_raw_data_that_was_moved(nnunet, predicted, tmp_path):
    """Without raw data, it writes secondary captures."""
    moved, name = nnunet.copy([NUMBER], tmp_path), nnunet.dataset(NUMBER)
    validate = ("nnUNetv2_train", NUMBER, "2d", "all", "-p", PLANS, "-tr", ONE_EPOCH, "-device", "cpu", "--val")
    written = moved.model(NUMBER, ONE_EPOCH, PLANS) / "fold_all" / "validation" / "chest_0.dcm"
    (nnunet.raw / name).rename(tmp_path / name)
    try:
        moved.run(*validate)
        assert pydicom.dcmread(written).Modality == "SEG"
        assert pydicom.dcmread(written).PatientID == "P1"
        shutil.rmtree(moved.raw / name)
        output = moved.run(*validate).output
    finally:
        (tmp_path / name).rename(nnunet.raw / name)
    assert "chest_0_0000.dcm was not found" in output
    assert pydicom.dcmread(written).Modality == "OT"
