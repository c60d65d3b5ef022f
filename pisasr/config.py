"""Before the training journey: what can be set. A model per concern, each default and each bound
written once, here.

Precedence: `key=value` on the command line, then the YAML file, then the defaults below. Unknown
keys are refused.
"""

import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import reduce
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from omegaconf import MISSING, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError
from yaml import YAMLError

from pisasr.data.degradation import DegradationRecipe
from pisasr.errors import UsageError

NEGATIVE_PROMPT = (  # as published
    "painting, oil painting, illustration, drawing, art, sketch, oil painting, cartoon, CG Style, 3D render, "
    "unreal engine, blurring, dirty, messy, worst quality, low quality, frames, watermark, signature, "
    "jpeg artifacts, deformed, lowres, over-smooth"
)
QUALITY_PROMPT = (
    "a sharp, clean, highly detailed photo"  # ours: the published training has a tag model's words
)

NO_SUCH_NAME = (
    "extra_forbidden",
    "unexpected_keyword_argument",
)  # pydantic's words for a key that nobody knows

T = TypeVar("T")
Count = Annotated[int, Field(ge=0, le=2**31)]
Whole = Annotated[int, Field(ge=1, le=2**31)]
Rank = Annotated[int, Field(ge=1, le=4096)]
Share = Annotated[float, Field(ge=0, le=1)]
Weight = Annotated[float, Field(ge=0, le=1e12)]  # of a loss; one of weight 0 is not computed
Strength = Annotated[float, Field(ge=-1e6, le=1e6)]
Texts = Annotated[
    list[str], BeforeValidator(lambda value: [value] if isinstance(value, str) else value)
]
Precision = Annotated[  # YAML reads a bare `no` as false
    Literal["no", "fp16", "bf16"] | None,
    BeforeValidator(lambda value: "no" if value is False else value),
]


class ConfigError(UsageError):
    """The configuration can't be used: which key, what was wanted, what came."""


