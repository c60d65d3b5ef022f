"""PiSA-SR: a sharp photo from a poor one in one step, with one strength for fidelity and one for
detail.

Names here are looked up when they are first used (PEP 562), so that `import pisasr` doesn't wait
for torch.
"""

from importlib import import_module
from typing import Any

from pisasr._compat import repair_on_first_import

__version__ = "0.1.0"
__all__ = ["PiSASRPipeline", "__version__", "load_config"]

_HOMES = {
    "PiSASRPipeline": "pisasr.pipeline",
    "load_config": "pisasr.config",
}

repair_on_first_import()


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'pisasr' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
