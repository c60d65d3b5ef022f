"""Two LoRAs, "pix" and "sem", on one UNet: attach, switch, freeze, merge. The one file on peft."""

import copy
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MethodType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pisasr.errors import CheckpointError, ModelError

if TYPE_CHECKING:
    from pisasr.models.weights import Adapter

# Which layers learn, as published (PiSA-SR 9c76e12): every convolution and every attention or
# feed-forward projection.
TARGETS = "to_k to_q to_v to_out.0 conv proj_in proj_out ff.net.0.proj ff.net.2".split()


def target_modules(unet: nn.Module) -> list[str]:
    """Name the layers that carry an adapter, by the published rule, on a bare UNet or not.

    A layer is one if the name of its weight holds one of TARGETS and neither "norm" nor "bias"; the
    timestep's layers are therefore none.
    """
    found = []
    for weight, _ in unet.named_parameters():
        if not weight.endswith(".weight") or ".lora_" in weight:
            continue
        name = weight.removesuffix(".weight").removesuffix(".base_layer")
        if "norm" not in name and "bias" not in name and any(t in name for t in TARGETS):
            found.append(name)
    return found


def attach(unet: nn.Module, name: str, rank: int, alpha: float) -> None:
    """Add a fresh adapter that changes nothing yet: A is drawn from N(0, 1/rank), B is zero.

    Its tensors are float32. What was active stays active (on a bare UNet: nothing), and no other
    tensor's requires_grad changes.
    """
    from peft import LoraConfig, inject_adapter_in_model  # training's alone: it takes a second

    if name in _known(_layers(unet)):
        raise ModelError(
            f"this UNet already has an adapter {name!r}; give the new one another name."
        )
    wanted = target_modules(unet)
    config = LoraConfig(
        r=rank, lora_alpha=alpha, init_lora_weights="gaussian", target_modules=wanted
    )
    found = active_names(unet)
    flags = [(parameter, parameter.requires_grad) for parameter in unet.parameters()]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Already found a `peft_config`")
        inject_adapter_in_model(config, unet, adapter_name=name)
    for parameter in parameters_of(unet, name).values():
        parameter.data = parameter.data.float()
    _switch(_layers(unet), found)
    for parameter, flag in flags:
        parameter.requires_grad_(flag)


def use_merged_forward(unet: nn.Module) -> None:
    """Let each convolution, from now on, run once, on W + sum of (alpha / rank) B A of what is on.

    The same numbers up to rounding, and gradients of A and B; weights stay as they are. It pays
    where convolutions are many and small, as RRDBNet's.
    """

    def forward(layer: Any, x: Tensor) -> Tensor:
        base, weight = layer.base_layer, layer.base_layer.weight
        for name in () if layer.disable_adapters else layer.active_adapters:
            A, B = layer.lora_A[name].weight, layer.lora_B[name].weight
            weight = weight + layer.scaling[name] * (B.flatten(1) @ A.flatten(1)).view_as(weight)
        return base._conv_forward(x, weight, base.bias)

    for layer in _layers(unet):
        if isinstance(layer.base_layer, nn.Conv2d):
            layer.forward = MethodType(forward, layer)


@contextmanager
def active(unet: nn.Module, names: Sequence[str]) -> Iterator[None]:
    """Run the block with exactly these adapters on (none: the base), then restore what was on.

    requires_grad is not touched. With gradient checkpointing, call backward() inside the block: it
    runs the UNet again.
    """
    layers = _layers(unet)
    _check_known(layers, names)
    found = _active_names(layers)
    _switch(layers, names)
    try:
        yield
    finally:
        _switch(layers, found)


def active_names(unet: nn.Module) -> list[str]:
    """The adapters that are on; none on a bare UNet."""
    return _active_names(_layers(unet))


def train_only(unet: nn.Module, name: str) -> None:
    """Let this adapter learn and nothing else in the UNet, through every `active` block."""
    _check_known(_layers(unet), [name])
    unet.requires_grad_(False)
    for parameter in parameters_of(unet, name).values():
        parameter.requires_grad_(True)


def parameters_of(unet: nn.Module, name: str) -> dict[str, nn.Parameter]:
    """The live tensors of one adapter, keyed "MODULE.lora_A.weight" and so on, as in its file."""
    _check_known(_layers(unet), [name])
    ending = f".{name}.weight"
    return {
        key.removesuffix(ending) + ".weight": parameter
        for key, parameter in unet.named_parameters()
        if key.endswith((f".lora_A{ending}", f".lora_B{ending}"))
    }


@torch.no_grad()
def load_into(unet: nn.Module, name: str, tensors: Mapping[str, Tensor]) -> None:
    """Fill an attached adapter. CheckpointError, and nothing changed, if a key or shape differs."""
    parameters = parameters_of(unet, name)
    _check_same(f"adapter {name!r}", {k: p.shape for k, p in parameters.items()}, tensors)
    for key, parameter in parameters.items():
        parameter.copy_(tensors[key])


