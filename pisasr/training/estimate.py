"""What a training step costs, counted before it is paid: operations and bytes, on tensors that have shapes and no data.

The trainer's own `restore`, `build_score` and `ClassifierScoreDistillation` run once, forward and backward, on the meta
device; every operation that reaches the dispatcher is counted. No weights are read, nothing is downloaded, no speed is
guessed. On a small model in float32, operations equal those of a real step, and bytes are within 2 % of the CPU
allocator's.
"""

import json
import warnings
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import flop_registry
from transformers import CLIPTextConfig, CLIPTextModel

from pisasr.config import ConfigError, StageConfig, TrainConfig
from pisasr.evaluation.features import EfficientNetLite, feature_distance
from pisasr.method.adapters import active, attach, parameters_of, train_only
from pisasr.method.model import PiSASR, predict
from pisasr.models.bases import SD21_NAMES, VAES, check_base, find_model
from pisasr.training.adversary import Adversary
from pisasr.training.csd import ClassifierScoreDistillation
from pisasr.training.method import LOW_PRECISION, Predictor, freeze_in, restore
from pisasr.training.stages import Restored, Score, Stage, build_score, stages_of

PARTS = ("encode", "UNet", "decode", "perceptual", "distillation", "critic", "other", "backward")
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
    """One stage's price. All numbers are for one process; a step is `accumulation` batches of `batch_size` images.

    flops: forward passes by part and all of backward (recomputation of checkpointed blocks included), for one batch,
    two for each multiplied and added pair. Bytes: `frozen` is every weight that does not learn, `learning` the
    adapter's weights, gradients and Adam's two moments, `activations` the highest sum of all that lives beside those
    at one moment. A CUDA context, the allocator's gaps, a library's workspace and DDP's buckets come on top.
    """

    name: str
    batch_size: int
    accumulation: int
    crop_px: int
    precision: str
    trainable: int
    flops: dict[str, int]
    frozen: int
    learning: int
    activations: int

    @property
    def flops_per_image(self) -> float:
        return sum(self.flops.values()) / self.batch_size

    @property
    def flops_per_step(self) -> int:
        return sum(self.flops.values()) * self.accumulation

    @property
    def memory(self) -> int:
        return self.frozen + self.learning + self.activations


def estimate(config: TrainConfig, processes: int = 1) -> list[StageCost]:
    """Count every stage that has steps. ConfigError where a batch does not divide; ModelError for an unknown base.

    The text encoder's work is left out: constant prompts are encoded once, and whether photos have captions is theirs.
    """
    configs = base_configs(config.model.pretrained_model)
    return [_count(config, stage, configs, processes) for stage in stages_of(config)]


def base_configs(model: str | None) -> dict[str, dict[str, Any]]:
    """The config.json of each network, by part. SD-2.1-base's are known here; another hub id must be in the cache."""
    if model is not None and model.lower() in SD21_NAMES and not Path(model).is_dir():
        return SD21
    folder = find_model(model, local_files_only=True)
    check_base(folder)
    return {part: json.loads((folder / part / "config.json").read_text(encoding="utf-8")) for part in SD21}


def _count(config: TrainConfig, stage: Stage, configs: dict, processes: int) -> StageCost:
    settings, crop_px = stage.settings, config.data.crop_px
    share, rest = divmod(settings.batch_size, processes * config.run.accumulation)
    if rest:
        raise ConfigError(
            f"{stage.name}.batch_size={settings.batch_size} does not divide among {processes} processes with "
            f"run.accumulation={config.run.accumulation}; choose a multiple of their product."
        )
    dtype = LOW_PRECISION[config.run.mixed_precision]
    model, text_encoder = build_model(config, configs, dtype)
    train_only(model.unet, stage.learns)
    learning = list(parameters_of(model.unet, stage.learns).values())
    perceptual = build_perceptual(config.perceptual.net) if settings.weight_lpips else None
    parts = [part for part in (model.unet, model.vae, text_encoder, perceptual) if part is not None]
    adversary = None
    if settings.weight_gan:
        adversary = Adversary("meta", lr=0.0, seed=0, average=lambda gradient: gradient)
        learning += adversary.critic.parameters()
        parts.append(adversary.critic)
    score = build_score(settings, lambda: lambda *x: perceptual(*x).mean(), lambda: distillation(model), adversary)
    for parameter in learning:
        parameter.grad = torch.zeros_like(parameter)  # there before the count starts, so that it is no activation
    meter = Meter()
    with meter, CudaRules(), _autocast(dtype), active(model.unet, stage.active):
        run_step(model, score, settings, share, crop_px, meter, adversary)
    return StageCost(
        name=stage.name,
        batch_size=share,
        accumulation=config.run.accumulation,
        crop_px=crop_px,
        precision=config.run.mixed_precision,
        trainable=sum(p.numel() for p in learning),
        flops={part: meter.flops[part] for part in PARTS if meter.flops[part]},
        frozen=sum(_bytes(part) for part in parts) - sum(p.nbytes for p in learning),
        learning=4 * sum(p.nbytes for p in learning),
        activations=meter.peak,
    )


