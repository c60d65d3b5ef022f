"""Runs of infer that are killed, and run again; run by test_kills.py.

    python tests/killed.py BASE FOLDER KILLS SEED

The model is loaded once; each run is a process forked from here. Most die by the clock, at any
moment; the others in the middle of a picture's file, half of it written. Prints a line of JSON a
kill: how many pictures were there, which of them were not those of a run that nobody killed, and
what differed once the same command had gone on.
"""

import gc
import io
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parent)]

import numpy as np  # noqa: E402
import torch  # noqa: E402
from PIL import Image  # noqa: E402

from pisasr import PiSASRPipeline  # noqa: E402
from pisasr.commands import infer  # noqa: E402
from pisasr.commands.main import main as pisasr_main  # noqa: E402

PICTURES = 4


def draw(folder: Path) -> None:
    folder.mkdir()
    for number in range(PICTURES):
        pixels = np.random.default_rng(number).integers(0, 256, (20, 24 + number, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")


def start(
    given: Path, output: Path, *words: str, seconds: float = 0, in_the_write: int = -1
) -> int:
    """One run; how it ended, negative for a signal."""
    if (child := os.fork()) == 0:
        code = 99
        try:
            quiet = os.open(os.devnull, os.O_WRONLY)
            os.dup2(quiet, 1), os.dup2(quiet, 2)
            if in_the_write >= 0:
                die_in_the_write(in_the_write)
            if seconds:
                signal.signal(
                    signal.SIGALRM, signal.SIG_DFL
                )  # its default ends the process at once, without a word
                signal.setitimer(signal.ITIMER_REAL, seconds)
            options = [
                "--existing",
                "skip",
                "--upscale",
                "4",
                "--process_size",
                "16",
                "--device",
                "cpu",
                "--quiet",
            ]
            code = pisasr_main(["infer", "-i", str(given), "-o", str(output), *options, *words])
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def die_in_the_write(number: int) -> None:
    """Half of the number-th picture is written, and the process is gone."""
    save, calls = Image.Image.save, []

    def torn(self, file, **options):
        calls.append(1)
        if len(calls) > number:
            whole = io.BytesIO()
            save(self, whole, **options)
            file.write(whole.getvalue()[: len(whole.getvalue()) // 2])
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        save(self, file, **options)

    Image.Image.save = torn


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.name: path.read_bytes()
        for path in folder.glob("*")
        if not path.name.startswith("report")
    }


def main(base: str, place: str, kills: int, seed: int) -> None:
    torch.set_num_threads(1)
    pipe = PiSASRPipeline.from_pretrained(base)
    infer.load_pipeline = lambda args: pipe
    given, whole, chance = Path(place) / "in", Path(place) / "whole", random.Random(seed)
    draw(given)
    gc.freeze()
    begun = time.monotonic()
    assert start(given, whole) == 0
    took, wanted = time.monotonic() - begun, contents(whole)
    assert len(wanted) == PICTURES
    for number in range(kills):
        output = Path(place) / str(number)
        by_clock = chance.random() < 0.7
        cut = (
            {"seconds": chance.uniform(0, 0.7 * took)}
            if by_clock
            else {"in_the_write": chance.randrange(PICTURES)}
        )
        ended = start(given, output, **cut)
        there = contents(output) if output.is_dir() else {}
        finished = {name: content for name, content in there.items() if not name.startswith(".")}
        again, after = start(given, output), contents(output)
        told = {
            "ended": ended, "there": len(finished), "temporary": len(there) - len(finished), "again": again,
            "corrupt": sorted(name for name, content in finished.items() if content != wanted[name]),
            "differ": sorted(name for name in wanted.keys() | after.keys() if wanted.get(name) != after.get(name)),
        }  # fmt: skip
        print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
