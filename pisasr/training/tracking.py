"""Show a training in accelerate's trackers; log.jsonl, not this, is the result."""

from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration
from PIL import Image

from pisasr.training.config import TrainConfig
from pisasr.training.stages import Stage


def tracking_options(config: TrainConfig) -> dict[str, Any]:
    """Return what `Accelerator(...)` needs for the trackers that the configuration names."""
    output = Path(config.run.output)
    folders = ProjectConfiguration(project_dir=str(output), logging_dir=str(output / "tracking"))
    return {"log_with": config.run.trackers or None, "project_config": folders}


def open_trackers(accelerator: Accelerator, config: TrainConfig, step: int) -> None:
    """Open the trackers, where `step` (over all stages) is the last one taken.

    TensorBoard then hides what an interrupted run showed beyond it. To continue one wandb run set
    WANDB_RUN_ID and WANDB_RESUME=allow.
    """
    options = {
        "tensorboard": {"purge_step": step + 1},
        "wandb": {"dir": config.run.output, "name": Path(config.run.output).name},
    }
    accelerator.init_trackers("pisasr", init_kwargs=options)


def track(accelerator: Accelerator, stage: Stage, step: int, values: dict[str, float]) -> None:
    """Show numbers as stage/name; the steps of sem follow those of pix on one axis."""
    named = {f"{stage.name}/{name}": value for name, value in values.items()}
    accelerator.log(named, step=stage.begin + step)


def track_sheet(accelerator: Accelerator, stage: Stage, step: int, sheet: Image.Image) -> None:
    """Show a picture in the trackers that can."""
    pictures = {f"{stage.name}/validation": np.asarray(sheet)[None]}
    for tracker in accelerator.trackers:
        if hasattr(tracker, "log_images"):
            layout = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
            tracker.log_images(pictures, step=stage.begin + step, **layout)
