"""User errors in commands: the message states what is wrong and what to do, and nothing is lost."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from skimage import io

from tests.end_to_end.commands import CPU, FAILURE, NNUNet
from tests.end_to_end.conftest import ONE_EPOCH, PLANS
from tests.end_to_end.datasets import IGNORE, REGIONS, VOLUMES, write_image

pytestmark = pytest.mark.end_to_end

TRAINER = "nnUNetTrainerHRMedSeg"

# ---- the mistakes: each damages a copy of datasets and models, and returns the command that fails ------------------


def unknown_dataset(nnunet: NNUNet) -> tuple:
    return train(77)


def canvas_of_100(nnunet: NNUNet) -> tuple:
    nnunet.edit_plans(REGIONS, PLANS, patch_size=[100, 100])
    return train(REGIONS)


def no_raw_and_no_canvas_data(nnunet: NNUNet) -> tuple:
    shutil.rmtree(nnunet.preprocessed / canvas_folder(nnunet, REGIONS))
    shutil.rmtree(nnunet.raw / nnunet.dataset(REGIONS))
    return train(REGIONS)


def label_that_dataset_json_does_not_list(nnunet: NNUNet) -> tuple:
    file = nnunet.raw / nnunet.dataset(REGIONS) / "labelsTr" / "upper_2.png"
    write_image(np.where(io.imread(file) > 0, 255, 0).astype(np.uint8), file)
    return train(REGIONS)


def nan_in_a_training_image(nnunet: NNUNet) -> tuple:
    put_nan_into(nnunet.raw / nnunet.dataset(IGNORE) / "imagesTr" / "upper_2_0000.tif")
    return train(IGNORE)


def nan_in_an_image_to_predict(nnunet: NNUNet) -> tuple:
    images = nnunet.raw / nnunet.dataset(IGNORE) / "imagesTs"
    put_nan_into(images / "gray_0000.tif")
    return predict(nnunet, IGNORE, images, fold="all")


def color_image_for_a_gray_model(nnunet: NNUNet) -> tuple:
    images = nnunet.folder / "color"
    images.mkdir()
    write_image(np.full((64, 70, 3), 100, np.uint8), images / "new_0000.png")
    return predict(nnunet, REGIONS, images)


def volumetric_configuration(nnunet: NNUNet) -> tuple:
    return train(VOLUMES, "3d_fullres", "nnUNetPlans")


def cascade(nnunet: NNUNet) -> tuple:
    # as nnU-Net plans it for large volumes
    file = nnunet.plans_file(VOLUMES, "nnUNetPlans")
    plans = json.loads(file.read_text())
    plans["configurations"]["3d_lowres"] = {"inherits_from": "3d_fullres"}
    plans["configurations"]["3d_cascade_fullres"] = {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"}
    file.write_text(json.dumps(plans))
    return train(VOLUMES, "3d_cascade_fullres", "nnUNetPlans")


def batch_size_in_quotes(nnunet: NNUNet) -> tuple:
    nnunet.edit_plans(REGIONS, PLANS, batch_size="4")
    return train(REGIONS)


def plans_of_other_channels(nnunet: NNUNet) -> tuple:
    configuration = nnunet.plans(REGIONS, PLANS)["configurations"]["2d"]
    three = {name: configuration[name] * 3 for name in ("normalization_schemes", "use_mask_for_norm")}
    nnunet.edit_plans(REGIONS, PLANS, **three)
    return ("nnUNetv2_preprocess", "-d", REGIONS, "-c", "2d", "-plans_name", PLANS, "-np", 1)


def canvas_edited_after_training(nnunet: NNUNet) -> tuple:
    nnunet.edit_plans(REGIONS, PLANS, patch_size=[32, 32])
    return (*train(REGIONS, trainer=ONE_EPOCH), "--val")


def canvas_edited_between_folds(nnunet: NNUNet) -> tuple:
    nnunet.edit_plans(REGIONS, PLANS, patch_size=[32, 32])
    return train(REGIONS, trainer=ONE_EPOCH, fold=1)


def canvas_edited_in_the_model(nnunet: NNUNet) -> tuple:
    file = nnunet.model(REGIONS, ONE_EPOCH, PLANS) / "plans.json"
    plans = json.loads(file.read_text())
    plans["configurations"]["2d"]["patch_size"] = [32, 32]
    file.write_text(json.dumps(plans))
    return predict(nnunet, REGIONS, nnunet.raw / nnunet.dataset(REGIONS) / "imagesTs")


def weights_of_another_network(nnunet: NNUNet) -> tuple:
    weights = nnunet.model(REGIONS, ONE_EPOCH, PLANS) / "fold_0" / "checkpoint_final.pth"
    return (*train(REGIONS, trainer="nnUNetTrainerHERSeg"), "-pretrained_weights", weights)


def case_named_like_labels(nnunet: NNUNet) -> tuple:
    raw = nnunet.raw / nnunet.dataset(REGIONS)
    label = sorted((raw / "labelsTr").iterdir())[0]
    image = raw / "imagesTr" / f"{label.stem}_0000.png"
    label.rename(label.with_name(f"{label.stem}_seg.png"))
    image.rename(image.with_name(f"{label.stem}_seg_0000.png"))
    return ("nnUNetv2_plan_experiment", "-d", REGIONS, "-pl", "nnUNetPlannerHRMedSeg")


MISTAKES: tuple[Callable[[NNUNet], tuple], ...] = (
    unknown_dataset,
    canvas_of_100,
    no_raw_and_no_canvas_data,
    label_that_dataset_json_does_not_list,
    nan_in_a_training_image,
    nan_in_an_image_to_predict,
    color_image_for_a_gray_model,
    volumetric_configuration,
    cascade,
    batch_size_in_quotes,
    plans_of_other_channels,
    canvas_edited_after_training,
    canvas_edited_between_folds,
    canvas_edited_in_the_model,
    weights_of_another_network,
    case_named_like_labels,
)


def train(
    number: int, configuration: str = "2d", plans: str = PLANS, *, trainer: str = TRAINER, fold: int = 0
) -> tuple:
    return ("nnUNetv2_train", number, configuration, fold, "-p", plans, "-tr", trainer, *CPU)


def predict(nnunet: NNUNet, number: int, images: Path, fold: object = 0) -> tuple:
    model = ("-d", number, "-c", "2d", "-f", fold, "-p", PLANS, "-tr", ONE_EPOCH)
    output = nnunet.folder / "predicted"
    return ("nnUNetv2_predict", *model, "-i", images, "-o", output, "-npp", 1, "-nps", 1, *CPU)


def put_nan_into(file: Path) -> None:
    image = io.imread(file)
    image[20:25, 10:12] = np.nan
    write_image(image, file)


def canvas_folder(nnunet: NNUNet, number: int) -> str:
    """Return the folder of the models' training data relative to nnUNet_preprocessed."""
    plans = json.loads((nnunet.model(number, ONE_EPOCH, PLANS) / "plans.json").read_text())
    return f"{nnunet.dataset(number)}/{plans['configurations']['2d']['data_identifier']}"


