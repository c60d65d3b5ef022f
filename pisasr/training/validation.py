"""Restore fixed pictures every so many steps: scores in validation.jsonl, a sheet to look at."""

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from pisasr.errors import PisasrError
from pisasr.evaluation.metrics import psnr
from pisasr.method.adapters import active
from pisasr.method.model import PiSASR, Plan, Predictors, predict_eps, restore
from pisasr.pictures.folders import list_pictures
from pisasr.pictures.frames import crop, pad, plan_frame
from pisasr.pictures.images import from_levels, to_batch, to_image, to_tensor, to_unit
from pisasr.pictures.opening import read_picture
from pisasr.pictures.saving import save_image
from pisasr.pictures.sheets import draw_comparison
from pisasr.training.config import TrainConfig, ValidationConfig
from pisasr.training.stages import Stage
from pisasr.training.state import append_row

PLAN = Plan(vae_tile_px=512)  # beyond this size the VAE works in tiles


class Pair(NamedTuple):
    """One fixed picture: the input as inference enlarges it, and the true one, of one size."""

    lq: Image.Image
    hq: Image.Image


@dataclass
class Validator:
    """Write OUTPUT/validation.jsonl and OUTPUT/validation/STAGE-STEP.png.

    It runs on the main process alone; the others wait for it at their next step.
    """

    every: int
    pairs: list[Pair]
    output: Path

    @classmethod
    def build(cls, config: TrainConfig) -> "Validator | None":
        """Read the pictures; None where validation.every is 0."""
        settings = config.validation
        if not settings.every:
            return None
        return cls(settings.every, read_pairs(settings), Path(config.run.output))

    def is_due(self, step: int, last: int) -> bool:
        """Whether this step is one to validate after; the last one always is."""
        return step % self.every == 0 or step == last

    @torch.no_grad()
    def run(
        self, model: PiSASR, stage: Stage, step: int, lpips: nn.Module | None
    ) -> tuple[dict[str, float], Image.Image]:
        """Restore every picture at the stage's strengths; return mean scores by name, and a sheet.

        Posterior mean, empty prompt. PSNR-Y without a border; LPIPS where the stage learns by it. A
        picture with nan or inf is black and scores nan.
        """
        lambdas = [(1.0, 0.0), (1.0, 1.0)] if "sem" in stage.active else [(1.0, 0.0)]
        names = ["lq", *(f"pix{pix:g}_sem{sem:g}" for pix, sem in lambdas)]
        scores: dict[str, list[float]] = defaultdict(list)
        rows, device = [], model.unet.device
        for lq, hq in self.pairs:
            pictures = [lq, *restore_picture(model, lq, lambdas)]
            for name, picture in zip(names, pictures, strict=True):
                levels = np.asarray(picture or lq), np.asarray(hq)
                scores[f"psnr/{name}"].append(psnr(*levels) if picture else math.nan)
                if lpips is not None:
                    images = [to_tensor(image).to(device) for image in (picture or lq, hq)]
                    scores[f"lpips/{name}"].append(float(lpips(*images)) if picture else math.nan)
            shown = [picture or Image.new("RGB", hq.size) for picture in (*pictures, hq)]
            rows.append(dict(zip([*names, "hq"], shown, strict=True)))
        means = {name: math.fsum(values) / len(values) for name, values in sorted(scores.items())}
        append_row(self.output / "validation.jsonl", {"stage": stage.name, "step": step, **means})
        file = self.output / "validation" / f"{stage.name}-{step}.png"
        file.parent.mkdir(exist_ok=True)
        save_image(sheet := draw_comparison(rows), file)
        return means, sheet


def restore_picture(
    model: PiSASR, lq: Image.Image, lambdas: Sequence[tuple[float, float]]
) -> list[Image.Image | None]:
    """Restore a picture at each pair of strengths with live adapters; None for nan or inf."""
    frame = plan_frame(*lq.size, upscale=1, process_size=1, multiple=model.factor)
    x_L = from_levels(to_batch([pad(np.asarray(lq), frame)], model.unet.device)) * 2 - 1
    prompt_embeds = model.prompt_encoder("")

    def predictor(*adapters: str) -> Callable[[Tensor], Tensor]:
        def run(z_L: Tensor) -> Tensor:
            with active(model.unet, adapters):
                return predict_eps(model.unet, z_L, prompt_embeds)

        return run

    predictors = Predictors(predictor("pix"), predictor("pix", "sem"))
    results = restore(model, x_L, predictors, lambdas, PLAN)
    pictures = [crop(x_H.float(), frame) for x_H, _ in results]
    return [to_image(to_unit(x)) if x.isfinite().all() else None for x in pictures]


def read_pairs(settings: ValidationConfig) -> list[Pair]:
    """Read and crop the pairs of equal names; the true picture is a whole multiple of its input."""
    folder = Path(settings.pairs or "")
    lq_files, hq_files = (list_pictures(folder / side) for side in ("lq", "hq"))
    if strays := sorted(lq_files.keys() ^ hq_files.keys()):
        raise PisasrError(
            f"validation.pairs: {len(strays)} pictures are in only one of {folder}/lq and "
            f"{folder}/hq, like {strays[0]}."
        )
    names = sorted(hq_files)
    count = min(settings.count, len(names))
    names = [names[index * len(names) // count] for index in range(count)]
    return [_read_pair(lq_files[name], hq_files[name], settings.crop_px) for name in names]


def _read_pair(lq_path: Path, hq_path: Path, crop_px: int) -> Pair:
    lq, hq = (Image.fromarray(read_picture(path)) for path in (lq_path, hq_path))
    scale = max(hq.width // lq.width, 1)
    if hq.size != (scale * lq.width, scale * lq.height):
        raise PisasrError(
            f"validation.pairs: {hq_path} is {hq.width}x{hq.height}, {lq_path} is "
            f"{lq.width}x{lq.height}; expected the same size or a whole multiple."
        )
    width, height = (min(max(crop_px // scale, 1), side) for side in lq.size)
    left, top = (lq.width - width) // 2, (lq.height - height) // 2
    right, bottom = left + width, top + height
    lq = lq.crop((left, top, right, bottom))
    hq = hq.crop((scale * left, scale * top, scale * right, scale * bottom))
    return Pair(lq.resize(hq.size, Image.Resampling.BICUBIC), hq)
