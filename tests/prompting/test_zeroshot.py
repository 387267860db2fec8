"""`hrmedseg zeroshot`: boxes from the reference, measures, tables."""

import csv
import errno
import importlib.metadata
import json
import re

import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image

from nnunet_hrmedseg.cli import main
from nnunet_hrmedseg.prompting import zeroshot as command
from nnunet_hrmedseg.prompting.boxes import find_boxes, jitter_box
from tests.encoders.tiny_datasets import write_labeled, write_sheared


def zeroshot(networks, dataset, output, *options, sam="sam.pth", encoder="student.safetensors"):
    network = ["--encoder", str(networks / encoder), "--sam", str(networks / sam), "-device", "cpu"]
    return main(["zeroshot", "-d", str(dataset), *network, "-o", str(output), *map(str, options)])


def rows(output):
    return list(csv.DictReader(open(output / "cases.csv")))


class PerfectPredictor:
    """A predictor that fills each box."""

    def __init__(self, network, device, prompts_at_once):
        pass

    def set_image(self, image):
        self.size = image.shape[:2]

    def predict_prompts(self, prompts, multimask):
        for number, prompt in enumerate(prompts):
            mask = np.zeros(self.size, bool)
            x0, y0, x1, y1 = (round(side) for side in prompt.box)
            mask[y0:y1, x0:x1] = True
            yield number, mask, 1.0


# ---- boxes -----------------------------------------------------------------------------------------------------------


def test_boxes_of_objects():
    mask = np.zeros((20, 30), bool)
    mask[2:5, 3:9] = mask[5, 9] = True  # touching at a corner
    mask[19, 29] = True
    assert find_boxes(mask, "component") == [(3, 2, 10, 6), (29, 19, 30, 20)]
    assert find_boxes(mask, "class") == [(3, 2, 30, 20)]
    assert find_boxes(np.zeros((4, 4), bool), "class") == find_boxes(np.zeros((4, 4), bool), "component") == []


@pytest.mark.parametrize("jitter", [0.3, 1, 7.5, 100])
def test_jitter_moves_boxes_within_limits(jitter):
    random = np.random.default_rng(0)
    box, size = (5.0, 4.0, 15.0, 8.0), (20, 30)
    assert jitter_box(box, size, 0, random) == box
    reach = (3, 1.2, 3, 1.2) if jitter < 1 else (jitter,) * 4
    for _ in range(200):
        moved = x0, y0, x1, y1 = jitter_box(box, size, jitter, random)
        assert 0 <= x0 < x1 <= 30 and 0 <= y0 < y1 <= 20 and moved != box
        if jitter <= 1:
            assert all(abs(a - b) <= r for a, b, r in zip(moved, box, reach, strict=True))


# ---- the command -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("files", [("sam.pth", "student.safetensors"), ("sam2", "student2.safetensors")])
def test_student_and_teacher_are_compared(networks, tmp_path, capsys, files):
    sam, encoder = files
    dataset = write_labeled(tmp_path / "Dataset001_Discs", 3, num_classes=3)
    assert zeroshot(networks, dataset, tmp_path / "out", "--teacher", sam=sam, encoder=encoder) == 0
    found = rows(tmp_path / "out")
    student = "HRMedSegSAM" if sam == "sam.pth" else "HRMedSegSAM2"
    assert {row["network"] for row in found} == {student, f"whole {sam}"}
    assert len(found) == 2 * sum(
        len(np.unique(np.asarray(Image.open(f)))) - 1 for f in (dataset / "labelsTr").iterdir()
    )
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["cases"] == 3 and summary["boxes"] == "component" and summary["unit"] == "px"
    of_student = [row for row in found if row["network"] == student]
    for name in ("class_1", "class_2"):
        mean = np.mean([float(row["Dice"]) for row in of_student if row["class"] == name])
        assert summary["means"][student][name]["Dice"] == pytest.approx(mean, abs=1e-5)
    printed = capsys.readouterr().out
    assert re.search(rf"{student} +mean +3 +0\.\d{{4}} +0\.\d{{4}} +[0-9.]+", printed) and "HD95 (px)" in printed
    assert "HD (px)" in printed and "SliceDice" not in printed
    assert summary["surface_library"] == f"MONAI {importlib.metadata.version('monai')}"


def test_measures_are_correct(networks, tmp_path, monkeypatch):
    """Filled boxes of discs contain the whole reference."""
    monkeypatch.setattr(command, "Predictor", PerfectPredictor)
    dataset = write_labeled(tmp_path / "Dataset001_Discs", 2)
    assert zeroshot(networks, dataset, tmp_path / "out") == 0
    for row in rows(tmp_path / "out"):
        truth = np.asarray(Image.open(dataset / "labelsTr" / f"{row['case']}.png")) == 1
        filled = np.zeros_like(truth)
        for x0, y0, x1, y1 in find_boxes(truth, "component"):
            filled[int(y0) : int(y1), int(x0) : int(x1)] = True
        assert float(row["Dice"]) == pytest.approx(2 * truth.sum() / (truth.sum() + filled.sum()), abs=1e-5)
        assert float(row["IoU"]) == pytest.approx(truth.sum() / filled.sum(), abs=1e-5)
        assert 0 < float(row["HD95"]) <= float(row["HD"]) < 10 and row["boxes"] == "1"
        assert row["SliceDice"] == ""


