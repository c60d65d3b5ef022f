"""After train: a folder in the hub's layout, which others load by pisasr, or by diffusers where
pisasr is installed.

README.md          the model card                     adapters/            pix.safetensors,
sem.safetensors model_index.json   the base's name                    pipeline.py          what
custom_pipeline loads block.py, modular_config.json                         what
ModularPipelineBlocks loads modular_model_index.json                              what
ModularPipeline loads: the blocks, and where the adapters are
"""

import json
import re
from pathlib import Path

import diffusers
from huggingface_hub import ModelCardData

from pisasr.errors import ModelError
from pisasr.files import write_whole
from pisasr.hub.blocks import PiSASRBlocks
from pisasr.hub.loading import AdaptersOnBase, PublishedPipeline
from pisasr.models.weights import fingerprint, load_adapters
from pisasr.pipeline import PiSASRPipeline

TAGS = ["super-resolution", "image-restoration", "pisa-sr", "lora", "modular-diffusers"]

CARD = """# {title}

Adapters for **PiSA-SR** ("Pixel-level and Semantic-level Adjustable Super-resolution: A Dual-LoRA Approach", CVPR 2025,
[arXiv 2412.03017](https://arxiv.org/abs/2412.03017)) on {base}: photos are repaired and enlarged in one diffusion step,
with `lambda_pix` for how much noise, blur and compression is taken away, and `lambda_sem` for how much detail is added.

{facts}

All of these want the package `pisasr`, and give the same picture.

```python
from PIL import Image
from pisasr import PiSASRPipeline

pipe = PiSASRPipeline.from_pretrained("{name}")
repaired = pipe(Image.open("photo.png"), lambda_pix=1.0, lambda_sem=1.0, upscale=4).images[0]
```

By diffusers, from a folder, since by a hub id it would not fetch adapters:

```python
from diffusers import DiffusionPipeline
from huggingface_hub import snapshot_download
from PIL import Image

folder = snapshot_download("{name}")
pipe = DiffusionPipeline.from_pretrained(folder, custom_pipeline=folder, trust_remote_code=True)
repaired = pipe(Image.open("photo.png"), lambda_pix=1.0, lambda_sem=1.0, upscale=4).images[0]
```

As modular blocks, of which `mix` alone moves the strengths:

```python
from diffusers import ModularPipelineBlocks
from PIL import Image

blocks = ModularPipelineBlocks.from_pretrained("{name}", trust_remote_code=True)
pipe = blocks.init_pipeline("{name}")
pipe.load_components()
state = pipe(image=Image.open("photo.png"), lambda_pix=1.0, lambda_sem=1.0, upscale=4)
repaired = state.get("images")[0]

mix = blocks.sub_blocks["mix"].init_pipeline("{name}")
mix.update_components(adapters=pipe.adapters)
softer = mix(looked=state.get("looked"), lambda_pix=1.0, lambda_sem=0.4, output="images")[0]
```
"""


def publish(
    pipe: PiSASRPipeline,
    folder: Path,
    licence: str,
    name: str | None = None,
    base: str | None = None,
    about: str = "",
) -> None:
    """Write what a pipeline of a base and adapters needs to be loaded elsewhere.

    licence: of the adapters, as the hub spells it. name: the id that it will have there, for the
    card's examples; None is OWNER and the folder's name. base: by which name others find the base;
    None is the name that it was loaded by. about: Markdown for the card's end. ModelError where
    this name is a folder of this disk, or where nobody knows it, and where README.md is no card of
    ours.
    """
    card_file = folder / "README.md"
    if card_file.is_file() and f"- {TAGS[2]}\n" not in card_file.read_text(
        encoding="utf-8", errors="replace"
    ):
        raise ModelError(
            f"{card_file} is none of our cards, and would be lost; move it, or choose another folder."
        )
    pipe.save_pretrained(folder, adapters_only=True)
    index_file = folder / "model_index.json"
    index = json.loads(index_file.read_text())
    if base is None and index["base"] is not None and Path(index["base"]).expanduser().exists():
        raise ModelError(
            f"the base is a folder here, {index['base']}, which others haven't; say its hub id as `base`."
        )
    kind, name = (
        [AdaptersOnBase.__module__, AdaptersOnBase.__name__],
        name or f"OWNER/{folder.resolve().name}",
    )
    index |= {"base": base or index["base"], "adapters": kind}
    write_whole(index_file, json.dumps(index, indent=2) + "\n")
    write_whole(folder / "pipeline.py", _door(PublishedPipeline, PiSASRPipeline.__name__))
    write_whole(folder / "block.py", _door(PiSASRBlocks))
    config = {
        "_class_name": PiSASRBlocks.__name__,
        "_diffusers_version": diffusers.__version__,
        "auto_map": {"ModularPipelineBlocks": f"block.{PiSASRBlocks.__name__}"},
    }
    write_whole(folder / "modular_config.json", json.dumps(config, indent=2) + "\n")
    place = {"pretrained_model_name_or_path": name, "subfolder": "adapters", "type_hint": kind}
    modular = {
        "_class_name": "ModularPipeline",
        "_blocks_class_name": PiSASRBlocks.__name__,
        "_diffusers_version": diffusers.__version__,
        "adapters": [*kind, place],  # in a copy on this disk, diffusers takes the copy's
    }
    write_whole(folder / "modular_model_index.json", json.dumps(modular, indent=2) + "\n")
    card = _card(folder, licence, name, index["base"])
    write_whole(card_file, card + (f"\n{as_part(about).strip()}\n" if about else ""))


def _door(kind: type, name: str | None = None) -> str:
    """A file that has one class of ours, under a name of its own."""
    named = f"{kind.__name__} as {name}" if name else kind.__name__
    return f'"""For diffusers; it wants the package pisasr."""\n\nfrom {kind.__module__} import {named}  # noqa: F401\n'


def _card(folder: Path, licence: str, name: str, base: str | None) -> str:
    adapters = load_adapters(folder)
    data = ModelCardData(
        license=licence,
        library_name="diffusers",
        pipeline_tag="image-to-image",
        base_model=base,
        base_model_relation="adapter" if base else None,
        tags=TAGS,
    )
    rows = [
        f"| {adapter.name} | {adapter.rank} | {adapter.alpha:g} | {len(adapter.targets)} | {adapter.timestep} |"
        for adapter in filter(None, adapters)
    ]
    head = "| adapter | rank | alpha | layers | timestep |\n|---|---|---|---|---|"
    facts = "\n".join([head, *rows]) + f"\n\nFingerprint: `{fingerprint(*adapters)}`."
    on = (
        f"[{base}](https://huggingface.co/{base})"
        if base
        else "the small model that comes with the package `pisasr`"
    )
    card = CARD.format(title=name.split("/")[-1], base=on, facts=facts, name=name)
    return f"---\n{data.to_yaml()}\n---\n{card}"


def as_part(markdown: str) -> str:
    """A card as a part of another: without the settings in front, titles one step lower, and of
    links to files that stay behind the words alone.
    """
    body = re.sub(r"\A---\n.*?\n---\n", "", markdown, flags=re.DOTALL)
    body = re.sub(r"\[([^]]*)\]\((?!https?:)[^)]*\)", r"\1", body)
    return re.sub(r"^(#+ )", r"#\1", body, flags=re.MULTILINE)