class Section(BaseModel):
    """What holds for every section: unknown keys, nan and inf are refused, nobody changes it
    afterwards.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, coerce_numbers_to_str=True
    )

    @field_validator("*", mode="before")
    @classmethod
    def _is_no_truth_value(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, bool) and cls.model_fields[info.field_name or ""].annotation in (
            int,
            float,
        ):
            raise PydanticCustomError("number", "Input should be a number")
        return value


class ModelConfig(Section):
    """The frozen base and the size of the adapters on it."""

    pretrained_model: str | None = (
        "sd-2.1-base"  # a folder, a hub id, sd-2.1-base; null is the embedded default
    )
    rank_pix: Rank = 4
    rank_sem: Rank = 4
    # A layer's change is alpha / rank * B A; the published checkpoints mean 8.
    alpha: float = Field(default=8.0, ge=1e-6, le=1e6)
    gradient_checkpointing: bool = False  # of the UNet: less memory, a tenth more work
    gradient_checkpointing_vae: bool = False  # of the VAE's decoder, where most of the memory sits


class DataConfig(Section):
    """High-quality photos; their low-quality versions are made while training runs."""

    photos: (
        Texts  # folders (searched, or pairs: hq/ and lq/ in them), lists of paths, manifest.jsonl
    )
    mix: dict[str, Weight] = {}  # weights of sources by name; {}: all photos equally often
    hq_fraction: float = Field(
        default=1.0, gt=0, le=1
    )  # the best-scored share of the photos; it needs a manifest
    max_bad_fraction: Share = (
        0.01  # of the photos may fail while training runs, and always one, unless this is 0
    )
    crop_px: int = Field(
        default=512, ge=8, le=65536, multiple_of=8
    )  # 8: the side of a latent's cell
    caption: str = QUALITY_PROMPT  # for photos without a caption in PHOTO.txt or in the manifest
    null_text_ratio: Share = 0.5  # how often the UNet sees no caption; distillation always sees it
    workers: int = Field(default=4, ge=0, le=1024)
    keep_in_memory: bool = False  # decoded photos stay in memory: for a small set of tiles

    @model_validator(mode="after")
    def _weighs_something(self) -> "DataConfig":
        if self.mix and not any(self.mix.values()):
            raise ValueError(
                f"data.mix is {self.mix}; wanted a weight above 0 for one source at least"
            )
        return self


class BeyondConfig(Section):
    """What the paper's stages have not: for a base too small to know detail, and all off by
    default.
    """

    weight_lattice: Weight = 0.0  # against what repeats in every latent cell: `losses.lattice`
    weight_teacher: Weight = 0.0  # L1 to what another method made of x_L (pairs with teacher/)
    lpips_to: Literal["photo", "teacher"] = (
        "photo"  # the teacher's picture follows from x_L as the photo does not
    )
    # px by which the window moves that perception and distillation look through
    shift: int = Field(default=0, ge=0, multiple_of=8)
    sharpen: float = Field(
        default=0.0, ge=0, le=10
    )  # unsharp masking of the targets, as Real-ESRGAN's training has it
    sharpen_sigma: float = Field(default=2.0, ge=0.1, le=100)  # px of its Gaussian


class StageConfig(Section):
    """One stage: how long it learns and what it is scored by."""

    steps: Count = 0  # 0 leaves the stage out
    batch_size: int = Field(
        default=16, ge=1, le=65536
    )  # over all processes and accumulated steps together
    lr: float = Field(default=5e-5, ge=0, le=1e6)
    lr_schedule: Literal["constant", "cosine"] = "constant"  # cosine: down to zero at the last step
    warmup_steps: Count = 0
    weight_decay: float = Field(default=1e-2, ge=0, le=1e6)
    max_grad_norm: float = Field(default=1.0, ge=1e-12, le=1e12)
    weight_l2: Weight = 1.0
    weight_lpips: Weight = 0.0
    weight_csd: Weight = 0.0
    beyond: BeyondConfig = BeyondConfig()
    init_from: str | None = (
        None  # an adapter file to start from; sem: the pixel adapter to stand on
    )
    start_from: str | None = (
        None  # sem: a semantic adapter file to start from, for a second phase with other losses
    )

    @property
    def asks_teacher(self) -> bool:
        return bool(
            self.beyond.weight_teacher or (self.weight_lpips and self.beyond.lpips_to == "teacher")
        )

    @property
    def losses(self) -> dict[str, float]:
        """The weight of each loss that is computed, by name."""
        all_of_them = {
            "l2": self.weight_l2,
            "teacher": self.beyond.weight_teacher,
            "lpips": self.weight_lpips,
            "csd": self.weight_csd,
            "lattice": self.beyond.weight_lattice,
        }
        return {name: weight for name, weight in all_of_them.items() if weight}


class PerceptualConfig(Section):
    """The backbone of the perceptual loss."""

    net: Literal["vgg", "alex", "squeeze"] = "vgg"


class CsdConfig(Section):
    """Classifier score distillation."""

    cfg: Strength = 7.5
    t_min: int = 20
    t_max: int = 500  # t is drawn from [t_min, t_max)
    prompt: str = ""  # added to the caption
    negative_prompt: str = NEGATIVE_PROMPT

    @model_validator(mode="after")
    def _is_a_range(self) -> "CsdConfig":
        if not 0 <= self.t_min < self.t_max <= 1000:
            raise ValueError(
                f"csd.t_min={self.t_min}, csd.t_max={self.t_max}; wanted 0 <= t_min < t_max <= 1000"
            )
        return self


class ValidationConfig(Section):
    """Fixed pictures that the training is watched on: give `pairs` or `photos`, none that it learns
    from.
    """

    every: Count = 0  # steps; 0: never
    pairs: Annotated[
        Texts, Field(max_length=2)
    ] = []  # [FOLDER] with lq/ and hq/ in it, or [LQ, HQ]; paired by name
    photos: Texts = []  # as data.photos; degraded by the run's recipe, always alike
    count: Whole = 8  # pictures, spread evenly over what is there
    crop_px: int = Field(default=512, ge=8, le=65536)  # of each true picture, out of its middle
    lambdas: list[Annotated[list[Strength], Field(min_length=2, max_length=2)]] = []
    # [[pix, sem], ...]; none: [1, 0], in sem [1, 1] too

    @model_validator(mode="after")
    def _has_one_source(self) -> "ValidationConfig":
        if self.every and bool(self.pairs) == bool(self.photos):
            came = "both" if self.pairs else "neither"
            raise ValueError(
                f"validation.every={self.every} wants validation.pairs=[FOLDER] or validation.photos=[FOLDER], "
                f"{came} came; validation.every=0 turns it off"
            )
        return self


class TrackingConfig(Section):
    """Where losses and pictures are shown; log.jsonl and validation.jsonl are written whatever is
    said here.
    """

    trackers: Texts = ["tensorboard"]  # any of accelerate's; [] for none
    project: str = "pisasr"  # what wandb and its like file the run under


class RunConfig(Section):
    """Where, how often, how precise. With the defaults the same run gives the same bytes:
    `setup.apply_precision`.
    """

    output: str
    seed: int = Field(default=123, ge=0, lt=2**63)
    mixed_precision: Precision = (
        None  # null: what `accelerate launch --mixed_precision` says, else "no"
    )
    tf32: bool = (
        False  # float32 products rounded to ten bits of mantissa: faster on CUDA, other bytes
    )
    deterministic: bool = (
        True  # algorithms that give the same bytes again; false: cuDNN may try for the fastest
    )
    accumulation: Whole = 1  # steps whose gradients are added up to one batch
    checkpoint_every: Whole = 500
    keep_checkpoints: Whole = 2  # of each stage
    max_bad_steps: Whole = (
        10  # in a row, with a loss or gradient that is not finite, before the run ends
    )
    log_every: Whole = 10


class TrainConfig(Section):
    """All of it. `load_config` reads one."""

    model: ModelConfig = ModelConfig()
    data: DataConfig
    degradation: DegradationRecipe = DegradationRecipe()
    pix: StageConfig = StageConfig(steps=4000)
    sem: StageConfig = StageConfig(steps=8500, weight_lpips=2.0, weight_csd=1.0)
    perceptual: PerceptualConfig = PerceptualConfig()
    csd: CsdConfig = CsdConfig()
    validation: ValidationConfig = ValidationConfig()
    tracking: TrackingConfig = TrackingConfig()
    run: RunConfig

    @model_validator(mode="after")
    def _can_train(self) -> "TrainConfig":
        if not (self.pix.steps or self.sem.steps):
            raise ValueError(
                "pix.steps and sem.steps are 0: nothing to train; give one of them steps"
            )
        for name, stage in {"pix": self.pix, "sem": self.sem}.items():
            if stage.steps and not stage.losses:
                raise ValueError(
                    f"{name} has no loss; give {name}.weight_l2, or another, a weight, or {name}.steps=0"
                )
            if stage.beyond.shift >= self.data.crop_px:
                raise ValueError(
                    f"{name}.beyond.shift is {stage.beyond.shift}; wanted it below data.crop_px={self.data.crop_px}"
                )
            if stage.batch_size % self.run.accumulation:
                raise ValueError(
                    f"{name}.batch_size must be a multiple of run.accumulation={self.run.accumulation}"
                )
        return self


def load_config(path: str | Path, overrides: list[str] | None = None) -> TrainConfig:
    """Read a YAML file over the defaults, then `section.key=value` strings over that; types and
    names are checked.

    degradation may be a recipe's file, from the YAML file's folder; in a string, from where the
    command runs.

    Raises ConfigError in one line: a key that doesn't exist (with the nearest one that does), a
    value that can't be, a required key that nobody gave.
    """
    needed = {"data": {"photos": MISSING}, "run": {"output": MISSING}}
    defaults = TrainConfig.model_validate(needed).model_dump()
    defaults["data"]["photos"] = MISSING  # above it became a list of one text
    return _read(path, overrides or [], defaults, TrainConfig.model_validate)


def load_recipe(path: str | Path) -> DegradationRecipe:
    """Read a degradation recipe (YAML) over the published one. ConfigError as `load_config`."""
    return _read(
        path, [], asdict(DegradationRecipe()), TypeAdapter(DegradationRecipe).validate_python
    )


def to_yaml(config: TrainConfig) -> str:
    """The configuration as it was resolved: every key, so that it can be run again as it stands."""
    return OmegaConf.to_yaml(OmegaConf.create(config.model_dump()))


def flatten(node: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} as {"a.b": 1}."""
    flat: dict[str, Any] = {}
    for key, value in node.items():
        name = f"{prefix}{key}"
        flat |= (
            flatten(value, f"{name}.") if isinstance(value, Mapping) and value else {name: value}
        )
    return flat


