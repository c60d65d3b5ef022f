"""Before the training journey, for --dry_run: what a step costs, counted on tensors that have shapes and no data.

The loop's own `restore_batch` and objective run once, forward and backward, on the meta device. No weights are read,
nothing is downloaded, no speed is guessed.
"""

import json
import warnings
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPTextConfig, CLIPTextModel

from pisasr.config import TrainConfig, to_yaml
from pisasr.evaluation.features import EfficientNetLite, feature_distance
from pisasr.method.adapters import active, parameters_of, train_only
from pisasr.method.model import PiSASR
from pisasr.models.bases import SD21_NAMES, VAES, check_base, find_model
from pisasr.training import precision
from pisasr.training.loop import restore_batch
from pisasr.training.losses import LPIPS_NETS
from pisasr.training.setup import Predictor, prepare_parts, share_of_batch
from pisasr.training.stages import Batch, Stage, build_objective, distillation, stages_of

TOKENS = 77  # CLIP's length of a prompt

# Stable Diffusion 2.1-base as published, for whom it is not on this disk: what differs from the classes' defaults.
SD21 = {
    "unet": {
        "attention_head_dim": [5, 10, 20, 20],
        "block_out_channels": [320, 640, 1280, 1280],
        "cross_attention_dim": 1024,
        "use_linear_projection": True,
    },
    "vae": {
        "_class_name": "AutoencoderKL",
        "block_out_channels": [128, 256, 512, 512],
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "layers_per_block": 2,
        "latent_channels": 4,
    },
    "text_encoder": {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 23,
        "num_attention_heads": 16,
        "hidden_act": "gelu",
    },
}


@dataclass(frozen=True)
class StageCost:
    """One stage's price for one process, whose step is `accumulation` batches of `batch_size` images.

    flops of one batch, two for each multiplied and added pair: forward, and backward with what it computes again. Then
    bytes: `frozen` is all weights that do not learn, `learning` the adapter with its gradients and Adam's two moments,
    `kept` what the forward passes leave for the backward ones. Working memory, a CUDA context, the allocator's gaps and
    DDP's buckets come on top; with checkpointing, one block's own activations, too.
    """

    name: str
    batch_size: int
    accumulation: int
    trainable: int
    forward: int
    backward: int
    frozen: int
    learning: int
    kept: int

    @property
    def flops_per_image(self) -> float:
        return (self.forward + self.backward) / self.batch_size


def print_plan(config: TrainConfig, processes: int = 1) -> None:
    """Every setting as YAML, and under it a few lines a stage."""
    config = precision.settle(config)
    print(to_yaml(config), flush=True)
    for cost in estimate(config, processes):
        print(
            f"{cost.name}: {cost.batch_size * cost.accumulation} images of {config.data.crop_px} px a step and process "
            f"({cost.accumulation} x {cost.batch_size}), precision {config.run.mixed_precision}, "
            f"{cost.trainable:,} trainable parameters\n"
            f"  TFLOP an image      {cost.flops_per_image / 1e12:8.3f}\n"
            f"    forward           {cost.forward / cost.batch_size / 1e12:8.3f}\n"
            f"    backward          {cost.backward / cost.batch_size / 1e12:8.3f}\n"
            f"  GiB, at least       {(cost.frozen + cost.learning + cost.kept) / 2**30:8.2f}\n"
            f"    frozen weights    {cost.frozen / 2**30:8.2f}\n"
            f"    adapter and Adam  {cost.learning / 2**30:8.2f}\n"
            f"    kept for backward {cost.kept / 2**30:8.2f}"
        )


def estimate(config: TrainConfig, processes: int = 1) -> list[StageCost]:
    """Count every stage that has steps. ConfigError where a batch does not divide; ModelError for an unknown base.

    The text encoder's work is left out: constant prompts are encoded once, and whether photos have captions is theirs.
    """
    config = precision.settle(config)
    configs = base_configs(config.model.pretrained_model)
    return [_count(config, stage, configs, share_of_batch(stage, config, processes)) for stage in stages_of(config)]


def base_configs(model: str | None) -> dict[str, dict[str, Any]]:
    """The config.json of each network, by part. SD-2.1-base's are known here; another hub id must be in the cache."""
    if model is not None and model.lower() in SD21_NAMES:
        return SD21
    folder = find_model(model, local_files_only=True)
    check_base(folder)
    return {part: json.loads((folder / part / "config.json").read_text(encoding="utf-8")) for part in SD21}


