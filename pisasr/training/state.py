"""Keep on disk what must survive a kill: adapters, checkpoints, the journal, the settings.

    OUTPUT/adapters/{pix,sem}.safetensors    the result
    OUTPUT/checkpoints/pix-00000120          torch.save of where a stage stands
    OUTPUT/log.jsonl                         a row a step, cut at the step to resume from
    OUTPUT/config.yaml                       the settings, which a later start must repeat

Each file is written under a temporary name and renamed. Every draw belongs to a sample or a step,
so no generator's state is among them.
"""

import io
import json
import logging
import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from pydantic import ValidationError
from torch import nn

from pisasr.errors import CheckpointError
from pisasr.files import write_whole
from pisasr.method.adapters import load_into, parameters_of
from pisasr.method.model import ONE_STEP
from pisasr.models.weights import KINDS, Adapter, Kind, base_facts, load_adapter, save_adapter
from pisasr.training.config import (
    NEGATED_PIX,
    ConfigError,
    SemConfig,
    TrainConfig,
    flatten,
    to_yaml,
)
from pisasr.training.critic import Critic
from pisasr.training.stages import Stage

log = logging.getLogger(__name__)

# Settings that no trained byte depends on.
MAY_CHANGE = (
    *("run.output", "run.checkpoint_every", "run.keep_checkpoints", "run.trackers"),
    *("data.workers", "validation."),
)


def on_main(read: Callable[[], Any]) -> Any:
    """Read on the main process, whose disk alone counts, and tell all of them."""
    return broadcast_object_list([read() if PartialState().is_main_process else None])[0]


def check_settings(config: TrainConfig) -> None:
    """Raise ConfigError with every setting that differs from those of the run in the folder."""
    file = Path(config.run.output) / "config.yaml"
    if not file.is_file():
        return
    try:
        before, now = yaml.safe_load(file.read_text()), yaml.safe_load(to_yaml(config))
        with suppress(ValidationError):  # keys that are newer than the run have their defaults
            before = TrainConfig.model_validate(before).model_dump(mode="json")
        before, now = flatten(before), flatten(now)
    except (yaml.YAMLError, AttributeError):
        raise ConfigError(f"{file} is broken; delete it to continue the run.") from None
    changed = [key for key in {**now, **before} if before.get(key) != now.get(key)]
    changed = [key for key in changed if not key.startswith(MAY_CHANGE)]
    if changed:
        listed = "; ".join(f"{key}: {before.get(key)} -> {now.get(key)}" for key in changed)
        raise ConfigError(
            f"{config.run.output} holds a run with other settings ({listed}); choose another "
            "run.output, or add --allow_change."
        )


def begin(stage: Stage, config: TrainConfig, pix: Adapter | None, step: int) -> None:
    """Write the settings and, for sem, the pixel adapter; cut the journals after `step`."""
    output, pix_file = Path(config.run.output), adapter_file(config, "pix")
    write_whole(output / "config.yaml", to_yaml(config))
    if pix is not None and not pix_file.is_file():
        save_adapter(pix_file, pix)  # sem is nothing without it
    for name in ("log.jsonl", "validation.jsonl"):
        truncate(output / name, stage.name, step)


# --- adapters -------------------------------------------------------------------------------------


def adapter_file(config: TrainConfig, name: str) -> Path:
    """Return OUTPUT/adapters/NAME.safetensors."""
    return Path(config.run.output) / "adapters" / f"{name}.safetensors"


def adapter_from(unet: Any, name: Kind, config: TrainConfig) -> Adapter:
    """Copy a live adapter into what goes to disk."""
    live = parameters_of(unet, name)
    tensors = {key: parameter.detach().float().cpu().clone() for key, parameter in live.items()}
    base = base_facts(unet.config)
    return Adapter(name, config.model.rank_of(name), config.model.alpha, tensors, base, ONE_STEP)


def load_adapters(stage: Stage, unet: Any, config: TrainConfig) -> Adapter | None:
    """Load what a stage stands on and starts from; return the pixel adapter of sem."""
    pix, start = None, stage.settings.start_from
    if isinstance(stage.settings, SemConfig):
        file = Path(stage.settings.pix_adapter or adapter_file(config, "pix"))
        pix = on_main(lambda: check_adapter(file, "pix", config, unet))
        load_into(unet, "pix", pix.tensors)
    if pix is not None and start == NEGATED_PIX:
        signs = {key: -1 if ".lora_B." in key else 1 for key in pix.tensors}
        negative = {key: signs[key] * tensor for key, tensor in pix.tensors.items()}
        load_into(unet, stage.name, negative)
    elif start:
        adapter = on_main(lambda: check_adapter(Path(start), stage.name, config, unet))
        load_into(unet, stage.name, adapter.tensors)
    return pix


