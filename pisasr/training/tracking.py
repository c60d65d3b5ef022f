"""Photo to adapter, beside the way: what a training shows while it runs, in trackers and as
progress.

None of it is part of the result (log.jsonl is), and nothing in this file ends a training once it
has begun.
"""

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from accelerate.utils import LoggerType, ProjectConfiguration
from PIL import Image
from tqdm import tqdm

from pisasr.config import ConfigError, TrackingConfig, TrainConfig, to_yaml
from pisasr.training.stages import stages_of

log = logging.getLogger(__name__)

RECENT = 50  # steps that speed and the time left are judged by


# --- trackers -------------------------------------------------------------------------------------


def tracking_options(config: TrainConfig) -> dict[str, Any]:
    """What `Accelerator(...)` must be given so that `Trackers` can work; asked for before anything
    is loaded.

    Raises ConfigError for a tracker that accelerate doesn't know or that isn't installed. The
    default, tensorboard alone, may be absent: `Trackers` says so in one line, and log.jsonl is
    written as always.
    """
    known = [name for name in map(str, LoggerType) if name != "all"]
    there = {str(name) for name in get_available_trackers()}
    wanted = list(dict.fromkeys(config.tracking.trackers))
    for name in wanted:
        if name not in known:
            raise ConfigError(
                f"tracking.trackers has {name!r}; wanted some of {', '.join(known)}, or [] for none."
            )
    absent = [name for name in wanted if name not in there]
    if absent and wanted != TrackingConfig().trackers:
        packages = " ".join(name.replace("_", "-") for name in absent)
        raise ConfigError(
            f"tracking.trackers has {', '.join(absent)}, which is not installed; pip install {packages}."
        )
    folder = Path(config.run.output)
    return {
        "log_with": [name for name in wanted if name in there] or None,
        "project_config": ProjectConfiguration(
            project_dir=str(folder), logging_dir=str(folder / "tracking")
        ),
    }


class Trackers:
    """accelerate's trackers, on the main process. One that fails is told once; the others and the
    training go on.

    The stages share one axis, on which SEM's first step follows PIX's last: wandb's steps may not
    fall.
    """

    def __init__(self, accelerator: Accelerator, config: TrainConfig):
        self.accelerator, self.config = accelerator, config
        self._names, self._told = list(accelerator.log_with), set[str]()
        self.offsets: dict[str, int] = {}
        steps = 0
        for stage in stages_of(config):
            self.offsets[stage.name] = steps
            steps += stage.settings.steps
        if accelerator.is_main_process and config.tracking.trackers and not self._names:
            log.warning(
                "tensorboard is not installed (pip install tensorboard); losses go to log.jsonl alone"
            )

    def start(self, stage: str, step: int) -> None:
        """Open them where step `step` of `stage` is the last one done. Later calls do nothing.

        What an interrupted run showed beyond it is hidden by TensorBoard; others show the steps
        twice. For one wandb run over several starts, set WANDB_RUN_ID and WANDB_RESUME=allow;
        without a network, WANDB_MODE=offline, or it waits for minutes.
        """
        if not self.accelerator.is_main_process:
            return
        at = self.offsets[stage] + step
        output, project = Path(self.config.run.output), self.config.tracking.project
        options = {
            "tensorboard": {"purge_step": at + 1},
            "wandb": {"dir": str(output), "name": output.name},
        }
        opened: list[Any] = []
        while self._names:
            # One by one: behind one that fails, init_trackers leaves the rest of its list unopened.
            name = self._names.pop(0)
            self.accelerator.log_with, self.accelerator.trackers = [name], []
            if self._try(
                str(name), lambda: self.accelerator.init_trackers(project, init_kwargs=options)
            ):
                opened += self.accelerator.trackers
        if opened:
            self.accelerator.trackers = opened
            self._each(lambda tracker: _show_config(tracker, self.config, at))

    def log(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        """Numbers by name, shown as stage/name; nan and inf are passed on as they are."""
        named = {f"{stage}/{name}": value for name, value in values.items()}
        self._each(lambda tracker: tracker.log(named, step=self.offsets[stage] + step))

    def log_image(self, stage: str, step: int, name: str, image: Image.Image) -> None:
        """One picture, by the trackers that can show pictures."""
        at, pictures = (
            self.offsets[stage] + step,
            {f"{stage}/{name}": np.asarray(image.convert("RGB"))[None]},
        )

        def show(tracker: Any) -> None:
            if hasattr(tracker, "log_images"):
                layout = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
                tracker.log_images(pictures, step=at, **layout)

        self._each(show)

    def finish(self) -> None:
        """Close them, also after a training that failed."""
        self._each(lambda tracker: tracker.finish())
        self.accelerator.trackers = []

    def _each(self, call: Callable[[Any], Any]) -> None:
        if self.accelerator.is_main_process:
            for tracker in self.accelerator.trackers:
                self._try(tracker.name, partial(call, tracker))

    def _try(self, name: str, call: Callable[[], Any]) -> bool:
        try:
            call()
        except (
            Exception
        ) as error:  # a tracker may raise whatever it likes, and none is worth a training
            if name not in self._told:
                reason = " ".join(str(error).split())[:200]
                log.warning(
                    "tracker %s failed (%s: %s); training goes on",
                    name,
                    type(error).__name__,
                    reason,
                )
            self._told.add(name)
            return False
        return True


def _show_config(tracker: Any, config: TrainConfig, at: int) -> None:
    if (
        tracker.name == "tensorboard"
    ):  # accelerate's own way opens a second run in a folder named by the clock
        tracker.log({"config": f"```\n{to_yaml(config)}```"}, step=at)
    else:
        tracker.store_init_configuration(config.model_dump())


# --- progress -------------------------------------------------------------------------------------


class Progress:
    """How far a stage is: a line every so many steps, with what the last losses were.

    The speed, and from it the time left, is the mean over the last RECENT steps: a slow first step,
    or a pause hours ago, says nothing about the steps to come. Validation and checkpoints in
    between count: they will come again.
    """

    def __init__(
        self,
        stage: str,
        last: int,
        batch_size: int,
        every: int,
        clock: Callable[[], float] = time.monotonic,
    ):
        """Steps up to `last`, batch_size pictures each over all processes. The peak of memory is
        counted from here.
        """
        self.stage, self.last, self.batch_size, self.every = stage, last, batch_size, every
        self._clock, self._times = clock, deque([clock()], maxlen=RECENT + 1)
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()

    def step(self, step: int, values: Mapping[str, float]) -> dict[str, float]:
        """Tell of one more step. Returns what trackers may want of it: images_per_s and, on CUDA,
        peak_memory_gib.
        """
        self._times.append(self._clock())
        seconds = (self._times[-1] - self._times[0]) / (len(self._times) - 1)
        speed = {"images_per_s": self.batch_size / seconds if seconds else math.inf}
        parts = [
            f"{tqdm.format_interval((self.last - step) * seconds)} left",
            f"{speed['images_per_s']:.3g} images/s",
        ]
        if torch.cuda.is_available():
            speed["peak_memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
            parts.append(f"peak {speed['peak_memory_gib']:.1f} GiB")
        if step % self.every == 0 or step == self.last:
            told = ", ".join([*parts, *(f"{name} {value:.4g}" for name, value in values.items())])
            log.info("%s %d/%d, %s", self.stage, step, self.last, told)
        return speed
