"""The commands and the service of docs/how-to/serve-a-model.md."""

from __future__ import annotations

import argparse
import io
import re
import shlex
import shutil
import threading
import urllib.error
import urllib.request
from http.server import ThreadingHTTPServer
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from hrmedseg_onnx import OnnxModel, cli
from tests.deployment.tiny_models import blobs

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs" / "how-to" / "serve-a-model.md").read_text(encoding="utf-8")
CODE = "".join(re.findall(r"```bash\n(.*?)```", GUIDE, re.DOTALL)).replace("\\\n", " ")
COMMANDS = [shlex.split(line) for line in CODE.splitlines()]
BUILDS = [words for words in COMMANDS if words[:2] == ["docker", "build"]]
RUNS = [words for words in COMMANDS if words[:2] == ["docker", "run"]]


def test_images_are_built_from_files_of_the_repository_and_run_by_their_names():
    assert len(BUILDS) == len(RUNS) == 2
    for build, run in zip(BUILDS, RUNS, strict=True):
        *_, context = build
        assert (ROOT / build[build.index("-f") + 1]).is_file() and (ROOT / context).is_dir()
        assert build[build.index("-t") + 1] in run
    for command in COMMANDS:
        if command[0] == "cp" and command[2] != "mine_onnx":
            assert (ROOT / command[2]).is_dir()


def test_options_after_the_name_of_the_image_exist():
    parser = argparse.ArgumentParser()
    cli.add_arguments(parser)
    (words,) = (run[run.index("hrmedseg-onnx") + 1 :] for run in RUNS if "hrmedseg-onnx" in run)
    assert parser.parse_args(words).model == "/model"


def test_folders_in_the_container_are_mounted():
    (run,) = (run for run in RUNS if "hrmedseg-onnx" in run)
    mounted = {value.split(":")[1] for option, value in zip(run, run[1:], strict=False) if option == "-v"}
    workdir = re.search(r"^WORKDIR (/data)$", (ROOT / "serving/docker/Dockerfile").read_text(), re.MULTILINE)[1]
    assert mounted == {"/model", f"{workdir}/images", f"{workdir}/masks"}


def test_tensors_in_the_table_are_those_of_the_config():
    config = (ROOT / "serving" / "triton" / "hrmedseg" / "config.pbtxt").read_text()
    types = {"STRING": "BYTES"}  # Triton's name of the type in requests
    declared = {
        name: types.get(kind, kind) for name, kind in re.findall(r'name: "(\w+)"\n +data_type: TYPE_(\w+)', config)
    }
    assert dict(re.findall(r"\| (?:or )?(?:in|out)put `(\w+)` \| (\w+),", GUIDE)) == declared


@pytest.fixture
def service(pictures, monkeypatch, tmp_path):
    """Yield the address of the guide's service with an exported model."""
    shutil.copytree(pictures.folder, tmp_path / "mine_onnx")
    monkeypatch.chdir(tmp_path)
    (code,) = (block for block in re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL) if "do_POST" in block)
    names = {"__name__": "service"}
    exec(code, names)
    monkeypatch.setattr(names["Segmentation"], "log_message", lambda *arguments: None)
    server = ThreadingHTTPServer(("127.0.0.1", 0), names["Segmentation"])
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.slow
def test_service_returns_the_label_map_of_a_picture(service, pictures):
    image = np.moveaxis(blobs(np.random.default_rng(0), (50, 70), 3), 0, -1)
    content = io.BytesIO()
    PIL.Image.fromarray(image).save(content, "PNG")
    with urllib.request.urlopen(urllib.request.Request(service, data=content.getvalue())) as response:
        labels = np.asarray(PIL.Image.open(io.BytesIO(response.read())))
    np.testing.assert_array_equal(labels, OnnxModel(pictures.folder, threads=1).predict(image).labels)


@pytest.mark.slow
def test_service_rejects_what_is_not_an_image(service):
    with pytest.raises(urllib.error.HTTPError) as raised:
        urllib.request.urlopen(urllib.request.Request(service, data=b"no image"))
    assert raised.value.code == 400