def build_model(config: TrainConfig, configs: dict, dtype: torch.dtype) -> tuple[PiSASR, nn.Module]:
    """The trainer's networks as it holds them, without data: (UNet with both adapters and VAE, text encoder)."""
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(configs["unet"]).to(memory_format=torch.channels_last)
        vae = VAES[configs["vae"]["_class_name"]].from_config(configs["vae"])
        text_encoder = CLIPTextModel(CLIPTextConfig.from_dict(configs["text_encoder"]))
        for part in (unet, vae, text_encoder):
            freeze_in(part.eval(), dtype, norms=dtype if part is vae else torch.float32)
        for name, rank in (("pix", config.model.rank_pix), ("sem", config.model.rank_sem)):
            attach(unet, name, rank, config.model.alpha)

    def checkpointed(module: nn.Module, *args) -> Any:
        """As diffusers does it; but where autocast comes back by itself, these rules have to be called back."""
        return checkpoint(module, *args, use_reentrant=False, context_fn=lambda: (nullcontext(), CudaRules()))

    if config.model.gradient_checkpointing:
        unet.enable_gradient_checkpointing(checkpointed)
    if config.model.gradient_checkpointing_vae:
        if not vae._supports_gradient_checkpointing:
            raise ConfigError(
                f"model.gradient_checkpointing_vae: {type(vae).__name__} has no blocks for it; leave it off."
            )
        vae.enable_gradient_checkpointing(checkpointed)
    return PiSASR(unet, vae), text_encoder


def build_perceptual(net: str) -> nn.Module:
    """The network's layers without anybody's weights. "hed" has VGG's."""
    if net == "efficientnet-lite1":
        with torch.device("meta"):
            return FeatureDistance(EfficientNetLite("lite1")).requires_grad_(False).eval()
    import lpips

    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # lpips asks torchvision in a way that is out of date
        metric = lpips.LPIPS(net="vgg" if net == "hed" else net, pretrained=False, pnet_rand=True, verbose=False)
    return metric.to("meta").requires_grad_(False).eval()


class FeatureDistance(nn.Module):
    """The distance as one module, so that the network's weights are counted with it."""

    def __init__(self, network: EfficientNetLite):
        super().__init__()
        self.network = network

    def forward(self, x_pred: Tensor, x_H: Tensor) -> Tensor:
        return feature_distance(x_pred, x_H, self.network)


def distillation(model: PiSASR) -> Callable[[Restored], Tensor]:
    """Classifier score distillation as the trainer has it: the base is its own teacher."""
    distill = ClassifierScoreDistillation(torch.empty(1000, device="meta"))

    def teacher(z_t: Tensor, t: Tensor, embeds: Tensor) -> Tensor:
        with active(model.unet, ()):
            return predict(model.unet, z_t, embeds, t)

    def loss(restored: Restored) -> Tensor:
        # Not model.encode, which would be booked as the method's own.
        z = PiSASR.encode(model, restored.window(restored.x_pred)) if restored.shift else restored.z_H
        words = z.new_empty(len(z), TOKENS, model.unet.config.cross_attention_dim)
        t = torch.empty(len(z), dtype=torch.long, device=z.device)
        return distill(z, teacher, words, words, t, torch.empty_like(z))

    return loss


def run_step(
    model: PiSASR,
    score: Score,
    settings: StageConfig,
    count: int,
    crop_px: int,
    meter: "Meter",
    adversary: Adversary | None = None,
) -> None:
    """One batch forward and backward. The caller turns adapters on."""
    x_L, x_H = torch.empty(2, count, 3, crop_px, crop_px, device="meta")
    words = torch.empty(count, TOKENS, model.unet.config.cross_attention_dim, device="meta")
    side = crop_px // model.factor
    noise = torch.empty(count, model.vae.config.latent_channels, side, side, device="meta")
    model.encode, model.decode = meter.within("encode", model.encode), meter.within("decode", model.decode)
    x_pred, z_H = restore(model, meter.within("UNet", Predictor(model.unet)), x_L, words, noise)
    where = {"cell_px": model.factor, "shift": settings.shift, "corners": [(0, 0)] * count}
    restored = Restored(x_pred, x_H, x_L, z_H, [""] * count, [0] * count, **where, x_T=x_H)
    total = 0
    for name, (weight, loss) in score.terms.items():
        with meter.part({"lpips": "perceptual", "csd": "distillation", "gan": "critic"}.get(name, "other")):
            total = total + weight * loss(restored)
    with meter.part("backward"):
        total.backward()
    if adversary:
        with meter.part("critic"):
            adversary.collect(restored)


