"""Prompting: parity with models and processors of transformers; sizes, batches, prompts at the border."""

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from nnunet_hrmedseg.errors import DataError
from nnunet_hrmedseg.prompting.networks import HRMedSegSAM, HRMedSegSAM2, load_promptable, load_whole_sam
from nnunet_hrmedseg.prompting.predictor import Predictor
from nnunet_hrmedseg.prompting.prompts import Prompt
from tests.prompting.tiny_sams import (
    SIDE,
    picture,
    sam,
    sam2,
    write_mobile_sam,
    write_sam2,
    write_sam_folder,
    write_sam_pth,
    write_student,
)

BOXES = np.array([[4, 5, 60, 40], [0, 0, 90, 70], [30, 10, 50, 69], [10, 10, 30.5, 30]], np.float32)
POINTS = np.array([[[20, 30], [70, 10]], [[5, 5], [89, 69]], [[40, 40], [0, 0]], [[1, 69], [50, 3]]], np.float32)
LABELS = np.array([[1, 0], [1, 1], [1, 0], [0, 1]], np.float32)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sams")
    write_sam_pth(folder / "sam.pth")
    write_sam_folder(folder / "sam_folder")
    write_mobile_sam(folder / "mobile_sam.pt")
    write_sam2(folder / "sam2")
    write_student(folder / "student.safetensors")
    write_student(folder / "student2.safetensors", "sam2")
    return folder


@pytest.fixture(scope="module")
def student(files):
    return Predictor(HRMedSegSAM(files / "student.safetensors", files / "sam.pth"))


@pytest.fixture(scope="module")
def student2(files):
    return Predictor(HRMedSegSAM2(files / "student2.safetensors", files / "sam2"))


# ---- parity with transformers ----------------------------------------------------------------------------------------


def predict_by_transformers(
    model, processor, image, resized, *, padded, boxes=None, points=None, labels=None, multimask=False
):
    """Return masks (P, M, H, W), scores (P, M) and logits of transformers' model with its processor.

    resized: (H, W) on the canvas. Pillow resizes, as in segment-anything; transformers' resizing differs from it by
    1 of 255 in some pixels.
    """
    original, (height, width) = image.shape[:2], resized
    picture = np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))
    pixels = processor(images=picture, return_tensors="pt")["pixel_values"]
    assert pixels.shape[2:] == (SIDE, SIDE)
    scale = torch.tensor([width / original[1], height / original[0]])
    with torch.no_grad():
        output = model(
            pixel_values=pixels,
            input_boxes=None if boxes is None else torch.tensor(boxes)[None] * scale.repeat(2),
            input_points=None if points is None else torch.tensor(points)[None] * scale,
            input_labels=None if labels is None else torch.tensor(labels)[None].long(),
            multimask_output=multimask,
        )
    padding = ([[height, width]],) if padded else ()
    enlarge = {"pad_size": {"height": SIDE, "width": SIDE}} if padded else {}
    masks = processor.post_process_masks([output.pred_masks[0]], [original], *padding, binarize=False, **enlarge)
    return masks[0], output.iou_scores[0], output.pred_masks[0]


PROMPTS = {
    "boxes": {"boxes": BOXES},
    "points": {"points": POINTS, "labels": LABELS},
    "both": {"boxes": BOXES, "points": POINTS, "labels": LABELS},
}