# ---- the messages ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stock_plan_of_volumes(nnunet, small_canvas, broken_package) -> str:
    """Run stock planning while this package is broken. Return the output of the command."""
    return nnunet.run("nnUNetv2_plan_experiment", "-d", VOLUMES, **broken_package).output


@pytest.fixture(scope="module")
def failed(nnunet, regions_model, ignore_model, stock_plan_of_volumes, tmp_path_factory):
    """Return mistake -> (copy of nnU-Net's folders, function that waits for the command and returns its output)."""
    outcomes = {}
    # two at a time: most of the time is spent on imports, on one core
    with ThreadPoolExecutor(2) as pool:
        for mistake in MISTAKES:
            copy = nnunet.copy((REGIONS, IGNORE, VOLUMES), tmp_path_factory.mktemp(mistake.__name__))
            future = pool.submit(copy.run, *mistake(copy), expect=FAILURE)
            outcomes[mistake] = (copy, lambda future=future: future.result().output)
        yield outcomes


def assert_reported(output: str, *words: str) -> None:
    lost = [word for word in words if word not in " ".join(output.split())]
    assert not lost, f"{lost} not in:\n{output}"


def test_unknown_dataset_is_reported(failed):
    _, output = failed[unknown_dataset]
    assert_reported(output(), "Could not find a dataset with the ID 77")


def test_canvas_that_is_not_a_multiple_of_16_is_rejected(failed):
    _, output = failed[canvas_of_100]
    assert_reported(output(), "is 100 x 100", "multiples of 16", '"patch_size": [96, 96]')


def test_missing_raw_and_canvas_data_is_reported(nnunet, failed):
    copy, output = failed[no_raw_and_no_canvas_data]
    assert_reported(
        output(),
        str(copy.raw / nnunet.dataset(REGIONS)),
        str(copy.preprocessed / canvas_folder(nnunet, REGIONS)),
        f"nnUNetv2_plan_and_preprocess -d {REGIONS} -c 2d -pl nnUNetPlannerHRMedSeg",
        f"nnUNetv2_preprocess -d {REGIONS} -c 2d -plans_name nnUNetHRMedSegPlans",
    )
    assert (copy.preprocessed / nnunet.dataset(REGIONS) / "gt_segmentations" / "upper_2.png").is_file()


