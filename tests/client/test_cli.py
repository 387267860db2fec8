"""The command hrmedseg-onnx: exit status and messages."""

from __future__ import annotations

import pytest

from hrmedseg_onnx import cli
from hrmedseg_onnx.errors import CheckpointError
from nnunet_hrmedseg.cli import command as package


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


@pytest.mark.parametrize(
    "options, said",
    [
        ("-i a -i - b", "standard input cannot be combined"),
        ("-i a b --watch", "--watch needs a single folder"),
        ("-i - --watch", "--watch needs a single folder"),
        ("--stream --watch", "--watch needs a single folder"),
        (f"-i {__file__} --watch", "--watch needs a single folder"),
        ("-i a --interval 3", "--interval is for --watch"),
        ("-i a --watch --interval 0", "'0' is not a number above 0"),
        ("-i a --watch --interval nan", "'nan' is not a number above 0"),
        ("-i a --stream", "not allowed with argument"),
        ("--watch", "one of the arguments -i/--input --stream is required"),
        ("-i a --provider gpu", "invalid choice: 'gpu'"),
    ],
)
@pytest.mark.parametrize("main", [cli.main, lambda words: package.main(["predict-onnx", *words])])
def test_options_that_do_not_go_together_are_rejected(main, options, said, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["-o", "b", "-m", "c", *options.split()])
    assert ended.value.code == 2 and said in capsys.readouterr().err