def merged(
    unet: nn.Module, adapters: Sequence["Adapter"], dtype: torch.dtype | None = None
) -> nn.Module:
    """A new UNet whose weights are W + sum of (alpha / rank) B A; the given one is untouched.

    Each sum is made in float32 and cast once, to `dtype` (None: as the base), tensor by tensor.
    """
    deltas = _deltas(unet, adapters)
    memo = {}
    for name, parameter in unet.named_parameters():
        weight = _plus(parameter, deltas.get(name, ()), dtype or parameter.dtype)
        memo[id(parameter)] = nn.Parameter(weight, requires_grad=False)
    return copy.deepcopy(unet, memo)


def merge_in_place(
    unet: nn.Module, adapters: Sequence["Adapter"], dtype: torch.dtype | None = None
) -> nn.Module:
    """Like `merged`, but the base's own weights are replaced one by one. Returns the same UNet."""
    deltas = _deltas(unet, adapters)
    for name, parameter in unet.named_parameters():
        parameter.data = _plus(parameter, deltas.get(name, ()), dtype or parameter.dtype)
        parameter.requires_grad_(False)
    return unet


def merge_both(
    unet: nn.Module, pix: "Adapter", sem: "Adapter | None", dtype: torch.dtype
) -> tuple[nn.Module, nn.Module]:
    """(unet with both, unet with pix); without a semantic adapter both are one module.

    The float32 base is used up.
    """
    if sem is None:
        unet = merge_in_place(unet, [pix], dtype)
        return unet, unet
    unet_pix = merged(unet, [pix], dtype)
    return merge_in_place(unet, [pix, sem], dtype), unet_pix


Delta = tuple[float, Tensor, Tensor]  # alpha / rank, A, B


def _plus(weight: Tensor, deltas: Sequence[Delta], dtype: torch.dtype) -> Tensor:
    """W + (alpha / rank) B A, summed in float32. A convolution's A has its kernel, B is 1 x 1."""
    if not deltas:
        return weight.detach().to(dtype, copy=True)
    total = weight.detach().to(torch.float32, copy=True)
    for scale, A, B in deltas:
        total += scale * (B.flatten(1).to(total) @ A.flatten(1).to(total)).view_as(total)
    return total.to(dtype)


def _deltas(unet: nn.Module, adapters: Sequence["Adapter"]) -> dict[str, list[Delta]]:
    """What is added to each weight. CheckpointError if an adapter doesn't fit this UNet."""
    if _layers(unet):
        raise ModelError("merging needs a bare UNet, this one carries adapters; load it anew.")
    deltas: dict[str, list[Delta]] = {}
    for adapter in adapters:
        shapes = adapter_shapes(unet, adapter.rank)
        _check_same(f"adapter {adapter.name!r}", shapes, adapter.tensors)
        for module in target_modules(unet):
            A, B = (adapter.tensors[f"{module}.lora_{side}.weight"] for side in "AB")
            deltas.setdefault(f"{module}.weight", []).append((adapter.alpha / adapter.rank, A, B))
    return deltas


def adapter_shapes(unet: nn.Module, rank: int) -> dict[str, torch.Size]:
    """The keys and shapes an adapter of this rank must have to fit this bare UNet."""
    shapes = {}
    for name in target_modules(unet):
        out, *inner = unet.get_parameter(f"{name}.weight").shape
        shapes[f"{name}.lora_A.weight"] = torch.Size([rank, *inner])
        shapes[f"{name}.lora_B.weight"] = torch.Size([out, rank] + [1] * (len(inner) - 1))
    return shapes


def _check_same(what: str, wanted: Mapping[str, torch.Size], tensors: Mapping[str, Tensor]) -> None:
    missing, extra = sorted(wanted.keys() - tensors.keys()), sorted(tensors.keys() - wanted.keys())
    if missing or extra:
        example = f"lacks {missing[0]}" if missing else f"has the unknown {extra[0]}"
        raise CheckpointError(
            f"{what} does not fit this UNet: {len(missing)} tensors missing, {len(extra)} too many "
            f"({example}); use the base it was trained on."
        )
    for key, shape in wanted.items():
        if tensors[key].shape != shape:
            raise CheckpointError(
                f"{what} does not fit this UNet: {key} is {list(tensors[key].shape)}, wanted "
                f"{list(shape)}; use the base and the rank it was trained with."
            )


def _layers(unet: nn.Module) -> list[Any]:
    """The layers that carry adapters. All carry the same ones, and agree on which are on."""
    return [module for module in unet.modules() if hasattr(module, "lora_A")]


def _known(layers: list[Any]) -> list[str]:
    return list(layers[0].lora_A) if layers else []


def _check_known(layers: list[Any], names: Sequence[str]) -> None:
    known = _known(layers)
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ModelError(f"no adapter {unknown[0]!r} on this UNet, it has {known}; attach it.")


def _active_names(layers: list[Any]) -> list[str]:
    return [] if not layers or layers[0].disable_adapters else list(layers[0].active_adapters)


def _switch(layers: list[Any], names: Sequence[str]) -> None:
    """Turn on exactly these adapters, by the two attributes that a layer's forward reads.

    peft's own set_adapter and enable_adapters also rewrite requires_grad: the frozen pixel adapter
    would learn again, and a switch would take some forty times as long.
    """
    for layer in layers:
        layer._disable_adapters = not names
        if names:
            layer._active_adapter = list(names)
