"""Photo to adapter, the end: the page beside two adapters that says where they come from."""

from pathlib import Path

from pisasr.config import TrainConfig, to_yaml
from pisasr.files import write_whole


def write_card(output: Path, config: TrainConfig) -> None:
    """Write OUTPUT/adapters/README.md, a Hugging Face model card, from what was configured."""
    stages = []
    for name in ("pix", "sem"):
        settings = getattr(config, name)
        if settings.steps:
            losses = [f"{loss} {weight:g}" for loss, weight in settings.losses.items()]
            batch = f"batch {settings.batch_size} of {config.data.crop_px} px"
            stages.append(f"| {name} | {settings.steps} | {batch} | {', '.join(losses)} | {settings.lr:g} |")
    text = CARD.format(base=config.model.pretrained_model or "pisasr's embedded base", stages="\n".join(stages),
                       config=to_yaml(config).strip())  # fmt: skip
    write_whole(output / "adapters" / "README.md", text)


CARD = """---
library_name: pisasr
pipeline_tag: image-to-image
tags: [super-resolution, pisa-sr, lora]
---
# PiSA-SR adapters

Two LoRA adapters for one-step super-resolution (arXiv:2412.03017) on {base}: `pix.safetensors` takes degradation away,
`sem.safetensors`, which needs the former, adds detail.

| stage | steps | samples | losses | learning rate |
|---|---|---|---|---|
{stages}

```sh
python scripts/infer.py --pretrained_model BASE --adapters FOLDER_OF_THIS_FILE --input PHOTOS --output results
```

Every setting of the run:

```yaml
{config}
```
"""