class Meter(TorchDispatchMode):
    """Counts what passes: `flops` by part, and `peak`, the most bytes that were alive at once.

    A storage counts from the operation that returns it until nobody, autograd included, holds it any more; what was
    there before the meter was entered does not count.
    """

    def __init__(self):
        super().__init__()
        self.flops: Counter[str] = Counter()
        self.now = self.peak = 0
        self._alive: set[int] = set()
        self._part = "other"

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Book what the block does under this name."""
        outside, self._part = self._part, name
        try:
            yield
        finally:
            self._part = outside

    def within(self, name: str, function: Callable) -> Callable:
        """The function, with all it does booked under this name."""

        def booked(*args, **kwargs):
            with self.part(name):
                return function(*args, **kwargs)

        return booked

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if (formula := flop_registry.get(func.overloadpacket)) is not None:
            self.flops[self._part] += formula(*args, **kwargs, out_val=out)
        known = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and tensor.untyped_storage()._cdata not in known:
                self._arrive(tensor.untyped_storage())
        self.peak = max(self.peak, self.now)
        return out

    def _arrive(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata not in self._alive:
            self._alive.add(storage._cdata)
            self.now += storage.nbytes()
            weakref.finalize(storage, self._leave, storage._cdata, storage.nbytes())

    def _leave(self, key: int, nbytes: int) -> None:
        self._alive.discard(key)
        self.now -= nbytes


class CudaRules(TorchFunctionMode):
    """What CUDA would do that the meta device does not: autocast's choice of precision, attention without a matrix.

    Autocast casts the tensors that go into an operation by the operation's name. The two lists are CUDA's, as torch
    documents them, as far as these networks call them. Whether autocast is on, and how low it goes, is the CPU's
    setting, which has no say over meta tensors itself.
    """

    LOW = frozenset({"conv2d", "linear", "matmul", "baddbmm", "bmm", "scaled_dot_product_attention"})
    FULL = frozenset({"exp", "group_norm", "layer_norm", "mse_loss", "pow", "softmax", "sum"})

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name, kwargs = func.__name__.strip("_"), kwargs or {}
        if torch.is_autocast_enabled("cpu") and (name in self.LOW or name in self.FULL):
            wanted = torch.get_autocast_dtype("cpu") if name in self.LOW else torch.float32
            args, kwargs = tree_map_only(
                Tensor, lambda t: t.to(wanted) if t.is_floating_point() else t, (tuple(args), kwargs)
            )
        return attend(*args, **kwargs) if name == "scaled_dot_product_attention" else func(*args, **kwargs)


def _autocast(dtype: torch.dtype) -> torch.autocast:
    return torch.autocast("cpu", dtype if dtype != torch.float32 else None, enabled=dtype != torch.float32)


def attend(query: Tensor, key: Tensor, value: Tensor, attn_mask=None, dropout_p=0.0, is_causal=False, **_) -> Tensor:
    """Attention that never holds all scores at once, as CUDA's memory-efficient kernel: it keeps one number a row."""
    keeps = torch.is_grad_enabled() and any(x.requires_grad for x in (query, key, value))
    attention = torch.ops.aten._scaled_dot_product_efficient_attention
    return attention(query, key, value, attn_mask, keeps, dropout_p, is_causal)[0]


def _bytes(part: nn.Module) -> int:
    return sum(t.nbytes for t in (*part.parameters(), *part.buffers()))


def render(costs: list[StageCost]) -> str:
    """A few lines for a person, one block a stage."""
    return "\n\n".join(_render_one(cost) for cost in costs)


def _render_one(cost: StageCost) -> str:
    images = cost.batch_size * cost.accumulation
    lines = [
        f"{cost.name}: {images} images of {cost.crop_px} px a step and process ({cost.accumulation} x "
        f"{cost.batch_size}), precision {cost.precision}, {cost.trainable:,} trainable parameters",
        f"  TFLOP an image {cost.flops_per_image / 1e12:8.3f}   a step {cost.flops_per_step / 1e12:.2f}",
    ]
    lines += [f"    {part:12} {flops / cost.batch_size / 1e12:8.3f}" for part, flops in cost.flops.items()]
    parts = {
        "frozen weights": cost.frozen,
        "adapter, gradients, Adam": cost.learning,
        "activations (peak)": cost.activations,
    }
    lines += [f"  GiB {cost.memory / 2**30:8.2f}"]
    lines += [f"    {name:26} {size / 2**30:8.2f}" for name, size in parts.items()]
    return "\n".join(lines)
