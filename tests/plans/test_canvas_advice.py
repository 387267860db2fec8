import pytest

from nnunet_hrmedseg.plans.canvas_advice import describe_canvas


@pytest.mark.parametrize(
    ("images", "canvas", "words"),
    [
        ((256, 320), (1024, 1024), "canvas of 512 x 512 would still hold them, with about 25% of the memory and time"),
        ((512, 512), (1024, 1024), "canvas of 512 x 512 would still hold them"),
        ((100, 400), (512, 2048), "canvas of 256 x 1024 would still hold them"),
        ((24, 10), (48, 48), "canvas of 32 x 32 would still hold them, with about 44%"),
        ((500, 504), (1008, 1024), "canvas of 512 x 512 would still hold them"),
        ((1435, 2943), (1024, 1024), "thinner than 23 pixels"),
        ((5000, 1024), (1024, 1024), "thinner than 39 pixels"),
        ((2048, 100), (1024, 1024), "thinner than 16 pixels"),
    ],
)
def test_unsuitable_canvas_is_described_with_advice(images, canvas, words):
    description = describe_canvas(images, canvas, "nnUNetPlannerX")
    assert words in description
    assert description.endswith("set patch_size of the configuration in the plans that -pl nnUNetPlannerX writes.")


@pytest.mark.parametrize(
    ("images", "canvas"),
    [
        ((1024, 1024), (1024, 1024)),
        ((600, 450), (1024, 1024)),
        ((513, 200), (1024, 1024)),  # half the canvas would be lower than the images
        ((2000, 2000), (1024, 1024)),
        ((8, 8), (16, 16)),  # there is no smaller canvas
    ],
)
def test_suitable_canvas_is_described_without_advice(images, canvas):
    description = describe_canvas(images, canvas, "nnUNetPlannerX")
    assert description == (
        f"Images of {images[0]} x {images[1]} pixels (the median) are resized to a canvas of {canvas[0]} x {canvas[1]}."
    )
