"""Adapters on disk: a safetensors file each that says what it is, and the published .pkl."""

import hashlib
import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from pisasr.errors import CheckpointError
from pisasr.files import write_whole

Kind = Literal["pix", "sem"]

FORMAT, VERSION = "pisasr-adapter", 2
PUBLISHED_ALPHA = 8.0  # peft's default of the time; the published file does not hold it
PUBLISHED_TIMESTEP = 1
KINDS: tuple[Kind, ...] = ("pix", "sem")  # in the order of the stages that train them
OTHER_SIDE = {"A": "B", "B": "A"}

_KEY = re.compile(r"(?P<module>.+)\.lora_(?P<side>[AB])\.weight")
_PUBLISHED_KEY = re.compile(r"(.+\.lora_[AB])\.default_(encoder|decoder|others)_(pix|sem)\.weight")
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


@dataclass(frozen=True)
class Adapter:
    """One LoRA: W grows by (alpha / rank) B A.

    tensors: "MODULE.lora_A.weight" [rank, in, ...] and "MODULE.lora_B.weight" [out, rank, ...],
    float32. base: facts about the UNet it was trained on (`base_facts`). timestep: the one step it
    was trained at.
    """

    name: Kind
    rank: int
    alpha: float
    tensors: dict[str, Tensor] = field(repr=False)
    base: dict[str, Any] = field(default_factory=dict)
    timestep: int = PUBLISHED_TIMESTEP

    @property
    def targets(self) -> list[str]:
        """The layers it changes."""
        return sorted({key.rsplit(".lora_", 1)[0] for key in self.tensors})


def base_facts(unet_config: Mapping[str, Any]) -> dict[str, Any]:
    """What tells one base from another, out of a UNet's config, as JSON keeps it."""
    keys = ("in_channels", "cross_attention_dim", "block_out_channels", "blocks", "features")
    facts = {key: unet_config[key] for key in keys if unet_config.get(key) is not None}
    return {key: list(value) if isinstance(value, tuple) else value for key, value in facts.items()}


def save_adapter(
    path: str | os.PathLike, adapter: Adapter, dtype: torch.dtype = torch.float32
) -> None:
    """Write one adapter; the file appears whole or not at all. dtype float16 halves it.

    What the file says of itself is one JSON text, so that equal adapters are equal files
    (safetensors orders several texts anew in each process). Its SHA-256 covers that text, too.
    """
    _check(adapter, str(path))
    tensors = {
        key: tensor.detach().to("cpu", dtype).contiguous()
        for key, tensor in adapter.tensors.items()
    }
    facts = ("rank", "alpha", "base", "timestep", "targets")
    head: dict[str, Any] = {name: getattr(adapter, name) for name in facts}
    head |= {"version": VERSION, "kind": adapter.name}
    head["sha256"] = _digest(tensors, head)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, save(tensors, {FORMAT: json.dumps(head, sort_keys=True)}))


def load_adapter(path: str | os.PathLike) -> Adapter:
    """Read one adapter. CheckpointError if it is missing, damaged, too new or inconsistent."""
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(
            f"no adapter at {path}; give the folder that holds pix.safetensors and sem.safetensors."
        )
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}
    except Exception as error:  # a crafted header makes the library raise more than its own errors
        raise CheckpointError(
            f"{path} is not a whole safetensors file ({_one_line(error)}); get it again."
        ) from error
    head = _head_of(path, metadata)
    wanted = head.pop("sha256", None)
    if wanted != _digest(tensors, head):
        raise CheckpointError(f"{path} is damaged: it differs from what was saved; get it again.")
    adapter = _from_head(path, head, tensors)
    _check(adapter, str(path))
    return adapter


def load_adapters(source: str | os.PathLike, **hub: Any) -> tuple[Adapter, Adapter | None]:
    """(pix, sem) from a folder, a hub id, or the published .pkl; sem None if there is none.

    hub: of `snapshot_download` (cache_dir, token, local_files_only, force_download), for a hub id.
    """
    path = Path(source).expanduser()
    if path.suffix in (".pkl", ".pt", ".pth", ".bin"):
        return convert_release(path)
    if path.is_file():
        raise CheckpointError(
            f"{path} is a file; give a folder with pix.safetensors and sem.safetensors, or a .pkl."
        )
    if not path.is_dir():
        path = _fetch_adapters(source, hub)
    if (path / "adapters").is_dir() and not (path / "pix.safetensors").exists():
        path = path / "adapters"  # of a model, or of what save_pretrained wrote
    adapters = [
        _load_kind(path, kind)
        for kind in KINDS
        if kind == "pix" or (path / f"{kind}.safetensors").exists()
    ]
    return adapters[0], adapters[1] if len(adapters) > 1 else None


