"""Runs of infer that are killed and run again; started by test_kills.py.

    python tests/killed.py BASE FOLDER KILLS SEED

Each run is a process forked from here. Most die by the clock; the others with half of a picture's
file written. Prints a line of JSON a kill: which pictures were not those of a whole run, and what
differed once the same command had gone on.
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

sys.path[:0] = [str(Path(__file__).resolve().parents[1])]

import numpy as np  # noqa: E402
import torch  # noqa: E402
from PIL import Image  # noqa: E402

from pisasr import PiSASRPipeline  # noqa: E402
from pisasr.commands import infer  # noqa: E402
from pisasr.commands.main import main as pisasr_main  # noqa: E402

PICTURES = 4


def start(source: Path, output: Path, seconds: float = 0, in_the_write: int = -1) -> int:
    """One run; how it ended, negative for a signal."""
    if (child := os.fork()) == 0:
        code = 99
        try:
            quiet = os.open(os.devnull, os.O_WRONLY)
            os.dup2(quiet, 1), os.dup2(quiet, 2)
            if in_the_write >= 0:
                die_in_the_write(in_the_write)
            if seconds:
                signal.signal(signal.SIGALRM, signal.SIG_DFL)  # ends the process at once
                signal.setitimer(signal.ITIMER_REAL, seconds)
            words = f"infer -i {source} -o {output} --existing skip --process_size 16 --device cpu"
            code = pisasr_main(words.split())
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
    return {path.name: path.read_bytes() for path in folder.glob("*.png")}


def main(base: str, place: Path, kills: int, seed: int) -> None:
    torch.set_num_threads(1)
    pipe = PiSASRPipeline.from_pretrained(base)
    infer.load_model = lambda args: pipe
    source, whole, chance = place / "in", place / "whole", random.Random(seed)
    source.mkdir()
    for number in range(PICTURES):
        pixels = np.random.default_rng(number).integers(0, 256, (20, 24 + number, 3), np.uint8)
        Image.fromarray(pixels).save(source / f"{number}.png")
    gc.freeze()
    begun = time.monotonic()
    assert start(source, whole) == 0
    took, wanted = time.monotonic() - begun, contents(whole)
    for number in range(kills):
        output = place / str(number)
        by_clock = {"seconds": chance.uniform(0, 0.7 * took)}
        torn = {"in_the_write": chance.randrange(PICTURES)}
        ended = start(source, output, **(by_clock if chance.random() < 0.7 else torn))
        left = contents(output) if output.is_dir() else {}
        corrupt = [name for name, content in left.items() if content != wanted[name]]
        again = start(source, output)
        after = contents(output)
        differ = [name for name in wanted if wanted[name] != after.get(name)]
        row = {"ended": ended, "corrupt": corrupt, "again": again, "differ": differ}
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