@pytest.mark.slow
@pytest.mark.parametrize("multimask", [False, True])
@pytest.mark.parametrize("given", PROMPTS.values(), ids=PROMPTS)
@pytest.mark.parametrize("name", ["sam.pth", "sam2"])
def test_complete_sam_gives_the_masks_of_transformers(files, name, given, multimask):
    """This checks image encoder, normalization, padding, prompts, decoder and upsampling."""
    image = picture(70, 90)
    square = {"height": SIDE, "width": SIDE}
    if name == "sam.pth":
        processor = transformers.SamImageProcessor(size={"longest_edge": SIDE}, pad_size=square)
        model, resized = sam(), (50, 64)
    else:
        processor = transformers.Sam2ImageProcessor(size=square)
        model, resized = sam2(files / name), (SIDE, SIDE)
    predictor = Predictor(load_whole_sam(files / name))
    predictor.set_image(image)
    found = predictor.predict(**given, multimask=multimask)
    values, scores, logits = predict_by_transformers(
        model, processor, image, resized, padded=name == "sam.pth", multimask=multimask, **given
    )
    best = scores.argmax(1)
    rows = torch.arange(len(best))
    np.testing.assert_allclose(found.scores, scores[rows, best], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.logits, logits[rows, best], rtol=1e-4, atol=1e-4)
    expected = values[rows, best]
    clear = expected.abs() > 1e-3
    assert clear.float().mean() > 0.99 and found.masks.shape == (4, 70, 90)
    assert (torch.from_numpy(found.masks) == (expected > 0))[clear].all()
    assert 0.02 < found.masks.mean() < 0.98


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sam_folder", "mobile_sam.pt"])
def test_all_formats_of_one_sam_give_the_same_masks(files, student, name):
    other = Predictor(HRMedSegSAM(files / "student.safetensors", files / name))
    for predictor in (student, other):
        predictor.set_image(picture(50, 60))
    a, b = (predictor.predict(BOXES[:1] / 2) for predictor in (student, other))
    assert np.array_equal(a.logits, b.logits) and np.array_equal(a.masks, b.masks)


def test_kind_of_network_follows_from_the_sam(files):
    assert type(load_promptable(files / "student.safetensors", files / "sam_folder")) is HRMedSegSAM
    assert type(load_promptable(files / "student2.safetensors", files / "sam2")) is HRMedSegSAM2


def test_earlier_mask_as_a_prompt(files):
    """Each prompt has its own mask; transformers accepts one mask per image."""
    image = picture(64, 64)
    predictor = Predictor(load_whole_sam(files / "sam.pth"))
    predictor.set_image(image)
    boxes = BOXES[[0, 2]] / 2
    first = predictor.predict(boxes)
    second = predictor.predict(boxes, mask=first.logits)
    assert not np.allclose(first.logits, second.logits)
    for k in range(2):
        with torch.no_grad():
            expected = sam()(
                image_embeddings=predictor._levels[0],
                input_boxes=torch.tensor(boxes[None, k : k + 1]),
                input_masks=torch.tensor(first.logits[None, k : k + 1]),
                multimask_output=False,
            ).pred_masks[0, 0, 0]
        np.testing.assert_allclose(second.logits[k], expected, atol=1e-4)
    assert predictor.predict(mask=first.logits[0]).masks.shape == (1, 64, 64)


# ---- many prompts ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", PROMPTS.values(), ids=PROMPTS)
@pytest.mark.parametrize("name", ["student", "student2"])
def test_many_prompts_equal_single_prompts(request, name, given):
    predictor = request.getfixturevalue(name)
    predictor.set_image(picture(70, 90))
    together = predictor.predict(**given)
    for k in range(4):
        alone = predictor.predict(**{key: values[k] for key, values in given.items()})
        np.testing.assert_allclose(together.logits[k], alone.logits[0], atol=1e-4)
        np.testing.assert_allclose(together.scores[k], alone.scores[0], atol=1e-5)


def test_result_does_not_depend_on_prompts_at_once(student):
    student.set_image(picture(70, 90))
    together = student.predict(BOXES)
    seen = []

    class Counting(Predictor):
        pass

    few = Counting(student.network, prompts_at_once=3)
    decode = few.network.decode
    few.network.decode = lambda levels, **prompts: seen.append(len(prompts["boxes"])) or decode(levels, **prompts)
    try:
        few.set_image(picture(70, 90))
        found = few.predict(BOXES)
    finally:
        del few.network.decode
    assert seen == [3, 1]
    np.testing.assert_allclose(found.logits, together.logits, atol=1e-4)


