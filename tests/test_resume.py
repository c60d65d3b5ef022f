"""A run that is cut short, anywhere, and started again ends with the bytes of one that was left
alone.

A small part runs always; the whole matrix (20 cells, then 25 kills) with `pytest -m slow
tests/test_resume.py`.
"""

import json
import random
import subprocess
import sys
from pathlib import Path
from signal import SIGALRM, SIGTERM, SIGUSR1

import pytest
import tiny

CELLS = Path(__file__).with_name("cells.py")
KILLED = -9


@pytest.fixture
def start_cells(base_folder, tmp_path):
    """start_cells(CELLS) runs them on eight small photos and returns what became of each."""
    photos = tiny.write_photos(tmp_path / "photos", 8)
    config = tmp_path / "tiny.yaml"
    config.write_text(  # an epoch is two steps; a checkpoint every two, so that a cut costs something
        f"""
model: {{pretrained_model: {base_folder}, rank_pix: 4, rank_sem: 2}}
data: {{photos: [{photos}], crop_px: 32}}
pix: {{steps: 5, batch_size: 4, lr: 1.0e-3}}
sem: {{steps: 5, batch_size: 4, lr: 1.0e-3, weight_lpips: 0, weight_csd: 1}}
tracking: {{trackers: []}}
run: {{checkpoint_every: 2, accumulation: 2}}
"""
    )

    def run(cells):
        file = tmp_path / "cells.json"
        file.write_text(json.dumps(cells))
        command = [sys.executable, str(CELLS), str(config), str(tmp_path), str(file)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    return run


PLACES = [  # in the order of a training
    {"cut": "after_step", "at": ["pix", 3]},  # in the middle of an epoch
    {"cut": "at_the_switch", "at": ["pix", 5]},
    {"cut": "between_accumulation", "at": ["sem", 3]},
    {"cut": "in_the_write", "at": ["sem", 4], "number": 0},
    {"cut": "after_step", "at": ["sem", 4]},  # at an epoch's edge, its checkpoint not yet written
]


def expect_same_bytes(results, cells, ends=(KILLED,)):
    assert len(results) == len(cells)
    for result in results:
        assert result["processes"] == len(result["again"]) and len(result["ends"]) == len(
            result["starts"]
        ), result
        for codes in result["ends"]:
            assert len(codes) == result["processes"] and set(ends) & set(codes), (
                f"nobody was cut: {result}"
            )
        assert not any(result["again"]) and result["differ"] == [], result


def test_a_run_that_is_cut_again_and_again_ends_with_the_same_bytes(start_cells):
    starts = [dict(place) for place in PLACES]
    starts[2]["workers"] = 2
    cells = [{"name": "cut", "starts": starts, "processes": 1}]
    expect_same_bytes(start_cells(cells), cells)


def test_two_processes_are_cut_or_asked_and_go_on(start_cells):
    """SIGTERM and Slurm's SIGUSR1 tell one process; both finish the step, save it, and stop."""
    asked = [
        {"cut": "asked", "at": [*at], "number": n}
        for at, n in ((("pix", 3), SIGTERM), (("sem", 2), SIGUSR1))
    ]
    cells = [{"name": "asked", "starts": [*asked, PLACES[2]], "processes": 2}]
    results = start_cells(cells)
    expect_same_bytes(results, cells, ends=(KILLED, 128 + SIGTERM, 128 + SIGUSR1))
    assert results[0]["ends"][:2] == [[128 + SIGTERM] * 2, [128 + SIGUSR1] * 2]


@pytest.mark.slow
def test_the_whole_matrix(start_cells):
    cells = [
        {
            "name": f"{i}-{workers}-{processes}",
            "starts": [{**place, "workers": workers}],
            "processes": processes,
        }
        for processes in (1, 2)
        for workers in (0, 2)
        for i, place in enumerate(PLACES)
    ]
    assert len(cells) == 20
    expect_same_bytes(start_cells(cells), cells)


@pytest.mark.slow
def test_kills_at_any_moment(start_cells):
    """Twenty by the clock, from before the model is loaded to the last step; five inside a
    checkpoint's file.
    """
    moments = random.Random(0)
    kills = [{"cut": "after_seconds", "at": ["", moments.uniform(0.05, 0.95)]} for _ in range(20)]
    kills += [{"cut": "in_the_write", "at": [s, n], "number": f} for s, n, f in
              [("pix", 2, 0), ("pix", 4, 1), ("pix", 5, 2), ("sem", 2, 0), ("sem", 4, 2)]]  # fmt: skip
    cells = [{"name": f"kill{i}", "starts": [kill], "processes": 1} for i, kill in enumerate(kills)]
    results = start_cells(cells)
    expect_same_bytes(results, cells, ends=(KILLED, -SIGALRM, 0))
    assert (
        sum(result["ends"] != [[0]] for result in results) >= 20
    )  # one may have been done before its moment came
