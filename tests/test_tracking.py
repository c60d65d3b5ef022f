"""Trackers and the progress bar are no part of the result, and can't hurt it."""

import logging
import math
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from PIL import Image

from pisasr.config import (
    ConfigError,
    DataConfig,
    RunConfig,
    StageConfig,
    TrackingConfig,
    TrainConfig,
)
from pisasr.training import tracking
from pisasr.training.tracking import Progress, Trackers, tracking_options

# --- trackers -------------------------------------------------------------------------------------


def make_config(output, trackers=("tensorboard",), pix=4, sem=3):
    return TrainConfig(
        data=DataConfig(photos=[]),
        pix=StageConfig(steps=pix),
        sem=StageConfig(steps=sem),
        tracking=TrackingConfig(trackers=list(trackers)),
        run=RunConfig(output=str(output)),
    )


def start(config, stage="pix", step=0):
    Accelerator._shared_state = {}
    trackers = Trackers(Accelerator(cpu=True, **tracking_options(config)), config)
    trackers.start(stage, step)
    return trackers


def read_board(output):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    board = accumulator.EventAccumulator(str(output / "tracking" / "pisasr"))
    return board.Reload()


def test_tensorboard_shows_both_stages_on_one_axis_and_the_picture(tmp_path):
    pytest.importorskip("tensorboard")
    trackers = start(make_config(tmp_path))
    trackers.log("pix", 4, {"l2": 0.5})
    trackers.start("sem", 0)
    trackers.log("sem", 1, {"l2": 0.25, "csd": math.nan})
    trackers.log_image("sem", 1, "validation", Image.new("RGB", (40, 30), (255, 0, 0)))
    trackers.finish()
    board = read_board(tmp_path)
    assert [(event.step, event.value) for event in board.Scalars("pix/l2")] == [(4, 0.5)]
    assert [(event.step, event.value) for event in board.Scalars("sem/l2")] == [(5, 0.25)]
    (picture,) = board.Images("sem/validation")
    assert (picture.step, picture.width, picture.height) == (5, 40, 30)
    assert any("config" in tag for tag in board.Tags()["tensors"])


def test_a_resumed_run_shows_no_step_twice(tmp_path):
    pytest.importorskip("tensorboard")
    trackers = start(make_config(tmp_path))
    for step in (1, 2, 3):
        trackers.log("pix", step, {"l2": 1.0})
    trackers.finish()
    trackers = start(make_config(tmp_path), "pix", 1)
    for step in (2, 3, 4):
        trackers.log("pix", step, {"l2": 2.0})
    trackers.finish()
    shown = [(event.step, event.value) for event in read_board(tmp_path).Scalars("pix/l2")]
    assert shown == [(1, 1.0), (2, 2.0), (3, 2.0), (4, 2.0)]


