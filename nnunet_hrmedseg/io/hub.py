"""Files on the Hugging Face Hub, by names such as hf://owner/name@revision/encoder.safetensors.

A name is `hf://OWNER/NAME[@REVISION][/PATH]`: a repository, a branch, tag or commit (default: main; a slash in it is
written %2F), and a file or folder in it. Downloads go through the package huggingface_hub: its cache (HF_HOME), its
login (`hf auth login`, HF_TOKEN), its HF_ENDPOINT and HF_HUB_OFFLINE.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote, unquote

from nnunet_hrmedseg import __version__
from nnunet_hrmedseg.errors import CheckpointError, PlanError, SetupError
from nnunet_hrmedseg.io.extras import import_extra

__all__ = [
    "HubCopy",
    "HubName",
    "PREFIX",
    "download",
    "is_on_hub",
    "local_path",
    "upload_folder",
]

PREFIX = "hf://"
_FORM = "hf://OWNER/NAME/FILE or hf://OWNER/NAME@REVISION/FILE"
_FILES = (".safetensors", ".pth", ".pt", ".ckpt", ".json", ".zip")  # other endings name a folder
_WANTED = (
    "json",
    "safetensors",
    "pth",
    "onnx",
    "md",
    "txt",
)  # in a folder; models are often there in other formats too
_LIBRARY = {"library_name": "nnunet_hrmedseg", "library_version": __version__}


@dataclass(frozen=True)
class HubName:
    """A name on the hub. `revision` is None if none is given; `path` is empty for a whole repository."""

    repo: str
    revision: str | None
    path: str

    @classmethod
    def parse(cls, name: str) -> HubName:
        """Return the parts of a name.

        Raises:
            PlanError: it does not have the form hf://OWNER/NAME[@REVISION][/PATH].
        """
        match = re.fullmatch(r"hf://([\w.-]+/[\w.-]+)(?:@([^/@]+))?(?:/([^\\]*))?", name)
        path = (match[3] or "").rstrip("/") if match else ""
        if match is None or (path and not {"", ".", ".."}.isdisjoint(path.split("/"))):
            raise PlanError(f"{name!r:.300} is not the name of a file on the Hugging Face Hub: write {_FORM}.")
        return cls(match[1], unquote(match[2]) if match[2] else None, path)

    def __str__(self) -> str:
        revision = f"@{quote(self.revision, safe='')}" if self.revision else ""
        return f"{PREFIX}{self.repo}{revision}" + (f"/{self.path}" if self.path else "")


@dataclass(frozen=True)
class HubCopy:
    """The local copy of a file or folder.

    Attributes:
        name: as the user wrote it.
        commit: that the revision stood for when it was downloaded, 40 hexadecimal digits.
        path: in the cache of huggingface_hub.
    """

    name: str
    commit: str
    path: Path

    @property
    def pinned(self) -> str:
        """The name with the commit as its revision, which stands for the same content forever."""
        parts = HubName.parse(self.name)
        return str(HubName(parts.repo, self.commit, parts.path))


def is_on_hub(name: str | os.PathLike) -> bool:
    return str(name).startswith(PREFIX)


def local_path(name: str | os.PathLike) -> Path:
    """Return a path as it is, and the local copy of a name on the hub.

    Raises:
        HRMedSegError: see `download`.
    """
    return download(str(name)).path if is_on_hub(name) else Path(name)


def download(name: str) -> HubCopy:
    """Return the local copy of a file or folder on the hub, downloaded if the cache does not have it.

    A revision that is a commit is taken from the cache without a connection; a branch is, if there is no connection.
    The content of files is compared with the checksum that the hub has of them, wherever the cache records it.

    Raises:
        CheckpointError: there is no such repository, revision or file, or the cached copy is damaged.
        PlanError: the name is not valid.
        SetupError: huggingface_hub is not installed, access is denied, or the transfer failed.
    """
    parts = HubName.parse(name)
    hub = import_extra("huggingface_hub", "hub", name)
    single = PurePosixPath(parts.path).suffix in _FILES
    with _translated(name, parts):
        if single:
            found = Path(hub.hf_hub_download(parts.repo, parts.path, revision=parts.revision, **_LIBRARY))
            snapshot = found.parents[len(PurePosixPath(parts.path).parts) - 1]
        else:
            start = f"{parts.path}/" if parts.path else ""
            patterns = [f"{start}*.{ending}" for ending in _WANTED]
            snapshot = Path(
                hub.snapshot_download(parts.repo, revision=parts.revision, allow_patterns=patterns, **_LIBRARY)
            )
            found = snapshot / parts.path
    if not found.exists():
        raise CheckpointError(f"{name}: the repository {parts.repo} has no folder {parts.path} at {snapshot.name}.")
    for file in [found] if single else found.rglob("*"):
        _check_content(name, file)
    return HubCopy(name, snapshot.name, found)


def upload_folder(repo: str, folder: Path, message: str, outdated: str = "(?!)") -> str:
    """Upload all files of a folder into a repository on the hub. A repository that does not exist is created, private.

    Args:
        repo: OWNER/NAME.
        folder: its content comes to the top of the repository.
        message: of the commit.
        outdated: regular expression of paths in the repository; those that the folder does not have are removed.

    Returns:
        The repository's name with the commit that was made, hf://OWNER/NAME@COMMIT.

    Raises:
        PlanError: the name is not valid.
        SetupError: huggingface_hub is not installed, access is denied, or the transfer failed.
    """
    parts = HubName.parse(PREFIX + repo)
    if parts.path or parts.revision:
        raise PlanError(f"{repo!r:.300} is not a repository on the Hugging Face Hub: write OWNER/NAME.")
    hub = import_extra("huggingface_hub", "hub", str(parts))
    with _translated(str(parts), parts):
        api = hub.HfApi(**_LIBRARY)
        api.create_repo(repo, private=True, exist_ok=True)
        files = sorted(file for file in folder.rglob("*") if file.is_file())
        names = [file.relative_to(folder).as_posix() for file in files]
        added = [hub.CommitOperationAdd(name, file) for name, file in zip(names, files, strict=True)]
        there = _files_in(api, repo)
        removed = [hub.CommitOperationDelete(n) for n in there if re.match(outdated, n) and n not in names]
        # one commit: nobody sees half of it
        commit = api.create_commit(repo, [*added, *removed], commit_message=message)
    return str(HubName(parts.repo, commit.oid, ""))


def _files_in(api: Any, repo: str) -> list[str]:
    """Return the paths of the files in a repository; none where it has no commit yet."""
    from huggingface_hub.errors import RevisionNotFoundError

    try:
        return api.list_repo_files(repo)
    except RevisionNotFoundError:
        return []


@contextmanager
def _translated(name: str, parts: HubName) -> Iterator[None]:
    """Turn exceptions of huggingface_hub into a CheckpointError (nothing of this name) or a SetupError."""
    try:
        yield
    except Exception as error:  # of the network, the disk or the hub, by any of the libraries beneath
        from huggingface_hub import errors

        absent = errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.EntryNotFoundError
        other = errors.GatedRepoError, errors.LocalEntryNotFoundError
        missing = isinstance(error, absent) and not isinstance(error, other)
        kind = CheckpointError if missing else SetupError
        raise kind(f"{name}: {_explanation(error, parts)}") from error


def _explanation(error: Exception, parts: HubName) -> str:
    """Describe what was wrong, and what to do."""
    from huggingface_hub import constants, errors

    page, at = f"{constants.ENDPOINT}/{parts.repo}", parts.revision or "main"
    status = {_status(error), _status(error.__cause__)}
    login = "log in with hf auth login, or set HF_TOKEN"
    if isinstance(error, errors.GatedRepoError):
        return f"the owner asks for consent to terms. Accept them at {page}, then {login}."
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"there is no repository {page}, or it is private. Check the name; for a private one, {login}."
    if isinstance(error, errors.RevisionNotFoundError):
        return f"the repository has no revision {at}. Its branches, tags and commits: {page}/commits."
    if isinstance(error, errors.LocalTokenNotFoundError) or status & {401, 403}:
        return f"access was denied ({_reason(error)}). With an account that may do this, {login}."
    if isinstance(error, errors.LocalEntryNotFoundError):
        return (
            f"it is not in the cache, and {constants.ENDPOINT} cannot be reached ({_reason(error)}). Connect to it, or "
            f"download the file on another machine and give its path."
        )
    if isinstance(error, errors.EntryNotFoundError):
        return (
            f"the repository has no file {parts.path} at {at}. Its files: {page}/tree/{at}. An encoder is two files "
            f"there, NAME.safetensors and NAME.json."
        )
    return f"the transfer failed ({_reason(error)}). No incomplete file is used: repeat the command."


def _status(error: BaseException | None) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)


def _reason(error: BaseException) -> str:
    cause = error.__cause__ if error.__cause__ is not None else error
    return f"{type(cause).__name__}: {' '.join(str(cause).split())[:300]}"


def _check_content(name: str, file: Path) -> None:
    """Compare a cached file with its checksum, which is its name in the cache.

    The checksum is the sha256 of a large file, and git's sha1 of a small one.

    Raises:
        CheckpointError: they differ.
    """
    if not file.is_symlink() or not file.is_file():
        return
    expected, blob = file.resolve().name, file.resolve()
    if re.fullmatch("[0-9a-f]{64}", expected):
        digest = hashlib.sha256()
    elif re.fullmatch("[0-9a-f]{40}", expected):
        digest = hashlib.sha1(f"blob {blob.stat().st_size}\0".encode(), usedforsecurity=False)
    else:
        return
    with open(blob, "rb") as opened:
        while block := opened.read(1 << 20):
            digest.update(block)
    if digest.hexdigest() != expected:
        raise CheckpointError(
            f"{name}: the cached copy is damaged; its checksum is {digest.hexdigest()} and should be {expected}. "
            f"Remove {blob} and repeat the command, which downloads it again."
        )
