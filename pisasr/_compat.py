"""Lets torchvision be imported beside a CPU-only torch.

torchvision's wheels from PyPI are linked against CUDA libraries. Beside a CPU-only torch its operators don't load, and
then `import torchvision` fails on the first operator that its Python code registers. transformers, diffusers and peft
fail with it, although they need no torchvision at all.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

SCHEMAS = (  # the two operators that torchvision's Python code takes for granted
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)

_state: str | None = None
_stubs = None  # torch forgets the operators when their Library is collected


def repair_torchvision() -> str:
    """Make an installed torchvision importable; say "absent", "native" or "stubbed".

    "native": its own operators load, nothing was changed. "stubbed": they don't, so `nms` and `qnms` were declared
    without an implementation: models, transforms and lpips work, `torchvision.ops.nms` raises. Asking again costs
    nothing and gives the same answer. Without torchvision, torch isn't imported either.
    """
    global _state
    if _state is None:
        _state = _repair()
    return _state


def repair_on_first_import() -> None:
    """Have `repair_torchvision` run just before whoever comes first imports torchvision; costs nothing until then."""
    if "torchvision" not in sys.modules and not any(isinstance(f, _Repairer) for f in sys.meta_path):
        sys.meta_path.insert(0, _Repairer())


class _Repairer:
    """Sits in `sys.meta_path`, finds nothing itself, and leaves when torchvision is asked for."""

    def find_spec(self, name, path=None, target=None):
        if name == "torchvision":
            sys.meta_path.remove(self)
            repair_torchvision()
        return None


def _repair() -> str:
    global _stubs
    if "torchvision" in sys.modules:  # imported already, so its operators are there
        return "native"
    spec = find_spec("torchvision")
    if spec is None or not spec.submodule_search_locations:
        return "absent"

    import torch

    libraries = [so for folder in spec.submodule_search_locations for so in sorted(Path(folder).glob("_C*.so"))]
    if any(_loads(torch, so) for so in libraries):
        return "native"
    _stubs = torch.library.Library("torchvision", "DEF")
    for schema in SCHEMAS:
        _stubs.define(schema)
    return "stubbed"


def _loads(torch, so: Path) -> bool:
    try:
        torch.ops.load_library(so)
    except OSError:
        return False
    return True
