"""Compute diffusers' layers in fewer steps to the same result; call layers as offloading needs it.

`use_fast_layers` is asked once for every network that a pipeline is given. It changes no weight and
no name of one, so that a network is saved and loaded as before.

The taps of a folded enlargement are computed once for a weight set, and kept beside its convolution.
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
    """Have convolutions work on pixels whose channels lie together, on a CPU and in networks
    without group norms.

    On one core without AVX-512, float32, the embedded model's decoder takes a fifth less time so. A
    UNet would gain less, and PyTorch's group norm of such maps on a CPU is coarse: errors of 1e-4
    where a channel's mean is five times its spread, 160 times the usual ones. GPUs were not
    measured.
    """
    norms = any(isinstance(module, nn.GroupNorm) for module in network.modules())
    on_cpu = all(weight.device.type == "cpu" for weight in network.parameters())
    layout = torch.channels_last if on_cpu and not norms else torch.contiguous_format
    network.to(memory_format=layout)  # type: ignore[call-overload]  # torch's stubs


class FoldedUpsample2D(Upsample2D):
    """Nearest-neighbour enlargement by two and the 3x3 convolution behind it, as one transposed
    convolution.

    Each of four neighbouring output pixels sees two by two input pixels and no more, so 4/9 of the
    arithmetic is left and the enlarged map is never made. Where the output is to have an odd side,
    or the convolution carries an adapter, it is computed in two steps as before.
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
    """conv(x enlarged by two, each pixel four times), [B, c, h, w] -> [B, c', 2 h, 2 w]; conv: 3x3,
    padding 1.

    Row o of the output sees the rows o - 1, o, o + 1 of the enlarged map, which are the rows (o -
    1) // 2 to (o + 1) // 2 of x: a transposed convolution of stride 2 whose taps are sums of
    neighbouring ones, 4x4 in all.
    """
    with run_offload_hooks(conv):
        together = x.is_contiguous(memory_format=torch.channels_last)
        layout = torch.channels_last if together else torch.contiguous_format
        taps = _kept_taps(conv, layout)
        return F.conv_transpose2d(x, taps, conv.bias, stride=2, padding=1)


def _taps(conv: nn.Conv2d) -> Tensor:
    """What `enlarge` convolves with, summed in float32. [c, c', 4, 4]"""
    weight = conv.weight.to(torch.promote_types(conv.weight.dtype, torch.float32))
    taps = 4 * F.avg_pool2d(F.pad(weight, (1, 1, 1, 1)), 2, 1)
    return taps.flip(2, 3).transpose(0, 1).to(conv.weight.dtype)


def _kept_taps(conv: nn.Conv2d, layout: torch.memory_format) -> Tensor:
    """Its taps, kept beside the weight that they were made of; anew where the weight learns."""
    weight = conv.weight
    if (torch.is_grad_enabled() and weight.requires_grad) or weight.is_inference():
        return _taps(conv).contiguous(memory_format=layout)
    key = weight.data_ptr(), weight._version, weight.dtype, weight.device, layout
    kept = conv.__dict__.get("_kept_taps")
    if kept is None or kept[0] != key:
        kept = conv.__dict__["_kept_taps"] = key, _taps(conv).contiguous(memory_format=layout)
    return kept[1]


def _is_plain(layer: Upsample2D) -> bool:
    conv = getattr(layer, "conv", None)
    return (
        type(conv) is nn.Conv2d
        and (conv.kernel_size, conv.padding, conv.stride, conv.groups, conv.padding_mode)
        == ((3, 3), (1, 1), (1, 1), 1, "zeros")
        and layer.use_conv
        and not layer.use_conv_transpose
        and layer.norm is None
        and layer.interpolate
    )


@contextmanager
def run_offload_hooks(*modules: Any) -> Iterator[None]:
    """What offloading does before and after a module's forward, for modules whose parts are called
    without it.

    Model and sequential offload are accelerate's hooks, group offload and layerwise casting are
    diffusers'.
    """
    hooks = [(hook, module) for module in modules for hook in _hooks_of(module)]
    for hook, module in hooks:
        hook.pre_forward(module)
    try:
        yield
    finally:
        for hook, module in reversed(hooks):
            hook.post_forward(module, None)


def has_hooks(module: Any) -> bool:
    """Whether offloading or casting has a hand in a module."""
    return bool(_hooks_of(module))


def _hooks_of(module: Any) -> list[Any]:
    own = getattr(module, "_hf_hook", None)
    registry = getattr(module, "_diffusers_hook", None)
    return [
        *([own] if own is not None else []),
        *(registry.hooks.values() if registry is not None else []),
    ]
