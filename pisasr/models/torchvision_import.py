"""Let torchvision be imported beside a CPU-only torch.

PyPI's torchvision is linked against CUDA: beside a CPU-only torch its operators don't load, `import
torchvision` fails, and diffusers, transformers, peft and lpips, which import it wherever it is
installed, fail with it (seen with torch 2.13.0+cpu and torchvision 0.28.0). Its models and
transforms need no more than a declaration of the two operators that its Python code registers.
"""

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any


class DeclareOperators:
    """Finds no module; declares operators before torchvision's first import."""

    library: Any = None  # torch forgets the operators when this is collected

    @classmethod
    def find_spec(cls, name: str, path: object = None, target: object = None) -> None:
        if name != "torchvision":
            return
        sys.meta_path.remove(cls)
        spec = find_spec(name)
        compiled = Path(spec.origin or "").with_name("_C.so") if spec else None
        if compiled is None or not compiled.is_file():
            return
        import torch

        try:
            torch.ops.load_library(compiled)
        except OSError:
            cls.library = torch.library.Library("torchvision", "DEF")
            for operator in ("nms", "qnms"):
                cls.library.define(
                    f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
                )


sys.meta_path.insert(0, DeclareOperators)
