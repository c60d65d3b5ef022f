"""Compute diffusers' layers in fewer steps to the same result; run offloading's hooks by hand.

`use_fast_layers` changes no weight and no name of one: a network is saved and loaded as before.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn
from torch.nn import functional as F


def use_fast_layers(network: nn.Module) -> None:
    """Give the layers known here their faster forms, for good."""
    for module in network.modules():
        if type(module) is Upsample2D and _is_plain(module):
            module.__class__ = FoldedUpsample2D


def set_memory_format(network: nn.Module) -> None:
    """Lay weights out channels_last on a CPU, but for group norms in float32.

    Convolutions then read maps as they lie. PyTorch's group norm of such maps on a CPU is coarse:
    errors of 1e-4 where a channel's mean is five times its spread, 160 times the usual ones in
    float32, and lost in the rounding of half precision.
    """
    norms = [module for module in network.modules() if isinstance(module, nn.GroupNorm)]
    coarse = any(norm.weight is not None and norm.weight.itemsize > 2 for norm in norms)
    on_cpu = all(weight.device.type == "cpu" for weight in network.parameters())
    layout = torch.channels_last if on_cpu and not coarse else torch.contiguous_format
    network.to(memory_format=layout)  # type: ignore[call-overload]  # torch's stubs


class FoldedUpsample2D(Upsample2D):
    """Nearest-neighbor enlargement by two and the 3x3 convolution behind it, as one transposed
    convolution: 4/9 of the arithmetic.

    If the output is to have an odd side, or the convolution carries an adapter, it is computed in
    two steps as before.
    """

    def forward(
        self, hidden_states: Tensor, output_size: Any = None, *args: Any, **kwargs: Any
    ) -> Tensor:
        """x [B, c, h, w] -> [B, c', 2 h, 2 w], or output_size."""
        doubled = tuple(2 * side for side in hidden_states.shape[-2:])
        if type(self.conv) is not nn.Conv2d or tuple(output_size or doubled) != doubled:
            return super().forward(hidden_states, output_size, *args, **kwargs)
        return enlarge(hidden_states, self.conv)


def enlarge(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """conv(x enlarged by two): [B, c, h, w] -> [B, c', 2 h, 2 w]; conv: 3x3, padding 1.

    Row o of the output sees the rows o - 1, o, o + 1 of the enlarged map, which are the rows
    (o - 1) // 2 to (o + 1) // 2 of x: a transposed convolution of stride 2 whose taps are sums of
    neighboring ones, 4x4 in all.
    """
    with run_offload_hooks(conv):
        return F.conv_transpose2d(x, _taps(conv, layout_of(x)), conv.bias, stride=2, padding=1)


def layout_of(x: Tensor) -> torch.memory_format:
    """channels_last or contiguous, as a map [B, c, h, w] lies."""
    together = x.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if together else torch.contiguous_format


def _taps(conv: nn.Conv2d, layout: torch.memory_format) -> Tensor:
    """What `enlarge` convolves with [c, c', 4, 4], summed in float32.

    Cached beside the weight until that is moved or changed; made anew where it learns, and where
    torch.export traces it, which has no pointers.
    """
    weight = conv.weight
    anew = (torch.is_grad_enabled() and weight.requires_grad) or torch.compiler.is_compiling()
    version = 0 if weight.is_inference() else weight._version
    key = None if anew else (weight.data_ptr(), version, weight.dtype, weight.device, layout)
    cached = conv.__dict__.get("_cached_taps")
    if cached is not None and cached[0] == key:
        return cached[1]
    wide = F.pad(weight.to(torch.promote_types(weight.dtype, torch.float32)), (1, 1, 1, 1))
    taps = (4 * F.avg_pool2d(wide, 2, 1)).flip(2, 3).transpose(0, 1)
    taps = taps.to(weight.dtype).contiguous(memory_format=layout)
    if not (anew or weight.is_inference() or torch.is_inference_mode_enabled()):
        conv.__dict__["_cached_taps"] = key, taps
    return taps


def _is_plain(layer: Upsample2D) -> bool:
    conv = getattr(layer, "conv", None)
    return (
        type(conv) is nn.Conv2d
        and (conv.kernel_size, conv.padding, conv.stride) == ((3, 3), (1, 1), (1, 1))
        and (conv.groups, conv.padding_mode) == (1, "zeros")
        and layer.use_conv
        and not layer.use_conv_transpose
        and layer.norm is None
        and layer.interpolate
    )


@contextmanager
def run_offload_hooks(module: Any) -> Iterator[None]:
    """Run what offloading does before and after a module's forward, where its parts are called
    without it: accelerate's hooks (model, sequential) and diffusers' (group, layerwise casting).
    """
    hooks = _hooks_of(module)
    for hook in hooks:
        hook.pre_forward(module)
    try:
        yield
    finally:
        for hook in reversed(hooks):
            hook.post_forward(module, None)


def has_hooks(module: Any) -> bool:
    """Whether offloading or casting hooks a module."""
    return bool(_hooks_of(module))


def _hooks_of(module: Any) -> list[Any]:
    own = getattr(module, "_hf_hook", None)
    registry = getattr(module, "_diffusers_hook", None)
    return [*([own] if own else []), *(registry.hooks.values() if registry else [])]
