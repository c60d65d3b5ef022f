"""Measure, without a clock: FLOPs, operations, UNet calls and bytes held, on tensors that may hold
no data.

On the meta device the pipeline's whole journey runs without arithmetic: 4096 px of Stable Diffusion
cost seconds and no memory, and the numbers are the same on every machine.
"""

import weakref
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

aten = torch.ops.aten


class Counted(NamedTuple):
    """Of one call: FLOPs (two for each multiplied and added pair, of convolutions, products and
    attention), operations, calls of a UNet, and the most bytes held at once beside weights and what
    was there before."""

    flops: int
    operations: int
    unet_calls: int
    peak_bytes: int


def count(
    call: Callable[[], object], device: str = "meta", unets: tuple[nn.Module, ...] = ()
) -> Counted:
    """Run `call` once and count what it does; bytes are those of tensors on `device`."""
    counter, calls = Counter(device), []
    hooks = [unet.register_forward_pre_hook(lambda *_: calls.append(1)) for unet in set(unets)]
    try:
        with counter, _EfficientAttention():
            call()
    finally:
        for hook in hooks:
            hook.remove()
    return Counted(counter.flops, counter.operations, len(calls), counter.peak)


class Counter(TorchDispatchMode):
    """Sees every operation below autograd. Tensors without data answer "is it so?" with yes, and
    come to the CPU as zeros, so that a call which looks at its results goes on."""

    def __init__(self, device: str):
        super().__init__()
        self.flops = self.operations = self.held = self.peak = 0
        self._device = device

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        self.operations += 1
        if args and isinstance(args[0], Tensor) and args[0].is_meta:
            if func is aten._local_scalar_dense.default:
                return 1
            if func is aten._to_copy.default and kwargs.get("device", args[0].device).type == "cpu":
                return torch.zeros(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
        out = func(*args, **kwargs)
        self.flops += _flops(func._overloadpacket, args, kwargs, out)
        given = {
            x.untyped_storage()._cdata for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)
        }
        made = [
            x.untyped_storage()
            for x in tree_leaves(out)
            if isinstance(x, Tensor) and x.device.type == self._device
        ]
        for storage in {
            storage._cdata: storage for storage in made if storage._cdata not in given
        }.values():
            self.held += storage.nbytes()
            self.peak = max(self.peak, self.held)
            weakref.finalize(storage, self._release, storage.nbytes())
        return out

    def _release(self, size: int) -> None:
        self.held -= size


def _flops(operation: Any, args: Any, kwargs: Mapping[str, Any], out: Any) -> int:
    """By torch's own table, and by its formulas for attention as a CPU computes it, which the table
    leaves out.
    """
    if operation is aten._scaled_dot_product_flash_attention_for_cpu:
        return sdpa_flop_count(*(x.shape for x in args[:3]))
    if operation is aten._scaled_dot_product_flash_attention_for_cpu_backward:
        return sdpa_backward_flop_count(*(x.shape for x in args[:4]))
    formula: Any = flop_registry.get(operation)
    return formula(*args, **kwargs, out_val=out) if formula else 0


class _EfficientAttention(TorchFunctionMode):
    """Attention of tensors without data as a GPU and a CPU compute it: never with all scores at
    once.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention and args[0].is_meta:
            mask = kwargs.get("attn_mask", args[3] if len(args) > 3 else None)
            return aten._scaled_dot_product_efficient_attention(*args[:3], mask, False)[0]
        return func(*args, **kwargs)
