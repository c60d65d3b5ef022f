"""Infer, out of a published folder: what `DiffusionPipeline.from_pretrained` loads there in place
of a base's parts.

A published folder has adapters, and of the base its name alone. diffusers wants components: there
is one, "adapters", which brings the base along. pipeline.py, beside it, has `PublishedPipeline`
under the name of what comes of it.
"""

import os
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline, ModelMixin

from pisasr.models.bases import HUB_OPTIONS
from pisasr.pipeline import PiSASRPipeline


class AdaptersOnBase(ModelMixin):
    """The adapters of a published folder on the base that it names: every network of a pipeline, as
    one component.
    """

    def __init__(self, pipe: PiSASRPipeline):
        super().__init__()
        self.pipe = pipe
        for name in ("vae", "text_encoder", "unet_pix", "unet"):
            self.add_module(name, getattr(pipe, name))

    @classmethod
    def from_pretrained(
        cls,
        model: str | os.PathLike,
        subfolder: str | None = None,
        torch_dtype: torch.dtype | None = None,
        dtype: torch.dtype | None = None,
        **options: Any,
    ) -> "AdaptersOnBase":
        """model: a published folder or its hub id, with subfolder "adapters", or this subfolder's
        path.

        options: of the hub; what diffusers tells its own models beside (variant, device_map, ...)
        is not looked at.
        """
        folder = model if subfolder else Path(model).parent
        hub = {
            name: value
            for name, value in options.items()
            if name in HUB_OPTIONS and value is not None
        }
        return cls(
            PiSASRPipeline.from_pretrained(
                folder, torch_dtype=dtype or torch_dtype or torch.float32, **hub
            )
        )

    def to(self, *args: Any, **kwargs: Any) -> "AdaptersOnBase":
        """As `PiSASRPipeline.to`."""
        self.pipe.to(*args, **kwargs)
        return self


class PublishedPipeline(DiffusionPipeline):
    """What diffusers makes of a published folder. It is made into a PiSASRPipeline, and never
    exists itself.
    """

    def __new__(cls, adapters: AdaptersOnBase, **described: Any) -> Any:
        """The pipeline that the component brought along."""
        return adapters.pipe

    def __init__(
        self,
        adapters: AdaptersOnBase,
        base: str | None = None,
        variant: str | None = None,
        revision: str | None = None,
        color_fix: str = "adain",
    ):
        """For diffusers to read: the component that it shall load, and what else model_index.json
        holds.
        """
