"""What can be set. One dataclass per concern, one docstring per field's doubt, defaults written once: here.

Precedence: `key=value` on the command line, then the YAML file, then the defaults below. Unknown keys are refused.
"""

import difflib
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from typing import Any

from omegaconf import MISSING, OmegaConf
from omegaconf.errors import ConfigKeyError, MissingMandatoryValue, OmegaConfBaseException
from yaml import YAMLError

from pisasr.data.degradation import DegradationRecipe
from pisasr.errors import PisasrError

NEGATIVE_PROMPT = (  # as published
    "painting, oil painting, illustration, drawing, art, sketch, oil painting, cartoon, CG Style, 3D render, "
    "unreal engine, blurring, dirty, messy, worst quality, low quality, frames, watermark, signature, "
    "jpeg artifacts, deformed, lowres, over-smooth"
)
QUALITY_PROMPT = "a sharp, clean, highly detailed photo"  # ours: the published training has a tag model's words


class ConfigError(PisasrError):
    """The configuration can't be used: which key, what was wanted, what came."""


@dataclass
class ModelConfig:
    """The frozen base and the size of the adapters on it."""

    pretrained_model: str | None = "sd-2.1-base"  # a folder, a hub id, sd-2.1-base; null is the embedded default
    rank_pix: int = 4
    rank_sem: int = 4
    alpha: float = 8.0  # a layer's change is alpha / rank * B A; the published checkpoints mean 8
    gradient_checkpointing: bool = False  # of the UNet: less memory, a tenth more work
    gradient_checkpointing_vae: bool = False  # of the VAE's decoder, where most of the memory sits


@dataclass
class DataConfig:
    """High-quality photos; their low-quality versions are made while training runs."""

    photos: list[str] = MISSING  # folders (searched, or pairs: hq/ and lq/ in them), lists of paths, manifest.jsonl
    mix: dict[str, float] = field(default_factory=dict)  # weights of sources by name; {}: all photos equally often
    hq_fraction: float = 1.0  # the best-scored share of the photos that is used; below 1 it needs a manifest
    max_bad_fraction: float = 0.01  # of the photos may fail while training runs, and always one, unless this is 0
    crop_px: int = 512
    caption: str = QUALITY_PROMPT  # for photos without a caption in PHOTO.txt or in the manifest
    null_text_ratio: float = 0.5  # how often the UNet sees no caption; distillation always sees it
    workers: int = 4
    degrade_on: str = "workers"  # or "device": in batches where the model is; same plans, pixels within rounding
    keep_in_memory: bool = False  # decoded photos stay in memory: for a small set of tiles


@dataclass
class StageConfig:
    """One stage: how long it learns and what it is scored by. A loss of weight 0 is not computed."""

    steps: int = 0  # 0 leaves the stage out
    batch_size: int = 16  # over all processes and accumulated steps together
    lr: float = 5e-5
    lr_schedule: str = "constant"  # or "cosine": down to zero at the last step
    warmup_steps: int = 0
    weight_decay: float = 1e-2
    max_grad_norm: float = 1.0
    weight_l2: float = 1.0
    weight_lpips: float = 0.0
    lpips_to: str = "photo"  # or "teacher": to the teacher's picture, which follows from x_L as the photo does not
    weight_csd: float = 0.0
    weight_lattice: float = 0.0  # against what repeats in every latent cell: `losses.lattice`; the paper has none
    weight_teacher: float = 0.0  # L1 to what another method made of x_L (pairs with teacher/); the paper has none
    weight_gan: float = 0.0  # against a critic that learns beside the adapter: `adversary`; the paper has none
    lr_critic: float = 2e-4
    shift: int = 0  # px by which the window moves that perception and distillation look through; the paper has none
    sharpen: float = 0.0  # unsharp masking of the targets, as Real-ESRGAN's training has it; the paper has none
    sharpen_sigma: float = 2.0  # px of its Gaussian
    init_from: str | None = None  # an adapter file to start from; sem: the pixel adapter to stand on
    start_from: str | None = None  # sem: a semantic adapter file to start from, for a second phase with other losses

    @property
    def asks_teacher(self) -> bool:
        return bool(self.weight_teacher or (self.weight_lpips and self.lpips_to == "teacher"))