def _count(config: TrainConfig, stage: Stage, configs: dict[str, dict[str, Any]], count: int) -> StageCost:
    settings, crop_px = stage.settings, config.data.crop_px
    model, text_encoder = build_model(config, configs)
    train_only(model.unet, stage.learns)
    learning = list(parameters_of(model.unet, stage.learns).values())
    perceptual = build_distance(config.perceptual.net) if settings.weight_lpips else None
    parts = [part for part in (model.unet, model.vae, text_encoder, perceptual) if part is not None]

    def words(prompts: list[str]) -> Tensor:
        return torch.empty(len(prompts), TOKENS, configs["unet"]["cross_attention_dim"], device="meta")

    distance = None if perceptual is None else lambda x_pred, x_H: perceptual(x_pred, x_H).mean()
    objective = build_objective(
        settings, distance, lambda: distillation(model, words, torch.empty(1000, device="meta"), config.csd)
    )
    x = torch.empty(count, 3, crop_px, crop_px, device="meta")
    batch = Batch(
        x_L=x,
        x_H=x,
        x_T=x if settings.asks_teacher else None,
        captions=[""] * count,
        seeds=[0] * count,
        cell_px=model.factor,
        shift=settings.beyond.shift,
        corners=[(0, 0)] * count,
    )
    kept = _Kept()
    low = precision.LOW_PRECISION[config.run.mixed_precision or "no"]
    with ExitStack() as rules:
        flops = rules.enter_context(FlopCounterMode(display=False))
        rules.enter_context(CudaRules())
        rules.enter_context(
            torch.autocast("cpu", torch.bfloat16 if low == torch.float32 else low, low != torch.float32)
        )
        rules.enter_context(active(model.unet, stage.active))
        with saved_tensors_hooks(kept.add, lambda tensor: tensor):
            x_pred, z_H = restore_batch(batch, stage, model, Predictor(model.unet), words, config.data.null_text_ratio)
            total, _ = objective(batch, x_pred, z_H)
        forward = flops.get_total_flops()
        total.backward()
    frozen = {id(t): t.nbytes for part in parts for t in (*part.parameters(), *part.buffers())}
    return StageCost(
        name=stage.name,
        batch_size=count,
        accumulation=config.run.accumulation,
        trainable=sum(p.numel() for p in learning),
        forward=forward,
        backward=flops.get_total_flops() - forward,
        frozen=sum(frozen.values()) - sum(p.nbytes for p in learning),
        learning=4 * sum(p.nbytes for p in learning),
        kept=kept.bytes_beside(*parts),
    )


def build_model(config: TrainConfig, configs: dict[str, dict[str, Any]]) -> tuple[PiSASR, nn.Module]:
    """The loop's networks as it holds them, without data: (UNet with both adapters and VAE, text encoder)."""
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(configs["unet"]).to(memory_format=torch.channels_last)
        vae = VAES[configs["vae"]["_class_name"]].from_config(configs["vae"])
        text_encoder = CLIPTextModel(CLIPTextConfig.from_dict(configs["text_encoder"]))
        prepare_parts(config, unet, vae, text_encoder)

    def checkpointed(module: nn.Module, *arguments: Any) -> Any:
        """As diffusers does it; but where autocast comes back by itself, these rules have to be called back."""
        return checkpoint(module, *arguments, use_reentrant=False, context_fn=lambda: (nullcontext(), CudaRules()))

    for part in (unet, vae):
        if part.is_gradient_checkpointing:
            part.enable_gradient_checkpointing(checkpointed)
    return PiSASR(unet, vae), text_encoder


class Distance(nn.Module):
    """A distance as one module, so that the network's weights are counted with it."""

    def __init__(self, network: nn.Module, distance: Callable[[Tensor, Tensor, nn.Module], Tensor]):
        super().__init__()
        self.network, self.distance = network, distance

    def forward(self, x_pred: Tensor, x_H: Tensor) -> Tensor:
        return self.distance(x_pred, x_H, self.network)


def build_distance(net: str) -> nn.Module:
    """The perceptual network's layers without anybody's weights."""
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # lpips asks torchvision in a way that is out of date
        if net not in LPIPS_NETS:
            return Distance(EfficientNetLite("lite1"), feature_distance).requires_grad_(False).eval()
        import lpips

        metric = lpips.LPIPS(net=net, pretrained=False, pnet_rand=True, verbose=False)
    return metric.to("meta").requires_grad_(False).eval()


class _Kept:
    """What autograd keeps from the forward passes: each storage once."""

    def __init__(self) -> None:
        self.tensors: dict[int, Tensor] = {}  # held, so that no address comes twice

    def add(self, tensor: Tensor) -> Tensor:
        self.tensors[tensor.untyped_storage()._cdata] = tensor
        return tensor

    def bytes_beside(self, *parts: nn.Module) -> int:
        """All but the weights, which are there anyway."""
        weights = {t.untyped_storage()._cdata for part in parts for t in (*part.parameters(), *part.buffers())}
        return sum(t.untyped_storage().nbytes() for key, t in self.tensors.items() if key not in weights)


class CudaRules(TorchFunctionMode):
    """What CUDA would do that the meta device does not: autocast's choice of precision, attention without a matrix.

    Autocast casts the tensors that go into an operation by the operation's name. The two lists are CUDA's, as torch
    documents them, as far as these networks call them. Whether autocast is on, and how low it goes, is the CPU's
    setting, which has no say over meta tensors itself.
    """

    LOW = frozenset({"conv2d", "linear", "matmul", "baddbmm", "bmm", "scaled_dot_product_attention"})
    FULL = frozenset({"exp", "group_norm", "layer_norm", "mse_loss", "pow", "softmax", "sum"})

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = func.__name__.strip("_"), kwargs or {}
        if torch.is_autocast_enabled("cpu") and (name in self.LOW or name in self.FULL):
            wanted = torch.get_autocast_dtype("cpu") if name in self.LOW else torch.float32
            args, kwargs = tree_map_only(
                Tensor, lambda t: t.to(wanted) if t.is_floating_point() else t, (tuple(args), kwargs)
            )
        return attend(*args, **kwargs) if name == "scaled_dot_product_attention" else func(*args, **kwargs)


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    **_: Any,
) -> Tensor:
    """Attention that never holds all scores at once, as CUDA's memory-efficient kernel: it keeps one number a row."""
    keeps = torch.is_grad_enabled() and any(x.requires_grad for x in (query, key, value))
    attention = torch.ops.aten._scaled_dot_product_efficient_attention
    return attention(query, key, value, attn_mask, keeps, dropout_p, is_causal)[0]