def convert_release(path: str | os.PathLike) -> tuple[Adapter, Adapter]:
    """(pix, sem) out of the published checkpoint.

    Read with torch's weights-only unpickler, which runs no code. A plain dict is expected, with six
    lists of layers, two ranks and the tensors, named
    MODULE.lora_{A,B}.default_{encoder,decoder,others}_{pix,sem}.weight; all else is refused.
    """
    path = Path(path)
    content = _unpickle(path)
    lists = [
        f"unet_lora_{group}_modules_{kind}"
        for kind in KINDS
        for group in ("encoder", "decoder", "others")
    ]
    wanted = {*lists, *(f"lora_rank_unet_{kind}" for kind in KINDS), "state_dict_unet"}
    if not isinstance(content, dict) or content.keys() != wanted:
        raise CheckpointError(
            f"{path} is no PiSA-SR checkpoint: wanted a dict of {sorted(wanted)}; get pisa_sr.pkl."
        )
    if not isinstance(content["state_dict_unet"], dict):
        raise CheckpointError(
            f"{path}: state_dict_unet is no dict of tensors; get pisa_sr.pkl again."
        )

    tensors: dict[str, dict[str, Tensor]] = {kind: {} for kind in KINDS}
    for key, tensor in content["state_dict_unet"].items():
        match = _PUBLISHED_KEY.fullmatch(str(key))
        if match is None or not isinstance(tensor, Tensor):
            raise CheckpointError(
                f"{path}: {key!r} is not an entry of the published layout; get pisa_sr.pkl again."
            )
        tensors[match[3]][f"{match[1]}.weight"] = tensor.float()
    pix, sem = (_published(path, kind, content, tensors[kind]) for kind in KINDS)
    return pix, sem


def looks_like_hub_id(name: str | os.PathLike) -> bool:
    """OWNER/NAME as a text, and no such path here; all else is never asked for online."""
    is_id = isinstance(name, str) and _HUB_ID.fullmatch(name) is not None
    return is_id and not Path(name).exists() and not Path(name).parent.exists()


def _published(path: Path, kind: Kind, content: dict, tensors: dict[str, Tensor]) -> Adapter:
    rank = content[f"lora_rank_unet_{kind}"]
    listed: list[Any] = []
    for group in ("encoder", "decoder", "others"):
        names = content[f"unet_lora_{group}_modules_{kind}"]
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise _damaged(path, f"the layers of {kind} are no lists of names")
        listed += names
    if not isinstance(rank, int) or rank < 1:
        raise _damaged(path, f"the rank of {kind} is {rank!r}, wanted a positive integer")
    adapter = Adapter(kind, rank, PUBLISHED_ALPHA, tensors, timestep=PUBLISHED_TIMESTEP)
    if sorted(listed) != adapter.targets:
        raise _damaged(path, f"the layers listed for {kind} are not those that have tensors")
    _check(adapter, str(path))
    return replace(adapter, base=_facts_from(tensors))


