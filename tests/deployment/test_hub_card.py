"""A shared model on the hub: its card, the upload, and the download."""

import pytest
import yaml

from nnunet_hrmedseg.cli import main
from nnunet_hrmedseg.deployment.sharing import share_model
from nnunet_hrmedseg.deployment.upload import upload_model
from nnunet_hrmedseg.errors import DataError
from nnunet_hrmedseg.io.hub import download
from tests.teachers.tiny_teachers import write_nnunet

MODEL = "Dataset007_Spots/nnUNetTrainer__nnUNetPlans__2d"
HRMEDSEG = "Dataset007_Spots/nnUNetTrainerHRMedSeg__nnUNetPlans__2d"


@pytest.fixture
def trained(tmp_path, monkeypatch):
    """Write a trained stock model with one fold."""
    monkeypatch.delenv("nnUNet_preprocessed", raising=False)
    write_nnunet(tmp_path / "results" / MODEL)
    return tmp_path / "results" / MODEL


def front_matter(text):
    _, head, body = text.split("---\n", 2)
    assert body.startswith("\n# Dataset007_Spots")
    return yaml.safe_load(head)


@pytest.mark.parametrize(
    "license, expected",
    [
        ("CC BY 4.0", {"license": "cc-by-4.0"}),
        ("Apache-2.0", {"license": "apache-2.0"}),
        ("MIT", {"license": "mit"}),
        ("CC BY-NC-SA 4.0", {"license": "cc-by-nc-sa-4.0"}),
        ('Our: own "terms"', {"license": "other", "license_name": "our-own-terms", "license_link": "LICENSE.txt"}),
        ("Line one\nline two", {"license": "other", "license_name": "see-license.txt", "license_link": "LICENSE.txt"}),
        (None, {"license": "unknown"}),
    ],
)
def test_readme_is_a_model_card_of_the_hub(trained, tmp_path, license, expected):
    shared = share_model(model=trained, output=tmp_path / "shared", **({"license": license} if license else {})).path
    found = front_matter((shared / MODEL / "README.md").read_text())
    assert {name: value for name, value in found.items() if name.startswith("license")} == expected
    assert found["library_name"] == "nnunetv2" and found["pipeline_tag"] == "image-segmentation"
    assert found["tags"] == ["nnunet", "medical-imaging", "plainconvunet"]


def test_networks_of_this_package_are_tagged(tmp_path, monkeypatch):
    monkeypatch.delenv("nnUNet_preprocessed", raising=False)
    write_nnunet(tmp_path / "results" / HRMEDSEG, "HRMedSeg", trainer="nnUNetTrainerHRMedSeg")
    shared = share_model(model=tmp_path / "results" / HRMEDSEG, output=tmp_path / "shared").path
    assert front_matter((shared / HRMEDSEG / "README.md").read_text())["tags"] == [
        "nnunet",
        "medical-imaging",
        "hrmedseg",
    ]


def test_card_can_be_read_by_huggingface_hub(trained, tmp_path):
    repocard = pytest.importorskip("huggingface_hub")
    shared = share_model(model=trained, output=tmp_path / "shared", license="CC BY 4.0").path
    data = repocard.ModelCard((shared / MODEL / "README.md").read_text()).data
    assert data.license == "cc-by-4.0" and data.library_name == "nnunetv2"


def test_folds_of_an_earlier_upload_are_removed(trained, hub):
    write_nnunet(trained, fold=1)
    hub.commit("somebody/spots", {f"{MODEL}/notes.txt": b"x", "Dataset008_Other/fold_0/checkpoint_final.pth": b"x"})
    upload_model(model=trained, repository="somebody/spots")
    assert f"{MODEL}/fold_1/checkpoint_final.pth" in hub.commits["somebody/spots"][-1][1]
    upload_model(model=trained, repository="somebody/spots", folds=[0])
    commits = hub.commits["somebody/spots"]
    assert len(commits) == 3
    assert commits[1][1].keys() - commits[2][1].keys() == {f"{MODEL}/fold_1/checkpoint_final.pth"}


def test_uploaded_files_equal_the_shared_ones(trained, tmp_path, hub):
    name = upload_model(model=trained, repository="somebody/spots", license="CC BY 4.0").name
    shared = share_model(model=trained, output=tmp_path / "shared", license="CC BY 4.0").path
    ((commit, files),) = hub.commits["somebody/spots"]
    assert name == f"hf://somebody/spots@{commit}/{MODEL}"
    expected = {file.relative_to(shared).as_posix() for file in shared.rglob("*") if file.is_file()}
    assert files.keys() == expected | {"README.md"}
    for file in expected - {f"{MODEL}/fold_0/checkpoint_final.pth", f"{MODEL}/model_card.json"}:
        assert files[file] == (shared / file).read_bytes(), file
    readme = files["README.md"].decode()
    assert front_matter(readme)["license"] == "cc-by-4.0"
    assert 'hf download somebody/spots --include "Dataset007_Spots/*" --local-dir $nnUNet_results' in readme
    assert hub.private == {"somebody/spots"}


def test_command_uploads_a_model_that_can_be_downloaded(trained, tmp_path, hub, capsys):
    assert main(["export", str(trained), "--to_hub", "somebody/spots", "--license", "MIT"]) == 0
    out = capsys.readouterr().out
    assert f"Uploaded: hf://somebody/spots@{hub.commits['somebody/spots'][0][0]}/{MODEL}." in out and "private" in out
    assert main(["export", f"hf://somebody/spots/{MODEL}", "--share", str(tmp_path / "again")]) == 0
    again = (tmp_path / "again" / MODEL / "dataset.json").read_text()
    assert again == (download(f"hf://somebody/spots/{MODEL}").path / "dataset.json").read_text()


def test_nothing_is_uploaded_without_permission(trained, hub, capsys):
    hub.denied = (403, "")
    assert main(["export", str(trained), "--to_hub", "somebody/spots"]) == 1
    assert "hf auth login" in capsys.readouterr().err
    assert not hub.commits


def test_model_that_cannot_be_shared_is_not_uploaded(trained, hub):
    with pytest.raises(DataError, match="Nothing was shared"):
        upload_model(model=trained, repository="somebody/spots", license="see /home/somebody/license.txt")
    assert not hub.requests


@pytest.mark.parametrize(
    "options, message",
    [([], "--to_hub OWNER/NAME"), (["--onnx", "x", "--license", "MIT"], "--to_hub OWNER/NAME with it")],
)
def test_missing_options_are_reported(trained, capsys, options, message):
    assert main(["export", str(trained), *options]) == 1
    assert message in capsys.readouterr().err
