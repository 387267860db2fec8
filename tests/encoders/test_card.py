"""The end of a run on a full disk."""

from __future__ import annotations

import errno

import pytest
import torch

from nnunet_hrmedseg.encoders.card import write_result
from nnunet_hrmedseg.errors import HRMedSegError
from nnunet_hrmedseg.weights import encoder_file


def test_a_full_disk_is_said_and_leaves_nothing_half_written(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(encoder_file, "write_atomically", full)
    message = (
        "encoder.safetensors could not be written .*left on device.*repeat the command: the finished training is kept"
    )
    with pytest.raises(HRMedSegError, match=message):
        write_result(tmp_path, {"encoder.weight": torch.zeros(2)}, {"architecture": {}, "normalization": {}})
    assert not list(tmp_path.iterdir())
