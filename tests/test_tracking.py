"""Trackers show both stages on one axis, and no step of a resumed run twice."""

import math

import pytest
from accelerate import Accelerator
from PIL import Image

from pisasr.training.config import DataConfig, RunConfig, SemConfig, StageConfig, TrainConfig
from pisasr.training.stages import stages_of
from pisasr.training.tracking import open_trackers, track, track_sheet, tracking_options


def start(config, step):
    Accelerator._shared_state = {}
    accelerator = Accelerator(cpu=True, **tracking_options(config))
    open_trackers(accelerator, config, step)
    return accelerator


def test_tensorboard_shows_numbers_and_the_sheet(tmp_path):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    config = TrainConfig(
        data=DataConfig(photos=[]),
        pix=StageConfig(steps=4),
        sem=SemConfig(steps=3),
        run=RunConfig(output=str(tmp_path)),
    )
    pix, sem = stages_of(config)
    accelerator = start(config, 0)
    for step in (1, 2, 3):
        track(accelerator, pix, step, {"l2": 1.0})
    accelerator.end_training()
    accelerator = start(config, 1)
    for step in (2, 3, 4):
        track(accelerator, pix, step, {"l2": 2.0})
    track(accelerator, sem, 1, {"l2": 0.25, "csd": math.nan})
    track_sheet(accelerator, sem, 1, Image.new("RGB", (40, 30), (255, 0, 0)))
    accelerator.end_training()
    board = events.EventAccumulator(str(tmp_path / "tracking" / "pisasr")).Reload()
    shown = [(event.step, event.value) for event in board.Scalars("pix/l2")]
    assert shown == [(1, 1.0), (2, 2.0), (3, 2.0), (4, 2.0)]
    assert [(event.step, event.value) for event in board.Scalars("sem/l2")] == [(5, 0.25)]
    (picture,) = board.Images("sem/validation")
    assert (picture.step, picture.width, picture.height) == (5, 40, 30)
