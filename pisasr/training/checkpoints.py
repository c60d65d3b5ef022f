"""Photo to adapter, on disk: a run's state, so that a crash costs the steps since the last checkpoint and no more.

    OUTPUT/checkpoints/pix-00000120/state.safetensors    adapter, Adam's moments
                                    state.json           stage, step, counters
                                    manifest.json        size and SHA-256 of the two, written last

A checkpoint is written beside its place, flushed to the disk and renamed; older ones go afterwards. Whatever the moment
of a crash, the newest whole one is still there, and whoever reads trusts nothing that its manifest doesn't vouch for.
`Accelerator.save_state` promises neither.
"""

import json
import logging
import os
import shutil
from collections import defaultdict
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from safetensors.torch import load as tensors_of
from safetensors.torch import save as bytes_of
from torch import Tensor

from pisasr.files import write_through

log = logging.getLogger(__name__)

TENSORS, STATE, MANIFEST = "state.safetensors", "state.json", "manifest.json"
UNFINISHED = ".unfinished-"


@dataclass
class Checkpoint:
    """Where a stage stood after a step. `state` is whatever JSON can hold exactly."""

    stage: str
    step: int
    tensors: dict[str, Tensor] = field(repr=False)
    state: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.stage}-{self.step:08d}"


def by_kind(tensors: dict[str, Tensor]) -> defaultdict[str, dict[str, Tensor]]:
    """{"kind.rest": tensor} as {"kind": {"rest": tensor}}; a kind that is not there is empty."""
    kinds: defaultdict[str, dict[str, Tensor]] = defaultdict(dict)
    for key, tensor in tensors.items():
        kind, rest = key.split(".", 1)
        kinds[kind][rest] = tensor
    return kinds


class Broken(Exception):
    """A checkpoint whose files are not what its manifest says."""


class Checkpoints:
    """The checkpoints of one run; the newest `keep` of each stage stay. Without one of the `wanted` keys in its state,
    a checkpoint counts as broken: another version wrote it, or a person did."""

    def __init__(self, folder: Path, keep: int, wanted: tuple[str, ...] = ()):
        self.folder, self.keep, self.wanted = folder, keep, wanted

    def save(self, checkpoint: Checkpoint) -> Path:
        """Write one, then remove those that it makes superfluous. OSError leaves the others as they were."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._remove_unfinished()
        unfinished = self.folder / f"{UNFINISHED}{checkpoint.name}"
        head = {"stage": checkpoint.stage, "step": checkpoint.step, **checkpoint.state}
        contents = {
            TENSORS: bytes_of({key: tensor.contiguous() for key, tensor in checkpoint.tensors.items()}),
            STATE: as_json(head),
        }
        try:
            unfinished.mkdir()
            for name, content in contents.items():
                write_through(unfinished / name, content)
            manifest = {name: {"bytes": len(c), "sha256": sha256(c).hexdigest()} for name, c in contents.items()}
            write_through(unfinished / MANIFEST, as_json(manifest))
            flush_folder(unfinished)
        except OSError:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise
        place = self.folder / checkpoint.name
        if place.exists():  # a broken one that was passed over, and its step has come again
            shutil.rmtree(place)
        os.replace(unfinished, place)
        flush_folder(self.folder)
        for old in self._places(checkpoint.stage)[self.keep :]:
            os.replace(old, gone := self.folder / f"{UNFINISHED}{old.name}")  # so that half of one is never met
            shutil.rmtree(gone)
        return place

    def newest(self, stage: str) -> Checkpoint | None:
        """The newest whole checkpoint of a stage; broken ones are named and passed over. None if there is none."""
        for place in self._places(stage):
            try:
                found = read_checkpoint(place)
                if missing := [key for key in self.wanted if key not in found.state]:
                    raise Broken(f"{STATE} says nothing of {', '.join(missing)}")
                return found
            except Broken as fault:
                log.warning("%s is broken (%s) and is passed over", place, fault)
        return None

    def _places(self, stage: str) -> list[Path]:
        return sorted(self.folder.glob(f"{stage}-{'[0-9]' * 8}"), reverse=True)

    def _remove_unfinished(self) -> None:
        for left in self.folder.glob(f"{UNFINISHED}*"):
            shutil.rmtree(left, ignore_errors=True)


def read_checkpoint(place: Path) -> Checkpoint:
    """Read one and hold every byte against its manifest. Raises Broken."""
    try:
        manifest = json.loads((place / MANIFEST).read_bytes())
        contents = {name: (place / name).read_bytes() for name in (TENSORS, STATE)}
        for name, content in contents.items():
            if manifest[name]["sha256"] != sha256(content).hexdigest():
                raise Broken(f"{name} has changed")
        state = json.loads(contents[STATE])
        return Checkpoint(state.pop("stage"), state.pop("step"), tensors_of(contents[TENSORS]), state)
    except FileNotFoundError as error:
        raise Broken(f"{Path(error.filename).name} is missing") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Broken(f"{type(error).__name__}: {error}") from None


def as_json(content: dict) -> bytes:
    return (json.dumps(content, indent=1) + "\n").encode()


def flush_folder(folder: Path) -> None:
    """Wait until the disk knows the folder's entries; only POSIX can be asked to."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