def check_adapter(file: Path, name: str, config: TrainConfig, unet: Any = None) -> Adapter:
    """Read an adapter to build upon; CheckpointError unless it is the one config describes."""
    if not file.is_file():
        raise CheckpointError(
            f"no {name} adapter at {file}; train that stage first, or name one "
            "(sem.pix_adapter, pix.start_from, sem.start_from)."
        )
    adapter = load_adapter(file)
    expected = (name, config.model.rank_of(name), config.model.alpha, ONE_STEP)
    got = (adapter.name, adapter.rank, adapter.alpha, adapter.timestep)
    if got != expected:
        raise CheckpointError(
            f"{file} is not the adapter that the configuration describes: expected kind, rank, "
            f"alpha and timestep {expected}, got {got}."
        )
    if unet is not None and adapter.base and adapter.base != base_facts(unet.config):
        raise CheckpointError(f"{file} was trained on another base ({adapter.base}).")
    return adapter


# --- checkpoints ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of one run; the newest `keep` of each stage stay."""

    folder: Path
    keep: int

    def save(
        self,
        stage: Kind,
        step: int,
        unet: nn.Module,
        optimizer: torch.optim.Optimizer,
        scaler: Any,
        critic: Critic | None = None,
    ) -> None:
        """Write where a stage stands, then remove the checkpoints that are one too many."""
        state = {
            "stage": stage,
            "step": step,
            "adapter": {key: p.detach() for key, p in parameters_of(unet, stage).items()},
            "optimizer": optimizer.state_dict(),
            "scaler": scaler.state_dict() if scaler is not None else None,
            "critic": critic.state() if critic is not None else None,
        }
        content = io.BytesIO()
        torch.save(state, content)
        self.folder.mkdir(parents=True, exist_ok=True)
        write_whole(self.folder / f"{stage}-{step:08d}", content.getvalue())
        for old in self._files(stage)[self.keep :]:
            old.unlink()

    def newest(self, stage: Kind) -> dict[str, Any] | None:
        """Read the newest readable checkpoint of a stage; None without one."""
        for file in self._files(stage):
            try:
                return torch.load(file, map_location="cpu", weights_only=True)
            except Exception as error:  # of a damaged file torch raises anything
                log.warning("%s can't be read (%s); an older one is taken", file, error)
        return None

    def _files(self, stage: Kind) -> list[Path]:
        return sorted(self.folder.glob(f"{stage}-{'[0-9]' * 8}"), reverse=True)


def load_state(
    found: dict[str, Any] | None,
    unet: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: Any,
    critic: Critic | None = None,
) -> int:
    """Go back to a checkpoint and return its step; 0 without one."""
    if found is None:
        return 0
    load_into(unet, found["stage"], found["adapter"])
    # Learning rate and the like stay as configured.
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": found["optimizer"]["state"], "param_groups": groups})
    if scaler is not None and found["scaler"]:
        scaler.load_state_dict(found["scaler"])
    if critic is not None and found.get("critic"):
        critic.load(found["critic"])
    log.info("%s: resumed at step %d", found["stage"], found["step"])
    return found["step"]


# --- journals -------------------------------------------------------------------------------------


def append_row(file: Path, row: Mapping[str, Any]) -> None:
    """Append one line of JSON, with null for nan and inf."""
    finite = {
        k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()
    }
    with file.open("ab") as journal:
        journal.write(json.dumps(finite).encode() + b"\n")


def truncate(file: Path, stage: Kind, step: int) -> None:
    """Cut off the rows of steps that are about to be taken again, and what a kill left torn."""
    lines = file.read_bytes().splitlines(keepends=True) if file.is_file() else []
    kept = 0
    while kept < len(lines) and _place(lines[kept]) <= (KINDS.index(stage), step):
        kept += 1
    if kept < len(lines):
        write_whole(file, b"".join(lines[:kept]))


def _place(line: bytes) -> tuple[float, float]:
    """(the stage's number, step) of a row; beyond all of them for what is no row."""
    try:
        row = json.loads(line) if line.endswith(b"\n") else {}
        return KINDS.index(row["stage"]), row["step"]
    except (ValueError, KeyError, TypeError):
        return math.inf, math.inf
