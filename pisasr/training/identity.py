"""What a run is, so that a later start can tell whether it is the same one."""

import json
import os
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import Any

from pisasr.config import ConfigError, TrainConfig, to_yaml
from pisasr.data.photos import Photos

# What no trained byte depends on. The photos are compared themselves, so that their folder may move.
MAY_CHANGE = (
    *("run.log_every", "run.checkpoint_every", "run.keep_checkpoints", "run.output"),
    *("data.workers", "data.keep_in_memory", "data.photos", "validation.", "tracking."),
)
RUN = "run.json"


def identity_of(config: TrainConfig, photos: Photos, processes: int) -> dict[str, Any]:
    """Whatever the trained bytes depend on: settings as "section.key", the photos, the number of processes."""
    settings = {key: value for key, value in flatten(asdict(config)).items() if not key.startswith(MAY_CHANGE)}
    return {**settings, "photos": fingerprint(photos.photos), "processes": processes}


def fingerprint(photos: list[Path]) -> str:
    """Names and sizes in their order: another set, or another order, is another training."""
    lines = [f"{path.name} {path.stat().st_size if path.is_file() else 'gone'}" for path in photos]
    return f"{len(photos)} photos, {sha256(os.fsencode(chr(10).join(lines))).hexdigest()[:16]}"


def claim(output: Path, config: TrainConfig, identity: dict[str, Any], allow_change: bool = False) -> None:
    """Take the output folder: a new run writes what it is there, a continued one must be the same.

    Raises ConfigError with every difference, unless they are allowed.
    """
    (output / "adapters").mkdir(parents=True, exist_ok=True)
    file = output / RUN
    identity = json.loads(json.dumps(identity))  # as it comes back: lists for tuples
    if file.is_file():
        before = json.loads(file.read_text())
        changed = [key for key in {**identity, **before} if before.get(key) != identity.get(key)]
        if changed and not allow_change:
            listed = "; ".join(f"{key}: {before.get(key)} -> {identity.get(key)}" for key in changed)
            raise ConfigError(
                f"{output} holds a run that differs ({listed}); choose another run.output, or add --allow_change."
            )
    file.write_text(json.dumps(identity, indent=1) + "\n")
    (output / "config.yaml").write_text(to_yaml(config))


def flatten(node: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} as {"a.b": 1}."""
    flat: dict[str, Any] = {}
    for key, value in node.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat
