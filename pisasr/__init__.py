"""PiSA-SR: one-step super-resolution with one strength for fidelity and one for detail."""

from importlib import import_module
from typing import Any

from pisasr.models import torchvision_import  # noqa: F401  before any import of torchvision

__version__ = "0.1.0"
__all__ = ["PiSASRPipeline", "__version__", "load_config"]

_MODULES = {"PiSASRPipeline": "pisasr.pipeline", "load_config": "pisasr.training.config"}


def __getattr__(name: str) -> Any:
    """Import what is named on first use (PEP 562): `import pisasr` doesn't wait for torch."""
    if name not in _MODULES:
        raise AttributeError(f"module 'pisasr' has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)
