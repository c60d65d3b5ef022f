"""Before the training journey, for --dry_run: what a step costs, counted on tensors that have
shapes and no data.

The loop's own `restore_batch` and objective run once, forward and backward, on the meta device. No
weights are read, nothing is downloaded, no speed is guessed.
"""

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPTextConfig, CLIPTextModel

from pisasr.config import TrainConfig, to_yaml
from pisasr.method.adapters import active, parameters_of, train_only
from pisasr.method.model import PiSASR
from pisasr.models.bases import SD21_NAMES, VAES, check_base, find_model
from pisasr.training import setup
from pisasr.training.loop import restore_batch
from pisasr.training.losses import Perceptual
from pisasr.training.stages import Batch, Stage, build_objective, distillation, stages_of

# Stable Diffusion 2.1-base as published, for whom it is not on this disk: what differs from the
# classes' defaults.
SD21: dict[str, dict[str, Any]] = {
    "unet": {"attention_head_dim": [5, 10, 20, 20], "block_out_channels": [320, 640, 1280, 1280],
             "cross_attention_dim": 1024, "use_linear_projection": True},
    "vae": {"_class_name": "AutoencoderKL", "block_out_channels": [128, 256, 512, 512], "layers_per_block": 2,
            "down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4},
    "text_encoder": {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23, "num_attention_heads": 16,
                     "hidden_act": "gelu"},
}  # fmt: skip


@dataclass(frozen=True)
class StageCost:
    """One stage's price for one process, whose step is `accumulation` batches of `batch_size`
    images.

    Operations of one batch, two for each multiplied and added pair: forward, and backward with what
    it computes again. The text encoder's are left out: constant prompts are encoded once. Then
    bytes: `frozen` is all weights that do not learn, `learning` the adapter with its gradients and
    Adam's two moments, `kept` what the forward passes leave for the backward ones; in low precision
    half of float32's, a tenth too little, because autocast keeps norms in float32. Working memory,
    a CUDA context, the allocator's gaps and DDP's buckets come on top; with checkpointing, one
    block's own activations, too.
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


def print_plan(config: TrainConfig, processes: int = 1) -> None:
    """Every setting as YAML, and under it a few lines a stage."""
    config = setup.settle(config)
    print(to_yaml(config), flush=True)
    for cost in estimate(config, processes):
        print(
            f"{cost.name}: {cost.batch_size * cost.accumulation} images of {config.data.crop_px} px a step and process "
            f"({cost.accumulation} x {cost.batch_size}), precision {config.run.mixed_precision}, "
            f"{cost.trainable:,} trainable parameters"
        )
        flop = {
            "forward": cost.forward / cost.batch_size,
            "backward": cost.backward / cost.batch_size,
        }
        gib = {
            "frozen weights": cost.frozen,
            "adapter and Adam": cost.learning,
            "kept for backward": cost.kept,
        }
        for title, parts, unit in (("TFLOP an image", flop, 1e12), ("GiB, at least", gib, 2**30)):
            print(f"  {title:20}{sum(parts.values()) / unit:8.3f}")
            for name, value in parts.items():
                print(f"    {name:18}{value / unit:8.3f}")


def estimate(config: TrainConfig, processes: int = 1) -> list[StageCost]:
    """Count every stage that has steps. ConfigError where a batch does not divide; ModelError for
    an unknown base.
    """
    config = setup.settle(config)
    configs = base_configs(config.model.pretrained_model)
    shares = {stage: setup.share_of_batch(stage, config, processes) for stage in stages_of(config)}
    return [_count(config, stage, configs, share) for stage, share in shares.items()]


def base_configs(model: str | None) -> dict[str, dict[str, Any]]:
    """The config.json of each network, by part. SD-2.1-base's are known here; another hub id must
    be in the cache.
    """
    if model is not None and model.lower() in SD21_NAMES:
        return SD21
    folder = find_model(model, local_files_only=True)
    check_base(folder)
    return {
        part: json.loads((folder / part / "config.json").read_text(encoding="utf-8"))
        for part in SD21
    }


def _count(
    config: TrainConfig, stage: Stage, configs: dict[str, dict[str, Any]], count: int
) -> StageCost:
    settings, crop_px = stage.settings, config.data.crop_px
    model, text_encoder = build_model(config, configs)
    train_only(model.unet, stage.learns)
    learning = list(parameters_of(model.unet, stage.learns).values())
    parts, distance = [model.unet, model.vae, text_encoder], None
    if settings.weight_lpips:
        perceptual, distance = build_distance(config.perceptual.net)
        parts.append(perceptual)

    def words(prompts: list[str]) -> Tensor:
        tokens = configs["text_encoder"].get("max_position_embeddings", 77)
        return torch.empty(
            len(prompts), tokens, configs["unet"]["cross_attention_dim"], device="meta"
        )

    alphas_cumprod = torch.empty(1000, device="meta")
    objective = build_objective(
        settings, distance, lambda: distillation(model, words, alphas_cumprod, config.csd)
    )
    x = torch.empty(count, 3, crop_px, crop_px, device="meta")
    batch = Batch(
        x_L=x, x_H=x, x_T=x if settings.asks_teacher else None, captions=[""] * count, seeds=[0] * count,
        cell_px=model.factor, shift=settings.beyond.shift, corners=[(0, 0)] * count,
    )  # fmt: skip
    kept: dict[int, Tensor] = {}  # by storage; the tensors are held, so that no address comes twice

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    with (
        FlopCounterMode(display=False) as flops,
        _memory_efficient_attention(),
        active(model.unet, stage.active),
    ):
        with saved_tensors_hooks(keep, lambda tensor: tensor):
            network = setup.Predictor(model.unet)
            x_pred, z_H = restore_batch(
                batch, stage, model, network, words, config.data.null_text_ratio
            )
            total, _ = objective(batch, x_pred, z_H)
        forward = flops.get_total_flops()
        total.backward()
    weights = {
        t.untyped_storage()._cdata for part in parts for t in (*part.parameters(), *part.buffers())
    }
    in_float32 = sum(t.untyped_storage().nbytes() for key, t in kept.items() if key not in weights)
    low = setup.LOW_PRECISION[config.run.mixed_precision or "no"]
    setup.freeze_parts(low, model.unet, model.vae, text_encoder)
    adapter = sum(p.nbytes for p in learning)
    return StageCost(
        name=stage.name,
        batch_size=count,
        accumulation=config.run.accumulation,
        trainable=sum(p.numel() for p in learning),
        forward=forward,
        backward=flops.get_total_flops() - forward,
        frozen=sum(t.nbytes for part in parts for t in (*part.parameters(), *part.buffers()))
        - adapter,
        learning=4 * adapter,
        kept=in_float32 * low.itemsize // torch.float32.itemsize,
    )


def build_model(
    config: TrainConfig, configs: dict[str, dict[str, Any]]
) -> tuple[PiSASR, nn.Module]:
    """The loop's networks in float32, without data: (UNet with both adapters and VAE, text
    encoder).
    """
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(configs["unet"]).to(
            memory_format=torch.channels_last
        )
        vae = VAES[configs["vae"]["_class_name"]].from_config(configs["vae"])
        text_encoder = CLIPTextModel(CLIPTextConfig.from_dict(configs["text_encoder"]))
        setup.dress(config, unet, vae)
        setup.freeze_parts(torch.float32, unet, vae, text_encoder)
    return PiSASR(unet, vae), text_encoder


def build_distance(net: str) -> tuple[nn.Module, Perceptual]:
    """The perceptual network's layers without anybody's weights, and the distance that they
    compute.
    """
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # lpips asks torchvision in a way that is out of date
        import lpips

        metric = lpips.LPIPS(net=net, pretrained=False, pnet_rand=True, verbose=False)
    metric.to("meta").requires_grad_(False).eval()
    return metric, lambda x_pred, x_H: metric(x_pred, x_H).mean()


@contextmanager
def _memory_efficient_attention() -> Iterator[None]:
    """Attention as CUDA computes it, never with all scores at once: what it keeps of them is one
    number a row.
    """

    def attend(
        q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, *_: Any, **__: Any
    ) -> Any:
        keeps = torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v))
        return torch.ops.aten._scaled_dot_product_efficient_attention(q, k, v, attn_mask, keeps)[0]

    original = functional.scaled_dot_product_attention
    functional.scaled_dot_product_attention = attend  # type: ignore[assignment]
    try:
        yield
    finally:
        functional.scaled_dot_product_attention = original