def test_the_default_may_be_absent_and_what_was_asked_for_may_not(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(tracking, "get_available_trackers", lambda: [])
    start(make_config(tmp_path)).log("pix", 1, {"l2": 1.0})
    assert caplog.text.count("pip install tensorboard") == 1
    with pytest.raises(
        ConfigError, match=r"wandb, comet_ml, which is not installed; pip install wandb comet-ml\.$"
    ):
        tracking_options(make_config(tmp_path, ["wandb", "comet_ml"]))
    with pytest.raises(ConfigError, match="'tensorbored'; wanted some of .*tensorboard"):
        tracking_options(make_config(tmp_path, ["tensorbored"]))
    caplog.clear()
    start(make_config(tmp_path, []))
    assert caplog.text == "", "who wants none is told nothing"


class Broken:
    """A tracker that fails at everything."""

    name = "broken"

    def __getattr__(self, name):
        def fail(*_, **__):
            raise RuntimeError(f"no {name}\nhere")

        return fail


class Kept:
    """A tracker that remembers what it was given."""

    name = "kept"

    def __init__(self):
        self.seen = []

    def log(self, values, step):
        self.seen.append((step, values))

    def finish(self):
        self.seen.append("finished")


def test_a_tracker_that_fails_is_told_once_and_harms_no_other(tmp_path, caplog):
    trackers, kept = start(make_config(tmp_path, [])), Kept()
    trackers.accelerator.trackers = [Broken(), kept]
    trackers.log("pix", 1, {"l2": 1.0})
    trackers.log("pix", 2, {"l2": 2.0})
    trackers.log_image("pix", 2, "validation", Image.new("RGB", (4, 4)))
    trackers.finish()
    assert kept.seen == [(1, {"pix/l2": 1.0}), (2, {"pix/l2": 2.0}), "finished"]
    assert [record.message for record in caplog.records if "broken" in record.message] == [
        "tracker broken failed (RuntimeError: no log here); training goes on"
    ]


def test_a_tracker_that_can_not_be_opened_leaves_the_others(tmp_path, caplog, monkeypatch):
    trackers = Trackers(Accelerator(cpu=True), make_config(tmp_path))
    trackers._names = ["first", "second"]
    kept = Kept()
    kept.store_init_configuration = lambda values: kept.seen.append(values["run"]["output"])

    def init_trackers(project, init_kwargs):
        trackers.accelerator.trackers.append(
            Broken() if trackers.accelerator.log_with == ["first"] else kept
        )
        if trackers.accelerator.log_with == ["first"]:
            raise OSError("not logged in")

    monkeypatch.setattr(trackers.accelerator, "init_trackers", init_trackers)
    trackers.start("pix", 0)
    trackers.start("sem", 0)
    assert trackers.accelerator.trackers == [kept] and kept.seen == [str(tmp_path)]
    assert caplog.text.count("not logged in") == 1


def test_other_processes_open_and_tell_nothing(tmp_path):
    silent = SimpleNamespace(is_main_process=False, log_with=["tensorboard"], trackers=[Broken()])
    trackers = Trackers(silent, make_config(tmp_path))
    trackers.start("pix", 0)
    trackers.log("pix", 1, {"l2": 1.0})
    trackers.finish()
    assert list(tmp_path.iterdir()) == []


# --- progress -------------------------------------------------------------------------------------


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def test_lines_come_every_so_many_steps_and_judge_by_the_recent_ones(caplog):
    caplog.set_level(logging.INFO)
    clock = Clock()
    progress = Progress("pix", last=1000, batch_size=8, every=100, clock=clock)
    for step in range(1, 201):
        clock.now += 3600 if step == 1 else 2.0  # compiling took an hour
        speed = progress.step(step, {"l2": 0.012345})
    assert speed["images_per_s"] == pytest.approx(4.0)
    assert [record.message for record in caplog.records] == [
        "pix 100/1000, 30:00 left, 4 images/s, l2 0.01235",
        "pix 200/1000, 26:40 left, 4 images/s, l2 0.01235",
    ]


def test_the_last_step_is_told_also_of_a_resumed_stage(caplog):
    caplog.set_level(logging.INFO)
    clock = Clock()
    progress = Progress("sem", last=7203, batch_size=1, every=10, clock=clock)
    clock.now += 5
    assert progress.step(7201, {})["images_per_s"] == pytest.approx(0.2)
    clock.now += 5
    progress.step(7203, {})
    assert [record.message for record in caplog.records] == [
        "sem 7203/7203, 00:00 left, 0.2 images/s"
    ]


def test_each_stage_is_told_its_own_peak_of_memory_where_cuda_is(monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    peak = {"bytes": 9 * 2**30}
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: peak.update(bytes=3 * 2**30))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: peak["bytes"])
    progress = Progress("pix", last=4000, batch_size=1, every=1, clock=lambda: 0.0)
    assert progress.step(1, {})["peak_memory_gib"] == 3
    assert "peak 3.0 GiB" in caplog.text
