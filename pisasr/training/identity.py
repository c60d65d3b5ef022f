"""Photo to adapter, before and after: what a run is, told to a later start, and to whoever finds
its adapters.
"""

import json
import os
import time
from hashlib import sha256
from pathlib import Path
from typing import IO, Any

from pisasr.config import ConfigError, TrainConfig, flatten, to_yaml
from pisasr.data.photos import Photos
from pisasr.data.sources import read_sidecar
from pisasr.files import is_locked, parse_json, write_whole
from pisasr.training.stages import stages_of

# What no trained byte depends on. The photos are compared themselves, so that their folder may
# move.
MAY_CHANGE = (
    *("run.log_every", "run.checkpoint_every", "run.keep_checkpoints", "run.output"),
    *("data.workers", "data.keep_in_memory", "data.photos", "validation.", "tracking."),
)
RUN, LOCK = "run.json", ".lock"
PATIENCE_S = 30


def identity_of(
    config: TrainConfig, photos: Photos, shares: list, processes: int
) -> dict[str, Any]:
    """Whatever the trained bytes depend on: settings as "section.key", the photos, the number of
    processes.
    """
    settings = {
        key: value
        for key, value in flatten(config.model_dump()).items()
        if not key.startswith(MAY_CHANGE)
    }
    identity = {**settings, "photos": fingerprint(photos, shares), "processes": processes}
    return json.loads(json.dumps(identity))  # as it comes back from a file: lists for tuples


def fingerprint(photos: Photos, shares: list) -> str:
    """Names, sizes, captions, order and sources: whatever of the set can differ, short of reading
    every photo.
    """
    digest = sha256(json.dumps(shares).encode())
    for path in photos.photos:
        size = path.stat().st_size if path.is_file() else "gone"
        caption = read_sidecar(path) or photos.captions.get(path, "")
        digest.update(os.fsencode(f"{path.name} {size} {caption}\n"))
        if pair := photos.pairs.get(path):
            digest.update(
                repr([file and file.stat().st_size for file in (pair.lq, pair.teacher)]).encode()
            )
    return f"{len(photos)} photos, {digest.hexdigest()[:16]}"


def check_identity(output: Path, identity: dict[str, Any]) -> None:
    """ConfigError with every difference, if the folder holds a run that is another one. Writes
    nothing.
    """
    file = output / RUN
    if not file.is_file():
        return
    try:
        before = dict(parse_json(file.read_text()))
    except (ValueError, TypeError):
        raise ConfigError(
            f"{file} is broken, so nobody can tell what run this is; delete it to go on."
        ) from None
    if changed := [key for key in {**identity, **before} if before.get(key) != identity.get(key)]:
        listed = "; ".join(f"{key}: {before.get(key)} -> {identity.get(key)}" for key in changed)
        raise ConfigError(
            f"{output} holds a run that differs ({listed}); choose another run.output, or add --allow_change."
        )


def write_identity(output: Path, config: TrainConfig, identity: dict[str, Any]) -> None:
    """Say what is being trained here: run.json for `check_identity`, config.yaml for people."""
    write_whole(output / RUN, json.dumps(identity, indent=1) + "\n")
    write_whole(output / "config.yaml", to_yaml(config))


def lock(output: Path) -> IO:
    """Keep other runs out of the folder while this process lives (or the file returned is open).

    One that was just asked to stop may still be saving, so it is waited for a while.
    """
    try:
        (output / "adapters").mkdir(parents=True, exist_ok=True)
        file = (output / LOCK).open("w")
    except OSError as error:
        raise ConfigError(
            f"run.output={output} can't be written into ({error.strerror}); choose another."
        ) from None
    end = time.monotonic() + PATIENCE_S
    while not is_locked(file):
        if time.monotonic() > end:
            raise ConfigError(
                f"another process trains into {output}; wait for it, or choose another run.output."
            )
        time.sleep(0.2)
    return file


def write_card(output: Path, config: TrainConfig) -> None:
    """Write OUTPUT/adapters/README.md, a Hugging Face model card, from what was configured."""
    rows = []
    for stage in stages_of(config):
        settings = stage.settings
        losses = ", ".join(f"{loss} {weight:g}" for loss, weight in settings.losses.items())
        batch = f"batch {settings.batch_size} of {config.data.crop_px} px"
        rows.append(f"| {stage.name} | {settings.steps} | {batch} | {losses} | {settings.lr:g} |")
    base = config.model.pretrained_model or "pisasr's embedded base"
    text = CARD.format(base=base, stages="\n".join(rows), config=to_yaml(config).strip())
    write_whole(output / "adapters" / "README.md", text)


CARD = """---
library_name: pisasr
pipeline_tag: image-to-image
tags: [super-resolution, pisa-sr, lora]
---
# PiSA-SR adapters

Two LoRA adapters for one-step super-resolution (arXiv:2412.03017) on {base}: `pix.safetensors` takes degradation away,
`sem.safetensors`, which needs the former, adds detail.

| stage | steps | samples | losses | learning rate |
|---|---|---|---|---|
{stages}

```sh
python scripts/infer.py --pretrained_model BASE --adapters FOLDER_OF_THIS_FILE --input PHOTOS --output results
```

Every setting of the run:

```yaml
{config}
```
"""
