import pytest

from nnunet_hrmedseg.plans.canvas_advice import describe_canvas


@pytest.mark.parametrize(
    ("images", "canvas", "words"),
    [
        ((256, 320), (1024, 1024), "One of 512 x 512 would still hold them, in about 25% of the memory and time"),
        ((512, 512), (1024, 1024), "One of 512 x 512 would still hold them"),
        ((100, 400), (512, 2048), "One of 256 x 1024 would still hold them"),
        ((24, 10), (48, 48), "One of 32 x 32 would still hold them, in about 44%"),
        ((500, 504), (1008, 1024), "One of 512 x 512 would still hold them"),
        ((1435, 2943), (1024, 1024), "What is thinner than 23 pixels in them is at risk"),
        ((5000, 1024), (1024, 1024), "What is thinner than 39 pixels in them is at risk"),
        ((2048, 100), (1024, 1024), "What is thinner than 16 pixels"),
    ],
)
def test_a_canvas_of_another_order_is_said_with_what_to_do(images, canvas, words):
    said = describe_canvas(images, canvas)
    assert words in said
    assert said.endswith("How to change it: docs/how-to/choose-a-canvas.md.")


@pytest.mark.parametrize(
    ("images", "canvas"),
    [
        ((1024, 1024), (1024, 1024)),
        ((600, 450), (1024, 1024)),
        ((513, 200), (1024, 1024)),  # half of it would not hold the height
        ((2000, 2000), (1024, 1024)),
        ((8, 8), (16, 16)),  # there is no smaller one
    ],
)
def test_a_canvas_that_suits_is_said_without_advice(images, canvas):
    said = describe_canvas(images, canvas)
    assert said == (
        f"Images of {images[0]} x {images[1]} pixels (the median) are resized to a canvas of {canvas[0]} x {canvas[1]}."
    )