def test_prompts_of_different_forms_are_combined(student):
    student.set_image(picture(70, 90))
    prompts = [
        Prompt(tuple(BOXES[0].tolist())),
        Prompt(None, ((20.0, 30.0, 1.0),)),
        Prompt(tuple(BOXES[1].tolist())),
        Prompt(tuple(BOXES[2].tolist()), ((40.0, 40.0, 0.0), (5.0, 5.0, 1.0))),
    ]
    found = {number: (mask, score) for number, mask, score in student.predict_prompts(prompts)}
    assert sorted(found) == [0, 1, 2, 3]
    expected = [
        student.predict(BOXES[0]),
        student.predict(points=[[20, 30]], labels=[1]),
        student.predict(BOXES[1]),
        student.predict(BOXES[2], [[40, 40], [5, 5]], [0, 1]),
    ]
    for number, one in enumerate(expected):
        assert (found[number][0] == one.masks[0]).mean() > 0.999
        assert found[number][1] == pytest.approx(one.scores[0], abs=1e-4)


def test_single_point_gives_the_best_of_three_by_default(student):
    student.set_image(picture(70, 90))
    point = {"points": [[20, 30]], "labels": [1]}
    default, best, one = (student.predict(**point, multimask=multimask) for multimask in (None, True, False))
    assert np.array_equal(default.logits, best.logits) and not np.array_equal(default.logits, one.logits)
    boxes = student.predict(BOXES[:1])
    assert np.array_equal(boxes.logits, student.predict(BOXES[:1], multimask=False).logits)


def test_empty_prompts_give_empty_results(student):
    student.set_image(picture(70, 90))
    found = student.predict(boxes=np.zeros((0, 4)))
    assert found.masks.shape == (0, 70, 90) and found.logits.shape == (0, 16, 16) and len(found.scores) == 0
    assert list(student.predict_prompts([])) == []


# ---- images ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(50, 3000), (3000, 50), (4000, 4000), (1, 1), (SIDE, SIDE), (7, 640)])
@pytest.mark.parametrize("name", ["student", "student2"])
def test_masks_have_the_size_of_the_image(request, name, size):
    predictor = request.getfixturevalue(name)
    predictor.set_image(picture(*size))
    height, width = size
    found = predictor.predict([0, 0, width, height])
    assert found.masks.shape == (1, height, width) and np.isfinite(found.logits).all()


def test_gray_rgb_rgba_and_other_types(student):
    gray = picture(70, 90)[..., 0]
    logits = []
    for image in (
        gray,
        gray[..., None],
        np.stack([gray] * 3, -1),
        np.dstack([gray, gray, gray, np.zeros_like(gray)]),
        Image.fromarray(gray),
        Image.fromarray(gray).convert("RGB"),
    ):
        student.set_image(image)
        logits.append(student.predict(BOXES[:1]).logits)
    assert all(np.array_equal(logits[0], other) for other in logits[1:])
    # 16 bits and floats are stretched between their percentiles
    student.set_image(gray.astype(np.uint16) * 7 + 300)
    stretched = student.predict(BOXES[:1]).logits
    student.set_image(gray.astype(np.float32) / 1000 - 3)
    np.testing.assert_allclose(stretched, student.predict(BOXES[:1]).logits, atol=0.05)
    student.set_image(gray > 100)
    assert student.predict(BOXES[:1]).masks.shape == (1, 70, 90)


@pytest.mark.parametrize("mode", ["P", "CMYK", "LA", "YCbCr"])
def test_pillow_images_in_other_modes_keep_their_colors(student, mode):
    image = Image.fromarray(picture(70, 90)).convert(mode)
    found = []
    for each in (image, image.convert("RGB")):
        student.set_image(each)
        found.append(student.predict(BOXES[:1]).logits)
    assert np.array_equal(*found)


def test_points_are_foreground_by_default(student):
    student.set_image(picture(70, 90))
    points = [[20, 30], [40, 40]]
    unsaid, inside, beside = (student.predict(points=points, labels=labels) for labels in (None, [1, 1], [0, 1]))
    assert np.array_equal(unsaid.logits, inside.logits) and not np.array_equal(unsaid.logits, beside.logits)


