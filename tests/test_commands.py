"""What every command promises: one line for a mistake, an exit code, no wait for torch."""

import os
import signal
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import pytest
import torch

from pisasr import errors
from pisasr.commands.main import COMMANDS, main
from pisasr.commands.options import finite, whole
from pisasr.models.bases import load_base
from pisasr.models.rrdbnet import RRDBNet

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("words", [[], ["unknown"], ["infer"], ["infer", "--unknown"], ["convert"]])
def test_wrong_usage_is_one_line_and_2(words, capsys):
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == errors.WRONG_USAGE
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name, capsys):
    with pytest.raises(SystemExit) as caught:
        main([name, "--help"])
    assert caught.value.code == errors.OK and f"pisasr {name}" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("words", ["--help", "infer --help", "infer -i none", "convert -h"])
def test_quick_answers_do_not_wait_for_torch(words):
    code = (
        "import sys, pisasr.commands.main\n"
        "try: pisasr.commands.main.main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'diffusers', 'transformers', 'numpy', 'PIL'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    words = [sys.executable, "-c", code, *words.split()]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_numbers_on_the_command_line_are_checked():
    assert finite(" 1e-3") == 0.001 and whole("7") == 7
    for parse, text in ((finite, "nan"), (finite, "1,5"), (whole, "-1"), (whole, "1.0")):
        with pytest.raises(errors.UsageError, match="is not a"):
            parse(text)


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (errors.PisasrError("no\nmodel"), errors.NOTHING_STARTED, "pisasr: no model"),
        (errors.UsageError("two"), errors.WRONG_USAGE, "pisasr: two"),
        (OSError(28, "No space left", "a\x1b.png"), 1, r"pisasr: No space left: a\x1b.png"),
        (RuntimeError("odd"), 1, "pisasr: RuntimeError: odd"),
        (KeyboardInterrupt(), errors.INTERRUPTED, "interrupted"),
    ],
)
def test_an_error_is_one_line_and_a_code(error, code, line, capsys):
    def run():
        raise error

    assert errors.guarded(run) == code
    assert capsys.readouterr().err == f"{line}\n"
    assert errors.guarded(run, debug=True) == code
    assert ("Traceback" in capsys.readouterr().err) == (code != errors.INTERRUPTED)


def test_a_notice_is_a_line_without_a_place_in_the_code(capsys):
    def run():
        for _ in range(2):
            warnings.warn("memory is\nshort", errors.UserNotice, stacklevel=1)
        return errors.SOME_FAILED

    assert errors.guarded(run) == errors.SOME_FAILED
    assert set(capsys.readouterr().err.splitlines()) == {r"memory is\nshort"}


def test_sigterm_is_ctrl_c_inside_a_command_alone(capsys):
    before = signal.getsignal(signal.SIGTERM)
    assert errors.guarded(lambda: os.kill(os.getpid(), signal.SIGTERM)) == errors.INTERRUPTED
    assert signal.getsignal(signal.SIGTERM) == before


def test_another_thread_gets_no_signals_and_needs_none():
    codes = []
    thread = threading.Thread(target=lambda: codes.append(errors.guarded(lambda: 3)))
    thread.start(), thread.join()
    assert codes == [3]


def test_a_reader_that_leaves_ends_a_command_without_a_traceback(monkeypatch, capfd):
    def run():
        raise BrokenPipeError

    monkeypatch.setattr(os, "dup2", lambda *_: None)
    assert errors.guarded(run) == errors.NOTHING_STARTED
    assert capfd.readouterr().err == ""


def test_convert_makes_a_base_of_a_network_of_others(tmp_path, capsys):
    network = RRDBNet(blocks=1, features=8, growth=4)
    torch.save(network.state_dict(), tmp_path / "net.pth")
    folder = tmp_path / "base"
    assert main(["convert", str(tmp_path / "net.pth"), str(folder)]) == errors.OK
    assert "RRDBNet of 1 blocks" in capsys.readouterr().out
    assert load_base(folder)["unet"].config.features == 8
