"""The Python code of the guide runs as shown."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.deployment.tiny_models import blobs

pytestmark = pytest.mark.slow

GUIDE = Path(__file__).parents[2] / "docs" / "how-to" / "predict-from-python.md"


def test_guide_runs(pictures, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(pictures.folder, "photos_onnx")
    trained = tmp_path / "nnUNet_results" / "Dataset001_Photos" / "nnUNetTrainerHRMedSeg__nnUNetPlans__2d"
    shutil.copytree(pictures.model, trained)
    photo = np.moveaxis(blobs(np.random.default_rng(0), (50, 70), 3), 0, -1)
    Path("new_images").mkdir()
    for file in ("photo.png", "new_images/case_0000.png"):
        Image.fromarray(photo).save(file)
    Path("new_images/broken_0000.png").write_bytes(b"no image")

    names: dict = {}
    blocks = re.findall(r"^```python\n(.*?)^```", GUIDE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    for number, block in enumerate(blocks, start=1):
        exec(compile(block, f"<block {number} of {GUIDE.name}>", "exec"), names)

    labels = names["labels"]
    assert labels.shape == (50, 70) and set(np.unique(labels)) == {0, 1, 2}
    assert names["probabilities"].shape == (3, 50, 70)
    assert names["shares"]["bright"] == (labels == 2).mean()
    with Image.open("masks/case.png") as written:
        assert np.array_equal(written, labels)
    assert "broken: " in capsys.readouterr().out
    # the guide's predictor uses one fold of two, and half precision
    assert names["trained_labels"].shape == (1, 50, 70) and (names["trained_labels"][0] == labels).mean() > 0.9
