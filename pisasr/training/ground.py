"""Photo to adapter, files on either side of a stage: the adapters that it stands on, and the one
that it leaves.
"""

from collections.abc import Callable
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from torch import nn

from pisasr.config import TrainConfig
from pisasr.errors import CheckpointError
from pisasr.method.adapters import load_into, parameters_of
from pisasr.method.model import ONE_STEP
from pisasr.models.weights import Adapter, base_facts, load_adapter
from pisasr.training.stages import Kind, Stage


def on_main(look: Callable[[], Any]) -> Any:
    """What the main process finds on its disk, for all of them: only its disk counts."""
    return broadcast_object_list([look() if PartialState().is_main_process else None])[0]


def adapter_file(config: TrainConfig, name: str) -> Path:
    """Where an adapter is left: OUTPUT/adapters/NAME.safetensors."""
    return Path(config.run.output) / "adapters" / f"{name}.safetensors"


def ground_of(stage: Stage, config: TrainConfig) -> dict[str, Path]:
    """The files of the adapters that a stage stands on."""
    return {
        name: Path(stage.settings.init_from or adapter_file(config, name))
        for name in stage.stands_on
    }


def fill_adapters(stage: Stage, unet: nn.Module, config: TrainConfig) -> dict[str, Adapter]:
    """Load what the stage stands on, or starts from, into the UNet. Returns the former, by name."""
    sources = ground_of(stage, config)
    if start := stage.settings.start_from or (not stage.stands_on and stage.settings.init_from):
        sources[stage.learns] = Path(start)
    loaded = {}
    for name, path in sources.items():
        adapter = loaded[name] = on_main(partial(check_adapter, path, name, config))
        base = base_facts(unet.config)  # type: ignore[arg-type]  # nn.Module says nothing of its config
        if adapter.base and adapter.base != base:
            raise CheckpointError(
                f"{path} was trained on another base ({adapter.base}) than this one ({base})."
            )
        load_into(unet, name, adapter.tensors)
    return {name: loaded[name] for name in stage.stands_on}


def digests_of(stage: Stage, config: TrainConfig) -> dict[str, str | None]:
    """SHA-256 of each file that the stage stands on; None for one that isn't there."""

    def look() -> dict[str, str | None]:
        files = ground_of(stage, config).items()
        return {
            name: sha256(path.read_bytes()).hexdigest() if path.is_file() else None
            for name, path in files
        }

    return on_main(look)


def check_adapter(path: Path, name: str, config: TrainConfig) -> Adapter:
    """Read an adapter that training is to build upon. CheckpointError unless it is the one that
    config describes.
    """
    if not path.is_file():
        where = "pix.init_from, sem.init_from" if name == "pix" else "sem.start_from"
        raise CheckpointError(
            f"no {name} adapter at {path}; train that stage first, or name one that is there ({where})."
        )
    adapter = load_adapter(path)
    wanted = {
        "kind": name,
        "rank": rank_of(name, config),
        "alpha": config.model.alpha,
        "timestep": ONE_STEP,
    }
    there = {
        "kind": adapter.name,
        "rank": adapter.rank,
        "alpha": adapter.alpha,
        "timestep": adapter.timestep,
    }
    if wrong := [key for key in wanted if wanted[key] != there[key]]:
        told = ", ".join(f"{key} {there[key]}, wanted {wanted[key]}" for key in wrong)
        raise CheckpointError(
            f"{path} is another adapter than the configuration describes: {told}."
        )
    return adapter


def adapter_of(unet: nn.Module, name: Kind, config: TrainConfig) -> Adapter:
    """The live adapter as it goes to disk."""
    tensors = {
        key: p.detach().float().cpu().clone() for key, p in parameters_of(unet, name).items()
    }
    base = base_facts(unet.config)  # type: ignore[arg-type]
    return Adapter(name, rank_of(name, config), config.model.alpha, tensors, base, ONE_STEP)


def rank_of(name: str, config: TrainConfig) -> int:
    return {"pix": config.model.rank_pix, "sem": config.model.rank_sem}[name]