def test_ignored_pixels_do_not_count(networks, tmp_path, monkeypatch):
    monkeypatch.setattr(command, "Predictor", PerfectPredictor)
    label = np.zeros((40, 56), np.uint8)
    label[10:20, 10:20] = 1
    label[10:20, 15:20] = 2  # ignored, and in no box
    label[30, 30] = 1
    dataset = write_labeled(tmp_path / "Dataset001_Discs", 1, ignore=True)
    Image.fromarray(label).save(dataset / "labelsTr" / "case_00.png")
    assert zeroshot(networks, dataset, tmp_path / "out", "--boxes", "component") == 0
    (row,) = rows(tmp_path / "out")
    assert row["boxes"] == "2" and float(row["Dice"]) == 1 and float(row["HD95"]) == 0


def test_regions_and_one_box_for_a_class(networks, tmp_path, monkeypatch):
    monkeypatch.setattr(command, "Predictor", PerfectPredictor)
    dataset = write_labeled(tmp_path / "Dataset001_Discs", 2, num_classes=3, regions=True)
    assert zeroshot(networks, dataset, tmp_path / "out", "--boxes", "class") == 0
    found = rows(tmp_path / "out")
    assert {row["class"] for row in found} == {"class_1", "class_2"} and {row["boxes"] for row in found} == {"1"}


def test_volume_is_segmented_slice_by_slice(networks, tmp_path, monkeypatch):
    images = []

    class Recording(PerfectPredictor):
        def set_image(self, image):
            images.append(image)
            super().set_image(image)

    monkeypatch.setattr(command, "Predictor", Recording)
    dataset = tmp_path / "Dataset001_Volumes"
    for part in ("imagesTr", "labelsTr"):
        (dataset / part).mkdir(parents=True)
    label = np.zeros((4, 20, 30), np.uint8)
    label[1, 3:9, 4:12] = label[2, 5:9, 4:12] = 1
    volume = np.random.default_rng(0).normal(size=label.shape).astype(np.float32)
    for array, file in (
        (volume, "imagesTr/a_0000.nii.gz"),
        (label, "labelsTr/a.nii.gz"),
    ):
        image = sitk.GetImageFromArray(array)
        image.SetSpacing((0.5, 0.5, 3.0))
        sitk.WriteImage(image, str(dataset / file))
    description = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "organ": 1}, "numTraining": 1}
    (dataset / "dataset.json").write_text(json.dumps({**description, "file_ending": ".nii.gz"}))
    assert zeroshot(networks, dataset, tmp_path / "out") == 0
    (row,) = rows(tmp_path / "out")
    assert row["boxes"] == "2" and float(row["Dice"]) == 1 and float(row["HD95"]) == float(row["HD"]) == 0
    assert float(row["SliceDice"]) == 1
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["unit"] == "mm"
    assert len(images) == 2
    for image, of_slice in zip(images, volume[1:3], strict=True):
        assert np.corrcoef(image.ravel(), of_slice.ravel())[0, 1] > 0.99


def test_jitter_is_the_same_for_the_same_seed_and_for_the_teacher(networks, tmp_path, monkeypatch):
    boxes = []

    class Recording(PerfectPredictor):
        def predict_prompts(self, prompts, multimask):
            boxes.append([prompt.box for prompt in prompts])
            return super().predict_prompts(prompts, multimask)

    monkeypatch.setattr(command, "Predictor", Recording)
    dataset = write_labeled(tmp_path / "Dataset001_Discs", 2)
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        assert zeroshot(networks, dataset, tmp_path / name, "--jitter", "3", "--seed", seed, "--teacher") == 0
    a, b, c = boxes[:4], boxes[4:8], boxes[8:]
    assert a == b and a[0] == a[1] and a[0] != a[2] and a[0] != c[0]


def test_test_cases_and_a_maximum_number_of_cases(networks, tmp_path, monkeypatch):
    monkeypatch.setattr(command, "Predictor", PerfectPredictor)
    monkeypatch.setenv("nnUNet_raw", str(tmp_path))
    dataset = write_labeled(tmp_path / "Dataset001_Discs", 5)
    assert zeroshot(networks, "1", tmp_path / "few", "--limit", "2") == 0
    assert {row["case"] for row in rows(tmp_path / "few")} == {"case_00", "case_04"}
    (dataset / "imagesTr").rename(dataset / "imagesTs")
    (dataset / "labelsTr").rename(dataset / "labelsTs")
    assert zeroshot(networks, "Dataset001_Discs", tmp_path / "test", "--test") == 0
    assert len(rows(tmp_path / "test")) == 5


