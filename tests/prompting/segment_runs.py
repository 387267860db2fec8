"""`hrmedseg segment` from the command line, and expected results, for several test modules."""

import numpy as np
from PIL import Image

from nnunet_hrmedseg.cli import main
from nnunet_hrmedseg.prompting.networks import load_promptable
from nnunet_hrmedseg.prompting.predictor import Predictor

HEADER = "image,x0,y0,x1,y1,points,class\n"


def segment(networks, image, *options, sam="sam.pth", encoder="student.safetensors"):
    network = ["--encoder", str(networks / encoder), "--sam", str(networks / sam), "-device", "cpu"]
    return main(["segment", str(image), *network, *map(str, options)])


def prompts(folder, *rows):
    (folder.parent / "prompts.csv").write_text(HEADER + "".join(f"{row}\n" for row in rows))
    return folder.parent / "prompts.csv"


def read(file):
    return np.asarray(Image.open(file))


def segment_alone(networks, image, prompt, sam="sam.pth", encoder="student.safetensors", **options):
    """Return mask and score of one prompt from the predictor."""
    predictor = Predictor(load_promptable(networks / encoder, networks / sam))
    predictor.set_image(Image.open(image))
    if prompt.box:
        options["boxes"] = prompt.box
    if prompt.points:
        options |= {"points": [point[:2] for point in prompt.points], "labels": [point[2] for point in prompt.points]}
    found = predictor.predict(**options)
    return found.masks[0], found.scores[0]


def expected(networks, image, given, *files):
    """Return object numbers: each mask is predicted separately and drawn over the previous ones."""
    numbers = np.zeros(read(image).shape[:2], int)
    for number, prompt in enumerate(given, start=1):
        mask, _ = segment_alone(networks, image, prompt, *files)
        assert 0 < mask.sum() < mask.size
        numbers[mask] = number
    return numbers
