"""The command hrmedseg-onnx: exit status and messages."""

from __future__ import annotations

import pytest

from hrmedseg_onnx import cli
from hrmedseg_onnx.errors import CheckpointError


def _main(monkeypatch, effect) -> int:
    def run(args, model):
        if isinstance(effect, BaseException):
            raise effect
        return effect

    monkeypatch.setattr(cli, "run", run)
    return cli.main(["-i", "a", "-o", "b", "-m", "c"])


@pytest.mark.parametrize(
    "effect, status, message",
    [
        (0, 0, ""),
        (1, 1, ""),
        (CheckpointError("It is damaged."), 1, "hrmedseg-onnx: It is damaged.\n"),
        (PermissionError(13, "Permission denied", "/m"), 1, "Permit writing there"),
        (KeyboardInterrupt(), 130, "Finished label maps are kept"),
    ],
)
def test_exit_status(monkeypatch, capsys, effect, status, message):
    assert _main(monkeypatch, effect) == status
    assert message in capsys.readouterr().err


def test_other_errors_keep_their_traceback(monkeypatch):
    with pytest.raises(ZeroDivisionError):
        _main(monkeypatch, ZeroDivisionError())


@pytest.mark.parametrize("options", [["-f", "first"], ["--threads", "0"], ["--threads", "many"]])
def test_wrong_numbers_are_rejected(options, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["-i", "a", "-o", "b", "-m", "c", *options])
    assert ended.value.code == 2 and options[0] in capsys.readouterr().err