def test_surface_measures_are_empty_without_monai(networks, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "Predictor", PerfectPredictor)
    monkeypatch.setattr(command, "surface_measures_available", lambda: False)
    dataset = write_labeled(tmp_path / "Dataset001_Discs", 1)
    assert zeroshot(networks, dataset, tmp_path / "out") == 0
    (row,) = rows(tmp_path / "out")
    assert row["HD95"] == row["HD"] == "" and "HD95 and HD are left out" in capsys.readouterr().out
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["surface_library"] is None


# ---- mistakes --------------------------------------------------------------------------------------------------------


def test_invalid_inputs_are_reported(networks, tmp_path, capsys):
    dataset = write_labeled(tmp_path / "Dataset001_Discs", 2)

    def error(*options, of=dataset, **files):
        assert zeroshot(networks, of, tmp_path / "out", *options, **files) == 1
        assert not (tmp_path / "out" / "cases.csv").exists()
        return capsys.readouterr().err

    assert "does not exist" in error(of=tmp_path / "nowhere")
    assert "has no labeled cases in labelsTs" in error("--test")
    assert "There is no SAM at" in error(sam="nowhere.pth")
    assert "There is no encoder file" in error(encoder="nowhere.safetensors")
    Image.fromarray(np.ones((40, 50), np.uint8)).save(dataset / "labelsTr" / "case_01.png")
    assert "Case case_01: its image is 40 x 56, its label 40 x 50 pixels in size." in error()
    (dataset / "labelsTr" / "case_01.png").unlink()
    assert "without image or label: case_01" in error()
    write_labeled(dataset, 2)
    for file in (dataset / "labelsTr").iterdir():
        Image.fromarray(np.zeros((40, 56), np.uint8)).save(file)
    assert "no foreground in the labels" in error()
    (dataset / "dataset.json").write_text("{}")
    assert "is not an nnU-Net raw dataset" in error()


def test_unused_files_are_reported(networks, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "Predictor", PerfectPredictor)
    dataset = write_labeled(tmp_path / "Dataset001_Discs", 2)
    for name in ("imagesTr/._case_00_0000.png", "labelsTr/case_07.png", "imagesTr/case_05_0000.jpg"):
        (dataset / name).touch()
    assert zeroshot(networks, dataset, tmp_path / "out") == 0
    printed = capsys.readouterr().out
    assert f"Skipped in {dataset / 'imagesTr'}: ._case_00_0000.png, case_05_0000.jpg.\n" in printed
    assert f"Skipped in {dataset / 'labelsTr'}: case_07.png.\n" in printed
    for part in ("images", "labels"):
        (dataset / f"{part}Tr").rename(dataset / f"{part}Ts")
    (dataset / "labelsTs" / "case_07.png").unlink()
    (dataset / "labelsTs" / "._case_01.png").touch()
    assert zeroshot(networks, dataset, tmp_path / "test", "--test") == 0
    assert f"Skipped in {dataset / 'labelsTs'}: ._case_01.png.\n" in capsys.readouterr().out
    assert {row["case"] for row in rows(tmp_path / "test")} == {"case_00", "case_01"}


def test_volumes_that_simpleitk_rejects_are_read(networks, tmp_path, monkeypatch):
    """Nibabel reads them and their labels, as in nnU-Net."""
    monkeypatch.setattr(command, "Predictor", PerfectPredictor)
    dataset = write_sheared(tmp_path / "Dataset001_Sheared")
    assert zeroshot(networks, dataset, tmp_path / "out") == 0
    (found,) = rows(tmp_path / "out")
    assert float(found["Dice"]) == 1  # the object is a box, which PerfectPredictor fills


def test_output_folder_is_checked_first(tmp_path, capsys):
    (tmp_path / "out").touch()
    assert zeroshot(tmp_path, "Dataset999_None", tmp_path / "out") == 1
    assert "out is a file; a folder is needed" in capsys.readouterr().err


def test_results_are_not_replaced(networks, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "Predictor", PerfectPredictor)
    dataset = write_labeled(tmp_path / "Dataset001_Discs", 1)
    assert zeroshot(networks, dataset, tmp_path / "out") == 0
    assert zeroshot(networks, dataset, tmp_path / "out") == 1
    assert "exists already. Give -o another folder" in capsys.readouterr().err


def test_measures_are_printed_if_they_cannot_be_written(networks, tmp_path, monkeypatch, capsys):
    def full(file, content):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(command, "Predictor", PerfectPredictor)
    monkeypatch.setattr(command, "write_atomically", full)
    write_labeled(tmp_path / "Dataset001_A", 1)
    assert zeroshot(networks, tmp_path / "Dataset001_A", tmp_path / "run") == 1
    captured = capsys.readouterr()
    assert re.search(r"^HRMedSegSAM +mean +1 +0\.\d+", captured.out, re.MULTILINE)
    assert "cases.csv could not be written" in captured.err
