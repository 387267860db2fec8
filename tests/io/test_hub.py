"""Names and files on the hub, tested with a local server."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from nnunet_hrmedseg.errors import CheckpointError, PlanError, SetupError
from nnunet_hrmedseg.io.hub import HubName, download, is_on_hub, local_path, upload_folder
from tests.io.hub_server import sha256, use_hub

REPO = "somebody/encoders"
NAME = f"hf://{REPO}/sam/encoder.safetensors"


@pytest.fixture
def quick(monkeypatch):
    """Skip the waiting time between attempts of huggingface_hub."""
    monkeypatch.setattr("time.sleep", lambda seconds: None)


# ---- names ----


@pytest.mark.parametrize(
    "name, parts",
    [
        ("hf://a/b/c.pth", ("a/b", None, "c.pth")),
        ("hf://a/b/c/d.pth", ("a/b", None, "c/d.pth")),
        ("hf://a/b@v1.0/c.pth", ("a/b", "v1.0", "c.pth")),
        ("hf://a-1/b_2.c@refs%2Fpr%2F1/d", ("a-1/b_2.c", "refs/pr/1", "d")),
        ("hf://a/b", ("a/b", None, "")),
        ("hf://a/b@main", ("a/b", "main", "")),
    ],
)
def test_names_are_split_into_parts(name, parts):
    found = HubName.parse(name)
    assert (found.repo, found.revision, found.path) == parts
    assert str(found) == name


def test_trailing_slash_of_a_folder_is_removed():
    assert HubName.parse("hf://a/b/c/").path == "c" and HubName.parse("hf://a/b/").path == ""


@pytest.mark.parametrize(
    "name",
    ["hf://", "hf://a", "hf://a/", "hf://a/b@/c", "hf://a/b@x@y/c", "hf://a/b/../c", "hf://a/b//c", "hf://a b/c/d"],
)
def test_invalid_names_are_rejected(name):
    with pytest.raises(PlanError, match="OWNER/NAME/FILE"):
        HubName.parse(name)


def test_paths_are_not_names(tmp_path):
    assert not is_on_hub(tmp_path) and not is_on_hub("hf.pth") and is_on_hub(NAME)
    assert local_path(tmp_path / "x.pth") == tmp_path / "x.pth"


# ---- download ----


def test_file_is_downloaded_once_and_recorded_with_its_commit(hub):
    commit = hub.commit(REPO, {"sam/encoder.safetensors": b"weights" * 1000})
    copy = download(NAME)
    assert copy.path.read_bytes() == b"weights" * 1000 and copy.path.name == "encoder.safetensors"
    assert copy.name == NAME and copy.commit == commit
    assert copy.pinned == f"hf://{REPO}@{commit}/sam/encoder.safetensors"
    assert local_path(NAME) == copy.path
    assert sum("/large/" in request for request in hub.requests) == 1


def test_branch_follows_the_repository_but_a_commit_does_not(hub):
    first = hub.commit(REPO, {"sam/encoder.safetensors": b"old"})
    old = download(NAME)
    second = hub.commit(REPO, {"sam/encoder.safetensors": b"new"})
    new = download(NAME)
    assert (old.commit, new.commit) == (first, second) and new.path.read_bytes() == b"new"
    count = len(hub.requests)
    assert download(old.pinned).path.read_bytes() == b"old"
    assert len(hub.requests) == count  # cached files need no connection


def test_only_required_files_of_a_folder_are_downloaded(hub):
    files = {"m/a/plans.json": b"{}", "m/a/fold_0/checkpoint_final.pth": b"x", "m/a/model.bin": b"y", "other.json": b""}
    commit = hub.commit(REPO, files)
    copy = download(f"hf://{REPO}/m/a")
    assert copy.commit == commit
    found = {file.relative_to(copy.path).as_posix() for file in copy.path.rglob("*") if file.is_file()}
    assert found == {"plans.json", "fold_0/checkpoint_final.pth"}
    assert (download(f"hf://{REPO}").path / "other.json").is_file()


def test_cache_is_used_without_a_connection(hub, quick):
    commit = hub.commit(REPO, {"sam/encoder.safetensors": b"weights"})
    path = download(NAME).path
    hub.stop()
    assert download(NAME).path == path and download(NAME).commit == commit
    with pytest.raises(SetupError, match="it is not in the cache, and http://127.0.0.1.* cannot be reached"):
        download(f"hf://{REPO}/other.safetensors")
    with pytest.raises(SetupError, match="cannot be reached.*another machine"):
        download("hf://somebody/else/folder")


# ---- what goes wrong ----


@pytest.mark.parametrize(
    "name, message",
    [
        (
            "hf://somebody/else/x.pth",
            "no repository http://127.0.0.1:[0-9]+/somebody/else, or it is private.*auth login",
        ),
        (f"hf://{REPO}@v9/x.pth", "no revision v9"),
        (f"hf://{REPO}/x.pth", "no file x.pth at main.*tree/main"),
        (f"hf://{REPO}/folder", "no folder folder at [0-9a-f]{40}"),
        ("hf://somebody/else/folder", "or it is private"),
    ],
)
def test_missing_repositories_and_files_are_reported(hub, name, message):
    hub.commit(REPO, {"sam/encoder.safetensors": b"weights"})
    with pytest.raises(CheckpointError, match=message) as error:
        download(name)
    assert name in str(error.value)


@pytest.mark.parametrize(
    "denied, kind, message",
    [
        ((403, "GatedRepo"), SetupError, "consent to terms"),
        ((401, "RepoNotFound"), CheckpointError, "private"),
        ((403, ""), SetupError, "denied"),
    ],
)
def test_denied_access_is_reported_with_the_login(hub, denied, kind, message):
    hub.commit(REPO, {"sam/encoder.safetensors": b"weights"})
    hub.denied = denied
    with pytest.raises(kind, match=rf"{message}.*hf auth login"):
        download(NAME)


def test_truncated_download_is_not_kept(hub, quick):
    hub.commit(REPO, {"sam/encoder.safetensors": b"weights" * 1000})
    hub.sent = lambda content: content[:100]
    with pytest.raises(SetupError, match=f"{NAME}: the transfer failed.*repeat the command"):
        download(NAME)
    hub.sent = lambda content: content
    assert download(NAME).path.read_bytes() == b"weights" * 1000


def test_changed_content_of_the_same_size_is_detected(hub):
    content = b"weights" * 1000
    hub.commit(REPO, {"sam/encoder.safetensors": content})
    hub.sent = lambda content: bytes(len(content))
    with pytest.raises(CheckpointError, match=f"cached copy is damaged.*should be {sha256(content)}") as error:
        download(NAME)
    blob = Path(str(error.value).partition("Remove ")[2].partition(" and repeat")[0])
    blob.unlink()
    hub.sent = lambda content: content
    assert download(NAME).path.read_bytes() == content


def test_small_file_is_checked(hub):
    hub.commit(REPO, {"encoder.json": b"{}"})
    copy = download(f"hf://{REPO}/encoder.json")
    copy.path.resolve().write_bytes(b"[]")
    with pytest.raises(CheckpointError, match="cached copy is damaged"):
        download(f"hf://{REPO}/encoder.json")


def test_missing_package_is_reported(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(SetupError, match=r"pip install 'nnunet_hrmedseg\[hub\]'"):
        download(NAME)


# ---- upload ----


def test_folder_is_uploaded_in_one_commit_into_a_new_private_repository(hub, tmp_path):
    (tmp_path / "m" / "fold_0").mkdir(parents=True)
    (tmp_path / "m" / "README.md").write_text("---\nlicense: mit\n---\n")
    (tmp_path / "m" / "fold_0" / "checkpoint_final.pth").write_bytes(b"weights" * 1000)
    name = upload_folder(REPO, tmp_path / "m", "First model")
    ((commit, files),) = hub.commits[REPO]
    assert name == f"hf://{REPO}@{commit}" and hub.private == {REPO} and hub.uploaded == ["First model"]
    assert files["fold_0/checkpoint_final.pth"] == b"weights" * 1000 and files["README.md"].startswith(b"---")
    (tmp_path / "m" / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    second = upload_folder(REPO, tmp_path / "m", "Second model")
    assert len(hub.commits[REPO]) == 2 and second != name
    shutil.rmtree(tmp_path / "m")
    assert (download(second).path / "fold_0" / "checkpoint_final.pth").read_bytes() == b"weights" * 1000


@pytest.mark.parametrize("repo", ["somebody", "somebody/encoders/x", "somebody/encoders@main", "a b/c"])
def test_upload_requires_the_name_of_a_repository(hub, tmp_path, repo):
    with pytest.raises(PlanError, match="OWNER/NAME"):
        upload_folder(repo, tmp_path, "x")
    assert not hub.requests


def test_upload_without_permission_is_reported_with_the_login(hub, tmp_path):
    hub.denied = (403, "")
    with pytest.raises(SetupError, match="access was denied.*hf auth login"):
        upload_folder(REPO, tmp_path, "x")


# ---- variables of users ----


def test_hf_endpoint_and_hf_home_are_used(hub, tmp_path):
    hub.commit(REPO, {"sam/encoder.safetensors": b"weights"})
    code = f"from nnunet_hrmedseg.io.hub import download; print(download({NAME!r}).path)"
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}
    environment.pop("HF_HUB_CACHE", None)
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    path = Path(done.stdout.strip().splitlines()[-1])
    assert path.read_bytes() == b"weights" and path.is_relative_to(tmp_path / "home")


def test_errors_contain_the_endpoint(hub, monkeypatch, quick):
    from huggingface_hub import constants

    hub.stop()
    use_hub(monkeypatch, constants, "http://127.0.0.1:9")
    with pytest.raises(SetupError, match="http://127.0.0.1:9 cannot be reached"):
        download(NAME)
