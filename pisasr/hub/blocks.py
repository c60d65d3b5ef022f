"""Infer, in a modular pipeline of diffusers': two blocks, so that strengths can be moved without
looking again.

look    image -> looked      the encode and both predictions
mix     looked -> images     at two strengths, for a decode alone
"""

from dataclasses import fields
from typing import Any

import torch
from diffusers.modular_pipelines import (
    ComponentSpec,
    InputParam,
    ModularPipelineBlocks,
    OutputParam,
    SequentialPipelineBlocks,
)

from pisasr.hub.loading import AdaptersOnBase
from pisasr.options import Options
from pisasr.pipeline import Looked

MIXED = ("output_type", "color_fix")  # options of the second half


class LookBlock(ModularPipelineBlocks):
    """`PiSASRPipeline.look`."""

    @property
    def description(self) -> str:
        return "Encodes one picture and predicts what each adapter would take from it."

    @property
    def expected_components(self) -> list[ComponentSpec]:
        return [ComponentSpec("adapters", AdaptersOnBase)]

    @property
    def inputs(self) -> list[InputParam]:
        image = InputParam(
            "image", required=True, description="One picture: PIL, an array or a tensor."
        )
        return [
            image,
            *(_option(field.name) for field in fields(Options) if field.name != "output_type"),
        ]

    @property
    def intermediate_outputs(self) -> list[OutputParam]:
        return [
            OutputParam("looked", type_hint=Looked, description="All that strengths choose from.")
        ]

    @torch.no_grad()
    def __call__(self, components: Any, state: Any) -> tuple[Any, Any]:
        block_state = self.get_block_state(state)
        options = block_state.as_dict()
        image = options.pop("image")
        block_state.looked = components.adapters.pipe.look(image, **options)
        self.set_block_state(state, block_state)
        return components, state


class MixBlock(ModularPipelineBlocks):
    """`PiSASRPipeline.mix`."""

    @property
    def description(self) -> str:
        return "Makes the picture at two strengths, for a decode alone."

    @property
    def expected_components(self) -> list[ComponentSpec]:
        return [ComponentSpec("adapters", AdaptersOnBase)]

    @property
    def inputs(self) -> list[InputParam]:
        return [
            InputParam(
                "looked", type_hint=Looked, required=True, description="What the other block saw."
            ),
            InputParam(
                "lambda_pix",
                default=1.0,
                description="How much of noise, blur and blocks is taken away.",
            ),
            InputParam(
                "lambda_sem",
                default=1.0,
                description="How much detail is added; a number or a map [H, W].",
            ),
            *map(_option, MIXED),
        ]

    @property
    def intermediate_outputs(self) -> list[OutputParam]:
        return [
            OutputParam("images", type_hint=list, description="A list with the repaired picture.")
        ]

    @torch.no_grad()
    def __call__(self, components: Any, state: Any) -> tuple[Any, Any]:
        block_state = self.get_block_state(state)
        block_state.images = [components.adapters.pipe.mix(**block_state.as_dict())]
        self.set_block_state(state, block_state)
        return components, state


class PiSASRBlocks(SequentialPipelineBlocks):
    """One picture from end to end; `sub_blocks["mix"]` alone moves the strengths."""

    block_names = ["look", "mix"]
    block_classes = [LookBlock, MixBlock]

    @property
    def description(self) -> str:
        return "PiSA-SR: repairs and enlarges a photo in one step, with one strength for fidelity and one for detail."


def _option(name: str) -> InputParam:
    """An option of `PiSASRPipeline.__call__`, which explains it, with its default."""
    (field,) = (field for field in fields(Options) if field.name == name)
    return InputParam(name, default=field.default, description="As PiSASRPipeline.__call__ has it.")
