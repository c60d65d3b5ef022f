"""Define what can be set for a training: a model per section, each default and bound written once.

Precedence: `section.key=value` on the command line, then the YAML file, then the defaults below.
"""

import difflib
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from pisasr.data.degradation import DegradationRecipe
from pisasr.errors import UsageError

NEGATIVE_PROMPT = (  # as published
    "painting, oil painting, illustration, drawing, art, sketch, oil painting, cartoon, CG Style, "
    "3D render, unreal engine, blurring, dirty, messy, worst quality, low quality, frames, "
    "watermark, signature, jpeg artifacts, deformed, lowres, over-smooth"
)
# Ours: the published training has a tag model's words.
QUALITY_PROMPT = "a sharp, clean, highly detailed photo"
NEGATED_PIX = "-pix"

Count = Annotated[int, Field(ge=0, le=2**31)]
Whole = Annotated[int, Field(ge=1, le=2**31)]
Share = Annotated[float, Field(ge=0, le=1)]
Weight = Annotated[float, Field(ge=0, le=1e12)]  # of a loss; one of weight 0 is not computed
Texts = Annotated[
    list[str], BeforeValidator(lambda value: [value] if isinstance(value, str) else value)
]
Precision = Annotated[  # YAML reads a bare `no` as false
    Literal["no", "fp16", "bf16"] | None,
    BeforeValidator(lambda value: "no" if value is False else value),
]


class ConfigError(UsageError):
    """The configuration can't be used; the message names the key."""


class Section(BaseModel):
    """Refuse unknown keys, nan and inf; read-only."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, coerce_numbers_to_str=True
    )


class ModelConfig(Section):
    """The frozen base and the size of the adapters on it."""

    # A folder, a hub id or sd-2.1-base; null is the embedded base.
    pretrained_model: str | None = "sd-2.1-base"
    rank_pix: int = Field(default=4, ge=1, le=4096)
    rank_sem: int = Field(default=4, ge=1, le=4096)
    # A layer's change is alpha / rank * B A; the published checkpoints mean 8.
    alpha: float = Field(default=8.0, ge=1e-6, le=1e6)
    gradient_checkpointing: bool = False  # of UNet and VAE: less memory, a tenth more work

    def rank_of(self, name: str) -> int:
        return self.rank_pix if name == "pix" else self.rank_sem


class DataConfig(Section):
    """High-quality photos; their low-quality versions are made while training runs."""

    photos: Texts  # folders (searched, or pairs: hq/ and lq/ in them) and text files of paths
    mix: dict[str, Weight] = {}  # weights of sources by name; {}: all photos equally often
    crop_px: int = Field(default=512, ge=8, le=65536, multiple_of=8)
    caption: str = QUALITY_PROMPT  # for photos without a caption in PHOTO.txt
    null_text_ratio: Share = 0.5  # how often the UNet gets the empty prompt; distillation never
    workers: int = Field(default=4, ge=0, le=1024)


class StageConfig(Section):
    """One stage: how long it learns and what it is scored by."""

    steps: Count = 0  # 0 leaves the stage out
    batch_size: int = Field(default=16, ge=1, le=65536)  # over all processes and accumulated parts
    lr: float = Field(default=5e-5, ge=0, le=1e6)
    lr_schedule: Literal["constant", "cosine"] = "constant"  # cosine: down to 0 at the last step
    warmup_steps: Count = 0
    weight_decay: float = Field(default=1e-2, ge=0, le=1e6)
    max_grad_norm: float = Field(default=1.0, ge=1e-12, le=1e12)
    weight_l2: Weight = 1.0
    weight_psnr: Weight = 0.0
    weight_lpips: Weight = 0.0
    weight_color: Weight = 0.0
    weight_csd: Weight = 0.0
    weight_critic: Weight = 0.0
    lpips_net: Literal["vgg", "alex", "squeeze"] = "vgg"
    start_from: str | None = None  # an adapter file to start from
    base_target_ratio: Share = 0.0  # how often the look is the base's: see losses.taught_by_base

    @property
    def weights(self) -> dict[str, float]:
        """The weight of each loss that is computed, by name."""
        named = {key.removeprefix("weight_"): value for key, value in self if "weight_" in key}
        return {name: weight for name, weight in named.items() if weight and name != "decay"}


class SemConfig(StageConfig):
    """The semantic stage. start_from "-pix": the pixel adapter's negative, so that strengths (1, 1)
    begin as the bare base.
    """

    pix_adapter: str | None = None  # the pixel adapter to stand on; null: this run's


class CsdConfig(Section):
    """Classifier score distillation."""

    cfg: float = Field(default=7.5, ge=-1e6, le=1e6)
    t_min: int = Field(default=20, ge=0)
    t_max: int = Field(default=500, le=1000)  # t is drawn from [t_min, t_max)
    prompt: str = ""  # added to the caption
    negative_prompt: str = NEGATIVE_PROMPT


class ValidationConfig(Section):
    """Fixed pictures that the training is watched on."""

    every: Count = 0  # steps; 0: never
    pairs: str | None = None  # a folder with hq/ and lq/ in it, as degrade.py writes it
    count: Whole = 8  # pictures, spread evenly over what is there
    crop_px: int = Field(default=512, ge=8, le=65536)  # of each true picture, out of its middle


class RunConfig(Section):
    """Where, how often, how precise. With the defaults the same run gives the same bytes."""

    output: str
    seed: int = Field(default=123, ge=0, lt=2**63)
    # null: what `accelerate launch --mixed_precision` says, else "no".
    mixed_precision: Precision = None
    deterministic: bool = True  # false: the fastest CUDA algorithms, and TF32
    accumulation: Whole = 1  # parts whose gradients are added up to one batch
    checkpoint_every: Whole = 500
    keep_checkpoints: Whole = 2  # of each stage
    trackers: Texts = ["tensorboard"]  # any of accelerate's; [] for none


class TrainConfig(Section):
    """All of it. `load_config` reads one."""

    model: ModelConfig = ModelConfig()
    data: DataConfig
    degradation: DegradationRecipe = DegradationRecipe()
    pix: StageConfig = StageConfig(steps=4000)
    sem: SemConfig = SemConfig(steps=8500, weight_lpips=2.0, weight_csd=1.0)
    csd: CsdConfig = CsdConfig()
    validation: ValidationConfig = ValidationConfig()
    run: RunConfig

    @model_validator(mode="after")
    def _check(self) -> "TrainConfig":
        if self.data.mix and not any(self.data.mix.values()):
            raise ValueError("data.mix needs a weight above 0")
        if self.csd.t_min >= self.csd.t_max:
            raise ValueError("csd.t_min must be below csd.t_max")
        if self.validation.every and not self.validation.pairs:
            raise ValueError("validation.every needs validation.pairs, a folder of hq/ and lq/")
        if not (self.pix.steps or self.sem.steps):
            raise ValueError("pix.steps and sem.steps are 0: nothing to train")
        for name, stage in {"pix": self.pix, "sem": self.sem}.items():
            if stage.steps and not stage.weights:
                raise ValueError(f"{name} has no loss; give {name}.weight_l2, or another, a weight")
            if stage.batch_size % self.run.accumulation:
                raise ValueError(f"{name}.batch_size must be a multiple of run.accumulation")
            if stage.weight_critic and self.run.accumulation > 1:
                raise ValueError(f"{name}.weight_critic needs run.accumulation=1")
        if self.sem.start_from == NEGATED_PIX and self.model.rank_pix != self.model.rank_sem:
            raise ValueError(f"sem.start_from={NEGATED_PIX} needs model.rank_sem = model.rank_pix")
        return self


def load_config(path: str | Path, overrides: list[str] | None = None) -> TrainConfig:
    """Read a YAML file over the defaults, then `section.key=value` strings over that.

    degradation may be a recipe's file: in YAML relative to the YAML file, in a string to the
    working directory. Raises ConfigError, one line with the first key that is wrong.
    """
    path = Path(path)
    given = _merge(_defaults(), _with_recipe(_read_yaml(path), path.parent))
    for text in overrides or []:
        name, equals, value = text.partition("=")
        if not equals:
            raise ConfigError(f"{text!r} is no override; expected section.key=value.")
        level = _parse_yaml(value, text)
        for key in reversed(name.split(".")):
            level = {key: level}
        given = _merge(given, _with_recipe(level, Path()))
    try:
        return TrainConfig.model_validate(given)
    except ValidationError as error:
        raise ConfigError(f"{path}: {_first_error(error)}") from error


def load_recipe(path: str | Path) -> DegradationRecipe:
    """Read a degradation recipe (YAML) over the published one. ConfigError as `load_config`."""
    try:
        recipe = _merge(asdict(DegradationRecipe()), _read_yaml(Path(path)))
        return TypeAdapter(DegradationRecipe).validate_python(recipe)
    except ValidationError as error:
        raise ConfigError(f"{path}: {_first_error(error, 'degradation')}") from error


def to_yaml(config: TrainConfig) -> str:
    """Return every setting as it was resolved; it can be run again as it stands."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, width=1000)