def _facts_from(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """What the tensors themselves tell about the base they were trained on."""
    facts: dict[str, Any] = {}
    if "conv_in.lora_A.weight" in tensors:
        facts["in_channels"] = tensors["conv_in.lora_A.weight"].shape[1]
    widths = {
        tensor.shape[1]
        for key, tensor in tensors.items()
        if key.endswith("attn2.to_k.lora_A.weight")
    }
    if len(widths) == 1:
        facts["cross_attention_dim"] = widths.pop()
    return facts


def _unpickle(path: Path) -> Any:
    if not path.is_file():
        raise CheckpointError(f"no checkpoint at {path}; give the path of pisa_sr.pkl.")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch's own would advise to trust the file
        raise CheckpointError(
            f"{path} can't be read as plain weights; get pisa_sr.pkl again."
        ) from error


def _head_of(path: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    """What the file says of itself."""
    if FORMAT not in metadata:
        raise CheckpointError(
            f"{path} was not written by pisasr; convert pisa_sr.pkl with scripts/convert.py."
        )
    try:
        head = dict(json.loads(metadata[FORMAT]))
        version = int(head["version"])
    except (KeyError, ValueError, TypeError, OverflowError, RecursionError) as error:
        raise _damaged(path, f"its header can't be read ({_one_line(error)})") from error
    if version > VERSION:
        raise CheckpointError(
            f"{path} is of format version {version}, this pisasr reads {VERSION}; update it."
        )
    return head


def _from_head(path: Path, head: Mapping[str, Any], tensors: dict[str, Tensor]) -> Adapter:
    try:
        rank, alpha, timestep = int(head["rank"]), float(head["alpha"]), int(head["timestep"])
        adapter = Adapter(head["kind"], rank, alpha, tensors, dict(head["base"]), timestep)
        targets = head["targets"]
    except (KeyError, ValueError, TypeError, OverflowError) as error:
        raise _damaged(path, f"its header can't be read ({_one_line(error)})") from error
    if targets != adapter.targets:
        raise _damaged(path, "the layers its header names are not those that have tensors")
    return adapter


def _check(adapter: Adapter, where: str) -> None:
    """A LoRA of the stated rank, whole and finite."""
    if adapter.name not in KINDS:
        raise CheckpointError(f"{where}: an adapter is 'pix' or 'sem', not {adapter.name!r}.")
    if not (math.isfinite(adapter.alpha) and adapter.alpha > 0):
        raise _damaged(where, f"alpha is {adapter.alpha}, wanted a positive number")
    if not adapter.tensors:
        raise _damaged(where, f"the {adapter.name} adapter holds no tensors")
    for key, tensor in adapter.tensors.items():
        match = _KEY.fullmatch(key)
        other = match and f"{match['module']}.lora_{OTHER_SIDE[match['side']]}.weight"
        if match is None or other not in adapter.tensors:
            raise CheckpointError(
                f"{where}: {key!r} has no counterpart; a LoRA is pairs of lora_A and lora_B."
            )
        rank = tensor.shape[0 if match["side"] == "A" else 1] if tensor.ndim in (2, 4) else None
        if rank != adapter.rank:
            shape = list(tensor.shape)
            raise CheckpointError(
                f"{where}: {key} is {shape}, which is not of rank {adapter.rank}."
            )
        if not tensor.is_floating_point() or not tensor.isfinite().all():
            raise _damaged(where, f"{key} holds values that are no finite numbers")


def _load_kind(folder: Path, kind: str) -> Adapter:
    adapter = load_adapter(folder / f"{kind}.safetensors")
    if adapter.name != kind:
        found = adapter.name
        raise CheckpointError(
            f"{folder}/{kind}.safetensors holds the {found} adapter; were the two files swapped?"
        )
    return adapter


def _fetch_adapters(name: str | os.PathLike, hub: dict[str, Any]) -> Path:
    if not looks_like_hub_id(name):
        raise CheckpointError(
            f"no adapters at {name}; give a folder with pix.safetensors, a .pkl, or OWNER/NAME."
        )
    from huggingface_hub import snapshot_download

    wanted = [f"{place}{kind}.safetensors" for place in ("", "adapters/") for kind in KINDS]
    try:
        return Path(snapshot_download(str(name), allow_patterns=wanted, **hub))
    except Exception as error:  # the hub's client has a dozen ways to say no
        reason = _one_line(error)
        raise CheckpointError(
            f"no adapters from hub id {name} ({reason}); download them, give the folder."
        ) from error


def fingerprint(*adapters: Adapter | None) -> str:
    """Twelve hex digits that equal adapters share, whatever files they came in."""
    sha = hashlib.sha256()
    for adapter in filter(None, adapters):
        facts = {"kind": adapter.name, "scale": adapter.alpha / adapter.rank}
        sha.update(_digest(adapter.tensors, facts).encode())
    return sha.hexdigest()[:12]


def _digest(tensors: Mapping[str, Tensor], head: Mapping[str, Any]) -> str:
    """SHA-256 of the head and of the tensors with their types and shapes."""
    layout = {key: [str(tensor.dtype), list(tensor.shape)] for key, tensor in tensors.items()}
    sha = hashlib.sha256(json.dumps([head, layout], sort_keys=True).encode())
    for key in sorted(tensors):
        sha.update(key.encode())
        sha.update(tensors[key].reshape(-1).contiguous().view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()


def _damaged(where: object, what: str) -> CheckpointError:
    return CheckpointError(f"{where}: {what}; get it again.")


def _one_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