@pytest.mark.parametrize(
    ("mistake", "number", "words"),
    [
        (
            label_that_dataset_json_does_not_list,
            REGIONS,
            ["case 'upper_2'", "label values that dataset.json does not list: 255", "labelsTr/upper_2.png"],
        ),
        (nan_in_a_training_image, IGNORE, ["case 'upper_2'", "10 NaN and 0 infinite values in channel 0"]),
    ],
)
def test_bad_training_case_is_reported_and_canvas_data_is_kept(nnunet, failed, mistake, number, words):
    copy, output = failed[mistake]
    assert_reported(output(), *words)
    folder = canvas_folder(nnunet, number)
    before, after = (files(place.preprocessed / folder) for place in (nnunet, copy))
    assert after == before
    assert not list((copy.preprocessed / folder).parent.glob("*.incomplete*"))


def files(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_nan_in_an_image_to_predict_is_reported(failed):
    copy, output = failed[nan_in_an_image_to_predict]
    assert_reported(output(), "10 NaN and 0 infinite values in channel 0", "gray_0000.tif")
    assert not list((copy.folder / "predicted").glob("*.tif"))


def test_wrong_number_of_channels_to_predict_is_reported(failed):
    copy, output = failed[color_image_for_a_gray_model]
    assert_reported(output(), "the model was trained with 1 channel (microscope), this case has 3", "new_0000.png")
    assert not list((copy.folder / "predicted").glob("*.png"))


def test_3d_configuration_is_rejected(nnunet, failed):
    copy, output = failed[volumetric_configuration]
    assert_reported(output(), "'3d_fullres' is 3D", "HRMedSeg is a 2D network: use the configuration 2d")
    assert not list((copy.results / nnunet.dataset(VOLUMES)).glob("*3d_fullres"))


def test_cascade_is_rejected(nnunet, failed):
    copy, output = failed[cascade]
    assert_reported(output(), "second stage of a cascade", "use the configuration 2d")
    assert not list((copy.results / nnunet.dataset(VOLUMES)).glob("*3d_cascade_fullres"))


@pytest.mark.parametrize(
    ("mistake", "words"),
    [
        (
            batch_size_in_quotes,
            ['"batch_size" of configuration \'2d\' is "4"; it must be a whole number', f"{PLANS}.json"],
        ),
        (plans_of_other_channels, ["has 3 entries, but dataset.json lists 1 channel (microscope)"]),
        (
            canvas_edited_after_training,
            ["checkpoint_final.pth was trained", "64 x 80, now 32 x 32", "configuration of"],
        ),
        (canvas_edited_between_folds, ["fold_0 of", "64 x 80, now 32 x 32", "configuration of their own"]),
        (canvas_edited_in_the_model, ["trained on a canvas of 64 x 80, but patch_size in its plans.json is 32 x 32"]),
        (
            case_named_like_labels,
            ["Names of cases must not end in _seg", "Rename their files in imagesTr and labelsTr"],
        ),
        (weights_of_another_network, ["it is of HRMedSeg with 1 image channel", "of HERSeg with 1 image channel"]),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_invalid_plans_and_weights_change_nothing(nnunet, failed, mistake, words):
    copy, output = failed[mistake]
    assert_reported(output(), *words)
    assert len(output()) < 60_000 and "assert" not in output()
    folder = nnunet.dataset(REGIONS)
    data = [sorted(path.name for path in (place.preprocessed / folder).glob("HRMedSeg_*")) for place in (nnunet, copy)]
    assert data[0] == data[1]
    model = "fold_0/validation/summary.json", "fold_0/checkpoint_final.pth"
    before, after = (
        [(place.model(REGIONS, ONE_EPOCH, PLANS) / name).read_bytes() for name in model] for place in (nnunet, copy)
    )
    assert before == after


# ---- nnU-Net itself while this package is broken ---------------------------------------------------------------------


def test_stock_planning_works_while_this_package_is_broken(nnunet, stock_plan_of_volumes):
    plans = nnunet.plans(VOLUMES, "nnUNetPlans")
    assert plans["experiment_planner_used"] == "ExperimentPlanner"
    assert {"2d", "3d_fullres"} <= plans["configurations"].keys()
