"""Two users of one group, and a folder that they share. Only root can act as other users."""

import os
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest

ANNA, BEN, GROUP = 47_001, 47_002, 47_000


@contextmanager
def acting_as(user, umask=0o022):
    """Have the rights of a user of the group. Modules must have been imported before."""
    groups, mask = os.getgroups(), os.umask(umask)
    os.setgroups([GROUP])
    os.setegid(user)  # each user has a group of its own, too
    os.seteuid(user)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)
        os.umask(mask)


def share(folder, mode=0o2775, owner=ANNA):
    os.chown(folder, owner, GROUP)
    os.chmod(folder, mode)


@pytest.fixture
def shared_folder():
    """Return a folder that the group may write to; pytest's own folders are closed to other users."""
    if getattr(os, "geteuid", lambda: 1)() != 0:
        pytest.skip("only root can act as other users")
    folder = Path(tempfile.mkdtemp())
    share(folder)
    try:
        with acting_as(BEN):
            if not os.access(folder, os.W_OK | os.X_OK, effective_ids=True):
                pytest.skip(f"other users cannot reach {folder}")
        yield folder
    finally:
        shutil.rmtree(folder)