@dataclass
class PerceptualConfig:
    """The backbone of the perceptual loss."""

    net: str = "vgg"  # vgg, alex, squeeze (LPIPS), hed or efficientnet-lite1 (what can be had offline)
    weights: str | None = None  # of the last two, their file; efficientnet-lite1 is also found where it is installed


@dataclass
class CsdConfig:
    """Classifier score distillation."""

    cfg: float = 7.5
    t_min: int = 20
    t_max: int = 500  # t is drawn from [t_min, t_max)
    prompt: str = ""  # added to the caption
    negative_prompt: str = NEGATIVE_PROMPT


@dataclass
class ValidationConfig:
    """Fixed pictures that the training is watched on: give `pairs` or `photos`, none that it learns from."""

    every: int = 0  # steps; 0: never
    pairs: list[str] = field(default_factory=list)  # [FOLDER] with lq/ and hq/ in it, or [LQ, HQ]; paired by name
    photos: list[str] = field(default_factory=list)  # as data.photos; degraded by the run's recipe, always alike
    count: int = 8  # pictures, spread evenly over what is there
    crop_px: int = 512  # of each true picture, out of its middle
    lambdas: list[list[float]] = field(default_factory=list)  # [[pix, sem], ...]; none: [1, 0], in sem [1, 1] too


@dataclass
class TrackingConfig:
    """Where losses and pictures are shown; log.jsonl and validation.jsonl are written whatever is said here."""

    trackers: list[str] = field(default_factory=lambda: ["tensorboard"])  # any of accelerate's; [] for none
    project: str = "pisasr"  # what wandb and its like file the run under


@dataclass
class RunConfig:
    """Where, how often, how precise."""

    output: str = MISSING
    seed: int = 123
    mixed_precision: str = "no"  # no, fp16 or bf16
    accumulation: int = 1  # steps whose gradients are added up to one batch
    checkpoint_every: int = 500
    keep_checkpoints: int = 2  # of each stage
    max_bad_steps: int = 10  # in a row, with a loss or gradient that is not finite, before the run ends
    log_every: int = 10