def _read(
    path: str | Path, overrides: list[str], defaults: dict[str, Any], validate: Callable[[Any], T]
) -> T:
    if not Path(path).is_file():
        raise ConfigError(
            f"{path} is no file; wanted a YAML configuration, like configs/pisasr.yaml."
        )
    if bare := [text for text in overrides if "=" not in text]:
        raise ConfigError(
            f"{bare[0]!r} is no override; wanted section.key=value, like run.output=runs/a."
        )
    try:
        given = OmegaConf.load(path)
        if not OmegaConf.is_dict(given):
            raise ConfigError(f"{path} holds no sections; wanted YAML like configs/pisasr.yaml.")
        words = OmegaConf.from_dotlist(overrides)
        if isinstance(words.get("degradation"), str):
            given.pop("degradation", None)  # a recipe takes the place of the file's, whole
        for part, folder in ((given, Path(path).parent), (words, Path())):
            if isinstance(recipe := part.get("degradation"), str):
                part["degradation"] = OmegaConf.load(folder / recipe)
        merged = reduce(_over, map(OmegaConf.to_container, (given, words)), defaults)
        return validate(
            OmegaConf.to_container(OmegaConf.create(merged), resolve=True, throw_on_missing=True)
        )
    except MissingMandatoryValue as error:
        raise ConfigError(
            f"{error.full_key} is not set; give it in {path} or as {error.full_key}=VALUE."
        ) from error
    except ValidationError as error:
        raise ConfigError(f"{path}: {_in_one_line(error, list(flatten(defaults)))}") from error
    except OmegaConfBaseException as error:
        raise ConfigError(
            f"{path}: {error.full_key or 'unreadable'}: {_shortened(error)}"
        ) from error
    except (YAMLError, UnicodeDecodeError, OSError) as error:
        raise ConfigError(
            f"{path} or an override is not readable as YAML ({_shortened(error)})."
        ) from error
    except (
        ValueError,
        TypeError,
        ArithmeticError,
        RecursionError,
    ) as error:  # a value too odd for whoever checks it
        raise ConfigError(
            f"{path} or an override has a value that can't be used ({_shortened(error)})."
        ) from error