def flatten(node: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Turn {"a": {"b": 1}} into {"a.b": 1}."""
    flat: dict[str, Any] = {}
    for key, value in node.items():
        name = f"{prefix}{key}"
        nested = isinstance(value, Mapping) and value
        flat |= flatten(value, f"{name}.") if nested else {name: value}
    return flat


def _defaults() -> dict[str, Any]:
    """Every default, without the two keys that have none."""
    defaults = TrainConfig(data=DataConfig(photos=[]), run=RunConfig(output="")).model_dump()
    del defaults["data"]["photos"], defaults["run"]["output"]
    return defaults


def _with_recipe(given: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Put a whole recipe, laid over the published one, where the name of its file is."""
    if not isinstance(name := given.get("degradation"), str):
        return given
    return {**given, "degradation": _merge(asdict(DegradationRecipe()), _read_yaml(folder / name))}


def _read_yaml(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ConfigError(f"{path} is no file; expected YAML like configs/pisasr.yaml.")
    content = _parse_yaml(path.read_text(encoding="utf-8", errors="replace"), str(path))
    if not isinstance(content, dict):
        raise ConfigError(f"{path} holds no sections; expected YAML like configs/pisasr.yaml.")
    return content


def _parse_yaml(text: str, source: str) -> Any:
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{source} is not YAML ({' '.join(str(error).split())[:160]}).") from None


def _merge(below: Any, above: Any) -> Any:
    """Lay sections over each other key by key; any other value replaces what was there."""
    if not (isinstance(below, Mapping) and isinstance(above, Mapping)):
        return above
    return {**below, **{key: _merge(below.get(key), value) for key, value in above.items()}}


def _first_error(error: ValidationError, prefix: str = "") -> str:
    """Describe the first error in one line; for an unknown key with the nearest known one."""
    unknown = ("extra_forbidden", "unexpected_keyword_argument")
    first = min(error.errors(), key=lambda each: each["type"] not in unknown)
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] in unknown:
        known = [*flatten(_defaults()), "data.photos", "run.output"]
        known = [name.removeprefix(f"{prefix}.") for name in known]
        close = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
        return f"no setting {key!r}" + (f"; did you mean {close[0]!r}?" if close else ".")
    got = " ".join(repr(first["input"]).split())[:80]
    return f"{key}: {first['msg']} (got {got})." if key else f"{first['msg']}."
