"""Trainings that are cut short and started again, each in processes of its own; run by
test_resume.py.

    python tests/cells.py CONFIG OUTPUT CELLS.json

A cell is {"name", "processes", "starts": [{"cut", "at": [stage, step], "number", "workers"}, ...]}:
the same training, started as often as it is cut, and once more. For every number of processes there
is one training that nobody cuts; every cell must end with its bytes. Processes are forked here and
meet over gloo, as torchrun's do, so that torch is imported once. Prints a line of JSON per cell:
differences found, how each start ended, how many processes took part.
"""

import gc
import json
import os
import signal
import socket
import sys
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parent)]

import torch  # noqa: E402

from pisasr.commands.main import main as pisasr_main  # noqa: E402
from pisasr.files import temporary_name  # noqa: E402
from pisasr.training import loop, state  # noqa: E402

LIMIT_S = 120


def start(
    config: str, output: Path, overrides: list[str], processes: int, cut: dict | None = None
) -> list[int]:
    """One start of the command. Returns each process's exit code, negative for a signal."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(processes):
        child = os.fork()
        if child == 0:
            run_one(config, output, overrides, rank, processes, port, cut)
        children.append(child)
    return wait_for(children)


def run_one(config, output, overrides, rank, processes, port, cut) -> None:
    """What a forked process does; never returns."""
    code = 99
    try:
        torch.set_num_threads(1)
        os.environ["ACCELERATE_USE_CPU"] = "true"
        if processes > 1:
            world = {
                "RANK": rank,
                "LOCAL_RANK": rank,
                "WORLD_SIZE": processes,
                "LOCAL_WORLD_SIZE": processes,
            }
            os.environ |= {key: str(value) for key, value in world.items()}
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        log = (output.parent / f"{output.name}.{rank}.txt").open("a")
        os.dup2(log.fileno(), 1), os.dup2(log.fileno(), 2)
        count_processes(output.parent / f"{output.name}.world")
        if cut:
            CUTS[cut["cut"]](*cut["at"], cut.get("number", 0))
        code = pisasr_main(
            ["train", "--debug", "--config", config, f"run.output={output}", *overrides]
        )
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 98
    finally:
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(code)


def count_processes(file: Path) -> None:
    """Write down how many processes really train together."""
    original = loop.train_stage

    def spy(stage, bench, *rest):
        file.write_text(str(bench.accelerator.num_processes))
        original(stage, bench, *rest)

    loop.train_stage = spy


def wait_for(children: list[int]) -> list[int]:
    """Wait for all; one that fails takes the others with it after a moment, as torchrun has it."""
    codes: dict[int, int] = {}
    deadline = time.monotonic() + LIMIT_S
    while len(codes) < len(children):
        child, status = os.waitpid(-1, os.WNOHANG)
        if child in children:
            codes[child] = os.waitstatus_to_exitcode(status)
            if codes[child]:
                deadline = min(deadline, time.monotonic() + 10)
        elif time.monotonic() > deadline:
            for left in set(children) - set(codes):
                os.kill(left, signal.SIGKILL)
        else:
            time.sleep(0.01)
    return [codes[child] for child in children]


# --- ways to be cut short: every process of the run dies there, without a word --------------------


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def after_step(stage: str, step: int, _: int) -> None:
    original = loop.report

    def report(at, number, *rest):
        original(at, number, *rest)
        if (at.name, number) == (stage, step):
            die()

    loop.report = report


def between_accumulation(stage: str, step: int, _: int) -> None:
    """After the step's first batch has gone backward, before its second."""
    seed, restore = loop.seed_step, loop.restore_batch
    calls = []

    def remember(number, at, now, process):
        calls[:] = [at, now]
        seed(number, at, now, process)

    def second(*arguments):
        calls.append(None)
        if calls[:2] == [stage, step] and len(calls) == 4:
            die()
        return restore(*arguments)

    loop.seed_step, loop.restore_batch = remember, second


def at_the_switch(stage: str, step: int, _: int) -> None:
    """When the stage's adapter is there and the next stage has not begun."""
    original = loop.train_stage

    def run(at, bench, asked):
        original(at, bench, asked)
        if at.name == stage:
            bench.accelerator.wait_for_everyone()
            die()

    loop.train_stage = run


def in_the_write(stage: str, step: int, number: int) -> None:
    """In the middle of writing the checkpoint: half of its bytes are there (0), all but its name
    (1), it is there and the ones that it makes superfluous are, too (2)."""
    write = state.write_whole

    def torn(path, content):
        if path.name == f"{stage}-{step:08d}":
            if number == 2:
                write(path, content)
            else:
                temporary_name(path).write_bytes(content[: len(content) // (2 - number)])
            die()
        write(path, content)

    state.write_whole = torn


def after_seconds(_: str, seconds: float, __: int) -> None:
    """Wherever the clock says: no place in the code is safe. The alarm's default ends the process
    at once.
    """
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, seconds)


def asked(stage: str, step: int, number: int) -> None:
    """By a signal that asks, SIGTERM or SIGUSR1: one process is told, all of them stop."""
    original = loop.seed_step

    def seed(value, at, now, process):
        original(value, at, now, process)
        if (at, now) == (stage, step) and process == 0:
            for _ in range(
                2
            ):  # schedulers tell every process, and launchers pass on what they are told
                os.kill(os.getpid(), number)

    loop.seed_step = seed


CUTS = {each.__name__: each for each in (
    after_step, between_accumulation, at_the_switch, in_the_write, after_seconds, asked)}  # fmt: skip


# --- comparing ------------------------------------------------------------------------------------


def differences(one: Path, other: Path) -> list[str]:
    """Files of the result that differ in any byte."""
    names = ["adapters/pix.safetensors", "adapters/sem.safetensors", "log.jsonl"]
    return [name for name in names if content(one / name) != content(other / name)]


def content(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


def main(config: str, output: str, cells: str) -> None:
    gc.freeze()  # what was imported stays: no child needs to look through it
    references: dict[int, Path] = {}
    seconds: dict[int, float] = {}
    for cell in json.loads(Path(cells).read_text()):
        processes = cell["processes"]
        if processes not in references:
            references[processes] = Path(output) / f"whole-{processes}"
            begun = time.monotonic()
            codes = start(config, references[processes], ["data.workers=0"], processes)
            seconds[processes] = time.monotonic() - begun
            assert not any(codes), (references[processes], codes)
        folder, ends = Path(output) / cell["name"], []
        for cut in cell["starts"]:
            if cut["cut"] == "after_seconds":  # given as a share of what the uncut training took
                cut["at"][1] *= seconds[processes]
            ends.append(
                start(config, folder, [f"data.workers={cut.get('workers', 0)}"], processes, cut)
            )
        again = start(config, folder, ["data.workers=0"], processes)
        world = int((folder.parent / f"{folder.name}.world").read_text())
        found = {
            "ends": ends,
            "again": again,
            "processes": world,
            "differ": differences(references[processes], folder),
        }
        print(json.dumps({**cell, **found}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
