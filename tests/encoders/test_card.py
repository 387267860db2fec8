"""Writing the result of a run to a full disk."""

from __future__ import annotations

import errno

import pytest
import torch

from nnunet_hrmedseg.encoders.card import write_result
from nnunet_hrmedseg.errors import SetupError
from nnunet_hrmedseg.weights import encoder_file


def test_full_disk_is_reported_and_leaves_no_partial_files(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(encoder_file, "write_atomically", full)
    message = (
        "encoder.safetensors could not be written .*left on device.*repeat the command: the finished training is kept"
    )
    with pytest.raises(SetupError, match=message):
        write_result(tmp_path, {"encoder.weight": torch.zeros(2)}, {"architecture": {}, "normalization": {}})
    assert not list(tmp_path.iterdir())