@pytest.mark.parametrize("shape", [(5,), (3, 20, 20), (20, 20, 2), (4, 20, 20, 3), (0, 5), (2, 20, 20, 20)])
def test_invalid_images_are_rejected(student, shape):
    with pytest.raises(DataError, match=r"The image has the shape.*one\s+slice at a time"):
        student.set_image(np.zeros(shape, np.uint8))


def test_mask_follows_the_image_not_the_padding(files):
    """A wide and a tall image: the padding is below one and beside the other, and is removed from the masks."""
    predictor = Predictor(load_whole_sam(files / "sam.pth"))
    wide = picture(30, 90)
    predictor.set_image(wide)
    logits = torch.zeros(16, 16)
    logits[:, :8], logits[:, 8:] = 10, -10
    left = predictor._at_image_size(logits)
    assert left[:, :40].all() and not left[:, 50:].any()
    predictor.set_image(picture(90, 30))
    assert predictor._at_image_size(logits).all()  # half of the canvas is more than the third with the image


# ---- mistakes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given, message",
    [
        ({"boxes": [0, 0, 91, 70]}, "reaches out of the image, which is 90 pixels wide and 70 high"),
        ({"boxes": [-1, 0, 10, 10]}, "reaches out"),
        ({"boxes": [200, 200, 300, 300]}, "reaches out"),
        ({"boxes": [50, 10, 20, 40]}, "empty or inverted"),
        ({"boxes": [20, 10, 20, 40]}, "empty or inverted"),
        ({"boxes": [0, 0, np.nan, 5]}, "no numbers"),
        ({"boxes": [[1, 2, 3]]}, r"shape \(1, 3\)"),
        ({"boxes": "box"}, "no array of numbers"),
        ({"points": [[95, 5]]}, "outside of the image, which is 90 pixels wide"),
        ({"points": [[5, 5]], "labels": [2]}, "must be 1"),
        ({"points": [[5, 5]], "labels": [1, 1]}, "labels"),
        ({"labels": [1], "boxes": [0, 0, 5, 5]}, "no points"),
        ({"boxes": BOXES, "points": POINTS[:2]}, "different numbers"),
        ({"mask": np.zeros((8, 8))}, "mask have the shape"),
        ({}, "no prompt"),
    ],
    ids=str,
)
def test_invalid_prompts_are_rejected(student, given, message):
    student.set_image(picture(70, 90))
    with pytest.raises(DataError, match=message):
        student.predict(**given)


@pytest.mark.parametrize(
    "prompts, message",
    [
        ({"boxes": [[0.1, 0.1, 0.5, 0.9], [0, 0, 1, 1]]}, "within the first pixel.*Boxes and points are in pixels"),
        ({"boxes": [0, 0, 1, 1]}, "within the first pixel"),
        ({"points": [[0.5, 0.5]]}, "within the first pixel"),
        ({"points": [[[20, 30]], [[40, 40]]], "labels": [[1], [0]]}, "All points .40,40. have label 0"),
    ],
)
def test_normalized_and_empty_prompts_are_rejected(student, prompts, message):
    student.set_image(picture(70, 90))
    with pytest.raises(DataError, match=message):
        student.predict(**prompts)


def test_boxes_outside_by_a_rounding_error_are_clipped(student):
    student.set_image(picture(70, 90))
    rounded, exact = (student.predict([box]) for box in ([-0.3, 0, 90.000054, 70.2], [0, 0, 90, 70]))
    assert np.array_equal(rounded.logits, exact.logits)


def test_boxes_at_the_border_are_accepted(student):
    student.set_image(picture(70, 90))
    found = student.predict([[0, 0, 90, 70], [89, 69, 90, 70], [0, 0, 0.5, 0.5]], None)
    assert found.masks.shape == (3, 70, 90)
    assert student.predict(points=[[[0, 0]], [[90, 70]]]).masks.shape == (2, 70, 90)


def test_predict_requires_an_image(files):
    predictor = Predictor(HRMedSegSAM(files / "student.safetensors", files / "sam.pth"))
    with pytest.raises(DataError, match="call set_image before"):
        predictor.predict([0, 0, 5, 5])
