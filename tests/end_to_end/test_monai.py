"""The script of the guide on MONAI's runner, on the CPU and with a small canvas."""

from __future__ import annotations

import json
import os
import re
import sysconfig
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.end_to_end.conftest import TINY
from tests.io.dicom_files import real_image

pytest.importorskip("monai")

pytestmark = pytest.mark.end_to_end

GUIDE = Path(__file__).parents[2] / "docs" / "how-to" / "use-monai.md"
NUMBER, NAME = 73, "Dataset073_Lesions"
SIZE = (64, 80)
# the runner has no options for the device and the canvas
ON_A_SMALL_CPU = f"""
import functools
import json

import nnunetv2.inference.predict_from_raw_data as prediction
import torch
from monai.apps.nnunet import nnunetv2_runner as monai_runner

run, plan = monai_runner.run_cmd, monai_runner.nnUNetV2Runner.plan_experiments


def plan_small(self, *arguments):
    plan(self, *arguments)
    file = f"{{self.nnunet_preprocessed}}/{NAME}/nnUNetHRMedSegPlans.json"
    with open(file) as opened:
        plans = json.load(opened)
    plans["configurations"]["2d"]["patch_size"] = {list(SIZE)}
    with open(file, "w") as opened:
        json.dump(plans, opened)


monai_runner.nnUNetV2Runner.plan_experiments = plan_small
monai_runner.run_cmd = lambda command, **options: run([*command, "-device", "cpu"], **options)
prediction.nnUNetPredictor = functools.partial(prediction.nnUNetPredictor, device=torch.device("cpu"))
"""


def test_script_of_the_guide(nnunet):
    dataset, new = nnunet.raw / NAME, nnunet.folder / "new_images"
    for folder in (dataset / "imagesTr", dataset / "labelsTr", new):
        folder.mkdir(parents=True)
    for case in range(5):
        image = np.roll(real_image(SIZE)[..., 1], 7 * case, axis=1)
        Image.fromarray(image).save(dataset / "imagesTr" / f"case_{case}_0000.png")
        Image.fromarray((image > image.mean()).astype(np.uint8)).save(dataset / "labelsTr" / f"case_{case}.png")
    Image.fromarray(real_image(SIZE)[::-1, :, 1]).save(new / "new_0000.png")
    description = {"channel_names": {"0": "gray"}, "labels": {"background": 0, "nucleus": 1}, "numTraining": 5}
    (dataset / "dataset.json").write_text(json.dumps({**description, "file_ending": ".png"}))

    (script,) = re.findall(r"^```python\n(.*?)^```", GUIDE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    for shown, small in (
        ('"/data"', repr(str(nnunet.folder))),
        ('"dataset_name_or_id": 12', f'"dataset_name_or_id": {NUMBER}'),
        ("Dataset012_Lesions", NAME),
        ("nnUNetTrainerHRMedSeg", "TinyHRMedSeg"),
        ("npfp=2, n_proc=(2,)", "npfp=1, n_proc=(1,)"),
    ):
        assert shown in script
        script = script.replace(shown, small)
    (nnunet.folder / "with_monai.py").write_text(ON_A_SMALL_CPU + script)
    # the runner starts nnUNetv2_train by its name
    path = os.pathsep.join((sysconfig.get_path("scripts"), os.environ["PATH"]))
    nnunet.run("python", nnunet.folder / "with_monai.py", PATH=path, **TINY)

    model = nnunet.model(NUMBER, "TinyHRMedSeg", "nnUNetHRMedSegPlans")
    assert (model / "fold_0" / "checkpoint_final.pth").is_file()
    configuration = json.loads((model / "plans.json").read_text())["configurations"]["2d"]
    assert configuration["architecture"]["network_class_name"] == "nnunet_hrmedseg.architectures.HRMedSeg"
    with Image.open(nnunet.folder / "predictions" / "new.png") as predicted:
        assert predicted.size == SIZE[::-1]
