"""Under every journey: lets torchvision be imported beside a CPU-only torch.

torchvision's wheels from PyPI are linked against CUDA libraries. Beside a CPU-only torch its
operators don't load, and then `import torchvision` fails on the first operator that its Python code
registers. transformers, diffusers and peft fail with it, although they can do without torchvision.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

SCHEMAS = (  # the two operators that torchvision's Python code takes for granted
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)

_report: str | None = None
_stubs = None  # torch forgets the operators when their Library is collected


def repair_torchvision() -> str:
    """Make an installed torchvision importable and say what was found: "absent", "native" or
    "stubbed".

    "native": nothing was changed, because its own operators load. "stubbed": they don't, so `nms`
    and `qnms` were declared without an implementation: its models and transforms work,
    `torchvision.ops.nms` raises. Asking again costs nothing and gives the same answer. Without a
    torchvision, torch isn't imported either.
    """
    global _report
    if _report is None:
        _report = _repair()
    return _report


def repair_on_first_import() -> None:
    """Have `repair_torchvision` run just before torchvision is first imported, by whomever; costs
    nothing until then.

    This is why no module of pisasr has to mind the order of its imports.
    """
    if not any(isinstance(finder, _Repairer) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Repairer())


class _Repairer:
    """Stands first in `sys.meta_path` and finds nothing itself: being asked for torchvision is its
    cue.
    """

    called = False  # the repair looks for torchvision too, and so asks here again

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name == "torchvision" and not self.called:
            self.called = True
            repair_torchvision()
        return None


def _repair() -> str:
    global _stubs
    spec = find_spec("torchvision")
    if spec is None:
        return "absent"

    import torch

    folders = [Path(folder) for folder in spec.submodule_search_locations or ()]
    libraries = [so for folder in folders for so in sorted(folder.glob("_C*.so"))]
    declared = hasattr(
        torch.ops.torchvision, "nms"
    )  # torchvision was imported before us, or somebody else repaired it
    if declared or not libraries or any(_loads(torch, so) for so in libraries):
        return "native"
    _stubs = torch.library.Library("torchvision", "DEF")
    for schema in SCHEMAS:
        _stubs.define(schema)
    return "stubbed"


def _loads(torch: Any, so: Path) -> bool:
    try:
        torch.ops.load_library(so)
    except OSError:
        return False
    return True
