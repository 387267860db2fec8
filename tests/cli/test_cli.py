"""Behavior common to all commands: help, ctrl-C, closed pipes, disk errors, exit statuses."""

from __future__ import annotations

import argparse
import errno
import os
import subprocess
import sys

import pytest

from nnunet_hrmedseg.cli import command as cli
from nnunet_hrmedseg.errors import HRMedSegError

LEAST = {
    "doctor": "",
    "link": "",
    "demo": "",
    "dataset": "I M -d 1 -n N",
    "convert": "I -d 1 -o O",
    "objects": "-i I -o O",
    "encoder": "import E -o O",
    "distill": "--teacher T --images I -o O",
    "pretrain": "-d 1 -o O",
    "benchmark": "",
    "compare": "-d 1",
    "segment": "I",
    "zeroshot": "-d 1",
    "export": "M",
    "predict-onnx": "-i I -o O -m M",
}
"""Command -> the fewest arguments that its parser takes."""


def _sub_parsers() -> dict[str, argparse.ArgumentParser]:
    parser = cli.build_parser()
    (commands,) = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return dict(commands.choices)


def _run(monkeypatch, command: str, raised: BaseException) -> int:
    def run(args):
        raise raised

    monkeypatch.setattr(cli.COMMANDS[command], "run", run)
    return cli.main([command, *LEAST[command].split()])


# ---- help ------------------------------------------------------------------------------------------------------------


def test_list_of_commands_is_complete():
    assert set(_sub_parsers()) == set(cli.COMMANDS) == set(LEAST)


@pytest.mark.parametrize("command", LEAST)
def test_help_describes_a_command_and_its_required_arguments(command):
    parser = _sub_parsers()[command]
    description = parser.description
    assert description and description.endswith(".") and description[0].isupper()
    required = [action for action in parser._actions if action.required]
    assert ("Required: " in description) is not ("othing is required" in description)
    for action in required:
        names = action.option_strings or [action.metavar]
        assert any(name in description.partition("Required: ")[2] for name in names), names


@pytest.mark.parametrize("command", LEAST)
def test_help_describes_every_option_and_its_default(command):
    for action in _sub_parsers()[command]._actions:
        text = action.help or ""
        assert len(text.partition("[")[0].split()) > 1, action.option_strings  # a description before the default
        if action.default not in (None, False, True, [], argparse.SUPPRESS):
            assert "[default" in text, action.option_strings
        assert "best there is" not in text


# ---- ctrl-C ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", LEAST)
def test_ctrl_c_prints_one_line(command, monkeypatch, capsys):
    assert _run(monkeypatch, command, KeyboardInterrupt()) == 130
    printed = capsys.readouterr().err
    assert printed.startswith(f"hrmedseg {command}: interrupted.") and printed.count("\n") == 1
    assert printed.rstrip() == printed.removesuffix("\n")


def test_ctrl_c_starts_a_new_line_after_a_progress_bar(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert _run(monkeypatch, "doctor", KeyboardInterrupt()) == 130
    assert capsys.readouterr().err == "\nhrmedseg doctor: interrupted.\n"


# ---- closed pipes ----------------------------------------------------------------------------------------------------


def _into_a_closed_pipe(code: str, *arguments: str, unbuffered: str = "") -> tuple[int, str]:
    """Run Python code whose standard output is closed; return exit status and standard error."""
    reader, writer = os.pipe()
    os.close(reader)
    process = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
    )
    os.close(writer)
    return process.returncode, process.stderr


MAIN = "import sys; from nnunet_hrmedseg.cli import main; sys.exit(main(sys.argv[1:]))"
PRINTING = """
import sys
from nnunet_hrmedseg.cli import command as cli
for command in cli.COMMANDS.values():
    command.run = lambda args: {}
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.mark.parametrize("arguments", ["--help", "--version", "compare --help"])
def test_help_into_a_closed_pipe_ends_quietly(arguments):
    assert _into_a_closed_pipe(MAIN, *arguments.split()) == (141, "")


@pytest.mark.parametrize("flush, unbuffered", [(True, ""), (False, ""), (False, "1")])
def test_command_into_a_closed_pipe_ends_quietly(flush, unbuffered):
    code = PRINTING.format(f"[print(i, flush={flush}) for i in range(3)] and 0")
    assert _into_a_closed_pipe(code, "doctor", unbuffered=unbuffered) == (141, "")


def test_closed_error_output_ends_quietly():
    reader, writer = os.pipe()
    os.close(reader)
    code = PRINTING.format("[print(i, file=sys.stderr, flush=True) for i in range(3)] and 0")
    process = subprocess.run([sys.executable, "-c", code, "doctor"], stdout=writer, stderr=writer, timeout=60)
    os.close(writer)
    assert process.returncode == 141


def test_broken_pipe_of_another_stream_is_an_error(monkeypatch, capsys):
    with pytest.raises(BrokenPipeError, match="a worker"):
        _run(monkeypatch, "doctor", BrokenPipeError(errno.EPIPE, "a worker"))


def test_letters_that_the_output_does_not_have_are_escaped():
    code = PRINTING.format(r"print('a name: \udcfc \u6771') or 0")
    environment = {**os.environ, "PYTHONIOENCODING": "cp1252"}
    done = subprocess.run([sys.executable, "-c", code, "doctor"], capture_output=True, timeout=60, env=environment)
    assert (done.returncode, done.stdout.strip()) == (0, rb"a name: \udcfc \u6771"), done.stderr


# ---- errors ----------------------------------------------------------------------------------------------------------


def test_error_prints_one_line_and_returns_status_1(monkeypatch, capsys):
    assert _run(monkeypatch, "export", HRMedSegError("It is so.")) == 1
    assert capsys.readouterr().err == "hrmedseg export: It is so.\n"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EROFS])
def test_failed_write_prints_one_line_with_the_file_name(number, monkeypatch, capsys):
    error = OSError(number, os.strerror(number), "/data/masks/a.png")
    assert _run(monkeypatch, "predict-onnx", error) == 1
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1 and os.strerror(number) in printed and "/data/masks/a.png" in printed


def test_other_system_errors_keep_their_traceback(monkeypatch):
    with pytest.raises(FileNotFoundError):
        _run(monkeypatch, "doctor", FileNotFoundError(errno.ENOENT, "not there", "/a"))


def test_doctor_into_a_closed_pipe_ends_quietly():
    status, printed = _into_a_closed_pipe(MAIN, "doctor")
    assert (status, printed) == (141, "")
