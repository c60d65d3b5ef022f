"""Write adapters as a folder for the hub: the weights, the base's name and a model card."""

import json
from pathlib import Path

from huggingface_hub import ModelCardData

from pisasr.errors import ModelError
from pisasr.files import write_whole
from pisasr.models.weights import load_adapters
from pisasr.pipeline import PiSASRPipeline

TAGS = ["super-resolution", "image-restoration", "pisa-sr", "lora"]

CARD = """# {title}

Adapters for **PiSA-SR** ("Pixel-level and Semantic-level Adjustable Super-resolution: A Dual-LoRA
Approach", CVPR 2025, [arXiv 2412.03017](https://arxiv.org/abs/2412.03017)) on {base}: photos are
repaired and enlarged in one diffusion step, with `lambda_pix` for how much noise, blur and
compression is taken away, and `lambda_sem` for how much detail is added.

| adapter | rank | alpha | layers |
|---|---|---|---|
{rows}

```python
from PIL import Image
from pisasr import PiSASRPipeline

pipe = PiSASRPipeline.from_pretrained("{name}")
image = pipe(Image.open("photo.png"), lambda_pix=1.0, lambda_sem=1.0, upscale=4).images[0]
```
"""


def publish(
    pipe: PiSASRPipeline,
    folder: Path,
    license: str,
    name: str | None = None,
    base: str | None = None,
) -> None:
    """Write what `PiSASRPipeline.from_pretrained` needs to load these adapters elsewhere.

    license: of the adapters, in the hub's spelling. name: the future hub id, for the card. base:
    the hub id of the base, by default the name by which it was loaded. ModelError where the base
    is unknown or a local folder, or where README.md is not a card of pisasr's.
    """
    card = folder / "README.md"
    if card.is_file() and f"- {TAGS[2]}\n" not in card.read_text("utf-8", errors="replace"):
        raise ModelError(f"{card} is not a card of pisasr's; move it, or choose another folder.")
    pipe.save_pretrained(folder, adapters_only=True)
    index_file = folder / "model_index.json"
    index = json.loads(index_file.read_text())
    if base is None and index["base"] is not None and Path(index["base"]).expanduser().exists():
        raise ModelError(f"the base is a local folder, {index['base']}; give its hub id as `base`.")
    index["base"] = base or index["base"]
    write_whole(index_file, json.dumps(index, indent=2) + "\n")
    write_whole(card, _card(folder, license, name or default_name(folder), index["base"]))


def default_name(folder: Path) -> str:
    """The hub id used in examples where none is given."""
    return f"OWNER/{folder.resolve().name}"


def _card(folder: Path, license: str, name: str, base: str | None) -> str:
    data = ModelCardData(
        license=license,
        library_name="pisasr",
        pipeline_tag="image-to-image",
        base_model=base,
        base_model_relation="adapter" if base else None,
        tags=TAGS,
    )
    rows = [
        f"| {adapter.name} | {adapter.rank} | {adapter.alpha:g} | {len(adapter.targets)} |"
        for adapter in load_adapters(folder)
        if adapter is not None
    ]
    link = f"[{base}](https://huggingface.co/{base})" if base else "the model inside `pisasr`"
    text = CARD.format(title=name.split("/")[-1], base=link, rows="\n".join(rows), name=name)
    return f"---\n{data.to_yaml()}\n---\n{text}"