@dataclass
class TrainConfig:
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    degradation: DegradationRecipe = field(default_factory=DegradationRecipe)
    pix: StageConfig = field(default_factory=lambda: StageConfig(steps=4000))
    sem: StageConfig = field(default_factory=lambda: StageConfig(steps=8500, weight_lpips=2.0, weight_csd=1.0))
    perceptual: PerceptualConfig = field(default_factory=PerceptualConfig)
    csd: CsdConfig = field(default_factory=CsdConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    run: RunConfig = field(default_factory=RunConfig)


def load_config(path: str | Path, overrides: list[str] | None = None) -> TrainConfig:
    """Read a YAML file over the defaults, then `section.key=value` strings over that; types and names are checked.

    Raises ConfigError in one line: a key that doesn't exist (with the nearest one that does), a value of another type,
    a required key that nobody gave.
    """
    config = _merge(TrainConfig, path, overrides or [])
    _check(config)
    return config


def load_recipe(path: str | Path) -> DegradationRecipe:
    """Read a degradation recipe (YAML) over the published one."""
    return _merge(DegradationRecipe, path, [])


def to_yaml(config: TrainConfig) -> str:
    """The configuration as it was resolved: every key, so that it can be run again as it stands."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def _merge(schema: type, path: str | Path, overrides: list[str]) -> Any:
    if not Path(path).is_file():
        raise ConfigError(f"{path} is no file; wanted a YAML configuration, like configs/pisasr.yaml.")
    if bare := [text for text in overrides if "=" not in text]:
        raise ConfigError(f"{bare[0]!r} is no override; wanted section.key=value, like run.output=runs/a.")
    base = OmegaConf.structured(schema)
    try:
        given = OmegaConf.load(path)
        if not OmegaConf.is_dict(given):
            raise ConfigError(f"{path} holds no sections; wanted YAML like configs/pisasr.yaml.")
        if isinstance(degradation := given.get("degradation"), str):
            given.degradation = OmegaConf.load(Path(path).parent / degradation)
        layers = [_one_as_list(layer, base) for layer in (given, OmegaConf.from_dotlist(overrides))]
        return OmegaConf.to_object(OmegaConf.merge(base, *layers))
    except MissingMandatoryValue as error:
        key = getattr(error, "full_key", None) or str(error)
        raise ConfigError(f"{key} is not set; give it in {path} or as {key}=VALUE.") from error
    except ConfigKeyError as error:
        raise ConfigError(f"{path}: no setting {error.full_key!r}{_suggestion(error.full_key, base)}") from error
    except OmegaConfBaseException as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"{path}: {getattr(error, 'full_key', None) or 'unreadable'}: {reason}") from error
    except (YAMLError, UnicodeDecodeError, OSError) as error:
        reason = " ".join(str(error).split())[:160]
        raise ConfigError(f"{path} or an override is not readable as YAML ({reason}).") from error


def _one_as_list(layer: Any, schema: Any) -> Any:
    """Let `data.photos=FOLDER` mean `data.photos=[FOLDER]`: a lone text where a list of texts is wanted."""
    for section, keys in {"data": ["photos"], "validation": ["photos", "pairs"], "tracking": ["trackers"]}.items():
        for key in keys:
            if section in schema and isinstance(OmegaConf.select(layer, f"{section}.{key}"), str):
                layer[section][key] = [layer[section][key]]
    return layer


def _suggestion(key: str, base: Any) -> str:
    close = difflib.get_close_matches(key, list(_keys(base)), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else "; see pisasr/config.py for all of them."


def _keys(node: Any, prefix: str = ""):
    for key in node:
        yield prefix + key
        if not OmegaConf.is_missing(node, key) and OmegaConf.is_dict(node[key]):
            yield from _keys(node[key], f"{prefix}{key}.")


# (lowest, highest) of every number whose type says too little; inf and nan are outside of all of them.
BOUNDS = {
    "model.rank_pix": (1, 4096),
    "model.rank_sem": (1, 4096),
    "model.alpha": (1e-6, 1e6),
    "data.crop_px": (8, 65536),
    "data.null_text_ratio": (0, 1),
    "data.hq_fraction": (1e-9, 1),
    "data.max_bad_fraction": (0, 1),
    "data.workers": (0, 1024),
    "validation.every": (0, 2**31),
    "validation.count": (1, 2**31),
    "validation.crop_px": (8, 65536),
    "run.accumulation": (1, 2**31),
    "run.checkpoint_every": (1, 2**31),
    "run.keep_checkpoints": (1, 2**31),
    "run.max_bad_steps": (1, 2**31),
    "run.log_every": (1, 2**31),
    "csd.cfg": (-1e6, 1e6),
    **{
        f"{stage}.{key}": bounds
        for stage in ("pix", "sem")
        for key, bounds in {
            "steps": (0, 2**31),
            "batch_size": (1, 65536),  # an estimate of a larger one would fill the memory itself
            "lr": (0, 1e6),
            "warmup_steps": (0, 2**31),
            "weight_decay": (0, 1e6),
            "max_grad_norm": (1e-12, 1e12),
            "weight_l2": (0, 1e12),
            "weight_lpips": (0, 1e12),
            "weight_csd": (0, 1e12),
            "weight_lattice": (0, 1e12),
            "weight_teacher": (0, 1e12),
            "weight_gan": (0, 1e12),
            "lr_critic": (0, 1e6),
            "sharpen": (0, 10),
            "sharpen_sigma": (0.1, 100),
            "shift": (0, 65528),
        }.items()
    },
}


def _check_bounds(config: TrainConfig) -> None:
    for key, (lowest, highest) in BOUNDS.items():
        section, name = key.split(".")
        value = getattr(getattr(config, section), name)
        if not lowest <= value <= highest:
            raise ConfigError(f"{key} is {value}; wanted a number from {lowest:g} to {highest:g}.")


def _check_validation(validation: ValidationConfig) -> None:
    if validation.every and bool(validation.pairs) == bool(validation.photos):
        came = "both" if validation.pairs else "neither"
        raise ConfigError(
            f"validation.every={validation.every} wants validation.pairs=[FOLDER] or validation.photos=[FOLDER], "
            f"{came} came; validation.every=0 turns it off."
        )
    if len(validation.pairs) > 2:
        raise ConfigError(f"validation.pairs names {len(validation.pairs)} folders; wanted [FOLDER] or [LQ, HQ].")
    for pair in validation.lambdas:
        if len(pair) != 2 or not all(abs(value) < 1e6 for value in pair):
            raise ConfigError(f"validation.lambdas has {pair}; wanted pairs [lambda_pix, lambda_sem], like [1, 0.5].")


def _check(config: TrainConfig) -> None:
    if config.run.mixed_precision == "False":  # YAML reads a bare `no` so
        config.run.mixed_precision = "no"
    allowed = {
        "data.degrade_on": ("workers", "device"),
        "pix.lr_schedule": ("constant", "cosine"),
        "sem.lr_schedule": ("constant", "cosine"),
        "pix.lpips_to": ("photo", "teacher"),
        "sem.lpips_to": ("photo", "teacher"),
        "perceptual.net": ("vgg", "alex", "squeeze", "hed", "efficientnet-lite1"),
        "run.mixed_precision": ("no", "fp16", "bf16"),
    }
    for key, values in allowed.items():
        section, name = key.split(".")
        value = getattr(getattr(config, section), name)
        if value not in values:
            raise ConfigError(f"{key} is {value!r}; wanted one of {', '.join(values)}.")
    if not 0 <= config.csd.t_min < config.csd.t_max <= 1000:
        raise ConfigError(
            f"csd.t_min={config.csd.t_min}, csd.t_max={config.csd.t_max}; wanted 0 <= t_min < t_max <= 1000."
        )
    _check_bounds(config)
    if config.data.mix and not (all(0 <= w < inf for w in config.data.mix.values()) and any(config.data.mix.values())):
        raise ConfigError(f"data.mix is {config.data.mix}; wanted weights from 0 up, and not all 0.")
    _check_validation(config.validation)
    if config.data.crop_px % 8:
        raise ConfigError(
            f"data.crop_px is {config.data.crop_px}; wanted a multiple of 8, the side of a latent's cell."
        )
    if not (config.pix.steps or config.sem.steps):
        raise ConfigError("pix.steps and sem.steps are 0: nothing to train; give one of them steps.")
    for name in ("pix", "sem"):
        _check_stage(name, getattr(config, name), config)


def _check_stage(name: str, stage: StageConfig, config: TrainConfig) -> None:
    losses = [value for key, value in vars(stage).items() if key.startswith("weight_") and key != "weight_decay"]
    if stage.steps and not any(losses):
        raise ConfigError(f"{name} has no loss; give {name}.weight_l2, or another, a weight, or set {name}.steps=0.")
    if stage.shift % 8 or stage.shift >= config.data.crop_px:
        raise ConfigError(
            f"{name}.shift is {stage.shift}; wanted a multiple of 8 below data.crop_px={config.data.crop_px}."
        )
    if stage.batch_size % config.run.accumulation:
        raise ConfigError(f"{name}.batch_size must be a multiple of run.accumulation={config.run.accumulation}.")