def _over(below: Any, above: Any) -> Any:
    """Sections are laid over each other key by key; whatever else comes takes the place of what was
    there.
    """
    if not (isinstance(below, Mapping) and isinstance(above, Mapping)):
        return above
    return {**below, **{key: _over(below.get(key), value) for key, value in above.items()}}


def _in_one_line(error: ValidationError, known: list[str]) -> str:
    """The first thing that is wrong: "key is VALUE; wanted WHAT", a name that is none, or a check's
    own words.
    """
    first = min(error.errors(), key=lambda each: each["type"] not in NO_SUCH_NAME)
    key, message, came = (
        ".".join(map(str, first["loc"])),
        first["msg"],
        _shortened(repr(first["input"])),
    )
    if first["type"] in NO_SUCH_NAME:
        if key in known:  # as one word of the file
            section, _, name = key.rpartition(".")
            return f"{key!r} is written as one word; wanted {name!r} in a section, {section}: {{{name}: VALUE}}."
        close = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
        return f"no setting {key!r}; " + (
            f"did you mean {close[0]!r}?" if close else "see pisasr/config.py for all of them."
        )
    if first["type"] in ("value_error", "assertion_error"):
        own = message.removeprefix("Value error, ")
        return f"{own}." if not key or key in own else f"{key}: {own}."
    if first["type"] in ("model_type", "dataclass_type"):
        return f"{key} is {came}; wanted a section, like {{KEY: VALUE}}."
    wanted = re.sub(r"^(Input|Value|List|Tuple) should (be|have) ", "", message).replace(
        "tuple", "list"
    )
    return f"{key} is {came}; wanted {wanted[:1].lower()}{wanted[1:]}."


def _shortened(text: object) -> str:
    return " ".join(str(text).split())[:160]
