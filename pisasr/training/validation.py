"""Photo to adapter, beside the way: fixed pictures, restored every so many steps. The training
notices nothing.
"""

import logging
import math
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from pisasr.config import TrainConfig, ValidationConfig
from pisasr.data.degradation import DegradationRecipe, degrade_one, sample_generator
from pisasr.data.photos import list_photos
from pisasr.errors import ImageError, PisasrError
from pisasr.evaluation.metrics import psnr
from pisasr.files import Journal, finite
from pisasr.method.adapters import active
from pisasr.method.model import PiSASR, Plan, Predictors, predict_eps, restore
from pisasr.pictures.folders import list_pictures, match_names
from pisasr.pictures.images import (
    crop,
    from_levels,
    open_image,
    pad,
    plan_frame,
    split,
    to_batch,
    to_image,
    to_tensor,
    to_unit,
)
from pisasr.pictures.opening import read_picture
from pisasr.pictures.saving import save_image
from pisasr.pictures.sheets import draw_comparison
from pisasr.training.losses import Perceptual
from pisasr.training.stages import Stage

log = logging.getLogger(__name__)

SHEET_ROWS = 8
PLAN = Plan(vae_tile_px=512)  # beyond this size the VAE works in pieces; see `vae_tiling`


class Pair(NamedTuple):
    """One fixed picture: its name, the input as inference enlarges it, the true one. Both RGB, of
    one size.
    """

    name: str
    lq: Image.Image
    hq: Image.Image


class Validation(NamedTuple):
    """Means over the pictures by name ("psnr/pix1_sem0", ...), and the sheet; nothing when memory
    did not suffice.
    """

    scores: dict[str, float]
    sheet: Image.Image | None


@dataclass
class Validator:
    """The pictures, the strengths, and where the results go: OUTPUT/validation.jsonl,
    OUTPUT/validation/STAGE-STEP.png.

    `build` makes it before the model is loaded. All of it is for the main process alone and
    exchanges nothing with the others: they wait for it at their next step, for as long as
    `loop.PATIENCE` says.
    """

    every: int
    pairs: list[Pair]
    lambdas: list[tuple[float, float]]  # none: by stage
    output: Path
    perceptual_name: str
    rows: Journal

    @classmethod
    def build(cls, config: TrainConfig) -> "Validator | None":
        """Read the pictures; None where validation.every is 0. PisasrError, one line, where they
        can't be had.
        """
        settings = config.validation
        if not settings.every:
            return None
        pairs = read_pairs(settings) if settings.pairs else make_pairs(settings, config.degradation)
        lambdas, output = [(pix, sem) for pix, sem in settings.lambdas], Path(config.run.output)
        name, rows = f"lpips_{config.perceptual.net}", Journal(output / "validation.jsonl")
        return cls(settings.every, pairs, lambdas, output, name, rows)

    def run(
        self, model: PiSASR, stage: Stage, step: int, perceptual: Perceptual | None = None
    ) -> Validation:
        """Restore every picture at every pair of strengths, score, and write a row and a sheet.

        Deterministic: posterior mean, empty prompt. Weights, gradients, train mode, adapters and
        random states are left as they were found. PSNR is that of `evaluate`, on 8-bit pictures
        without a border; besides it `perceptual`, the stage's own loss, where it has one. Call it inside the trainer's autocast.
        A lack of memory costs this validation, one of disk its sheet, each with one line.
        """
        sheet = self.output / "validation" / f"{stage.name}-{step}.png"
        found = Validation({}, None)
        try:
            with at_rest(model.unet, model.vae):
                found = self._restore_all(model, stage, perceptual)
            sheet.parent.mkdir(parents=True, exist_ok=True)
            self.rows.append(finite({"stage": stage.name, "step": step, **found.scores}))
            if found.sheet is not None:
                save_image(found.sheet, sheet)
        except (torch.OutOfMemoryError, OSError) as error:
            reason = str(error).splitlines()[0]
            log.warning(
                "validation at %s step %d is not whole (%s); training goes on",
                stage.name,
                step,
                reason,
            )
        return found

    def _restore_all(
        self, model: PiSASR, stage: Stage, perceptual: Perceptual | None
    ) -> Validation:
        device = next(model.unet.parameters()).device
        metrics = self._metrics(device, perceptual)
        lambdas = self.lambdas or (
            [(1.0, 0.0), (1.0, 1.0)] if "sem" in stage.active else [(1.0, 0.0)]
        )
        names = ["lq", *(f"pix{pix:.15g}_sem{sem:.15g}" for pix, sem in lambdas)]
        heads = ["LQ", *(f"pix {pix:g}, sem {sem:g}" for pix, sem in lambdas), "HQ"]
        scores: dict[str, list[float]] = defaultdict(list)
        rows = []
        for pair in self.pairs:
            pictures = [pair.lq, *restore_picture(model, pair.lq, lambdas)]
            for name, picture in zip(names, pictures, strict=True):
                for metric, score in metrics.items():
                    scores[f"{metric}/{name}"].append(
                        score(picture, pair.hq) if picture else math.nan
                    )
            black = Image.new("RGB", pair.hq.size)
            rows.append(dict(zip(heads, [p or black for p in (*pictures, pair.hq)], strict=True)))
        means = {name: math.fsum(values) / len(values) for name, values in sorted(scores.items())}
        return Validation(means, draw_comparison(spread(rows, SHEET_ROWS)))

    def _metrics(self, device: torch.device, perceptual: Perceptual | None) -> dict[str, Callable]:
        """name -> function of a restored picture and the true one."""
        metrics: dict[str, Callable] = {
            "psnr": lambda picture, hq: psnr(np.asarray(picture), np.asarray(hq))
        }

        def distance(of: Perceptual) -> Callable[[Image.Image, Image.Image], float]:
            """`of` two pictures [1, 3, H, W] in [0, 1], in float32."""

            def measure(*pictures: Image.Image) -> float:
                with torch.autocast(device.type, enabled=False):
                    return float(of(*(to_tensor(picture).to(device) for picture in pictures)))

            return measure

        if perceptual is not None:
            metrics[self.perceptual_name] = distance(lambda x, y: perceptual(x * 2 - 1, y * 2 - 1))
        return metrics


@contextmanager
def at_rest(*networks: nn.Module) -> Iterator[None]:
    """Run the block in eval mode and without gradients, then give every module its own mode back.

    no_grad, not inference_mode: an embedding that is remembered here may be asked for by a training
    step.
    """
    modes = [(module, module.training) for network in networks for module in network.modules()]
    for module, _ in modes:
        module.training = False
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def restore_picture(
    model: PiSASR, lq: Image.Image, lambdas: Sequence[tuple[float, float]]
) -> list[Image.Image | None]:
    """The picture at each pair of strengths, None where the model answers nan or inf.

    Each of eps_pix and eps_full is predicted once, if some pair needs it. The model carries live
    adapters "pix" and "sem".
    """
    device = next(model.unet.parameters()).device
    frame = plan_frame(*lq.size, upscale=1, process_size=1, multiple=model.factor)
    x_L = from_levels(to_batch([pad(np.asarray(lq), frame)], device)) * 2 - 1
    embeds = model.prompt_encoder("")

    def predicts(*adapters: str) -> Callable[[Tensor], Tensor]:
        def look(z_L: Tensor) -> Tensor:
            with active(model.unet, adapters):
                return predict_eps(model.unet, z_L, embeds)

        return look

    results = restore(
        model, x_L, Predictors(predicts("pix"), predicts("pix", "sem")), lambdas, PLAN
    )
    pictures = (crop(x_H.float(), frame) for x_H, _ in results if x_H is not None)
    return [to_image(to_unit(x)) if x.isfinite().all() else None for x in pictures]


# --- the pictures ---------------------------------------------------------------------------------


def read_pairs(settings: ValidationConfig) -> list[Pair]:
    """`validation.pairs`: LQ and HQ files with the same names. The true picture is a whole multiple
    of its input.
    """
    folders = [Path(folder) for folder in settings.pairs]
    lq_folder, hq_folder = folders if len(folders) == 2 else (folders[0] / "lq", folders[0] / "hq")
    try:
        lq_files, hq_files = list_pictures(lq_folder), list_pictures(hq_folder)
    except PisasrError as error:
        raise PisasrError(f"validation.pairs: {error}.") from error
    names = match_names(hq_files, lq_files)
    strays = sorted({hq_files[stem].name for stem in hq_files.keys() - names.keys()})
    strays += sorted({lq_files[stem].name for stem in lq_files.keys() - set(names.values())})
    if strays:
        raise PisasrError(
            f"validation.pairs: {lq_folder} has {len(lq_files)} pictures, {hq_folder} has {len(hq_files)}; "
            f"without a partner: {', '.join(strays[:5])}{', ...' if len(strays) > 5 else ''}."
        )
    stems = spread(sorted(names), settings.count)
    return [_read_pair(lq_files[names[stem]], hq_files[stem], settings.crop_px) for stem in stems]


def _read_pair(lq_path: Path, hq_path: Path, crop_px: int) -> Pair:
    try:
        lq, hq = (Image.fromarray(read_picture(path)) for path in (lq_path, hq_path))
    except ImageError as error:
        raise PisasrError(f"validation.pairs: {error}.") from error
    scale = max(hq.width // lq.width, 1)
    if hq.size != (scale * lq.width, scale * lq.height):
        raise PisasrError(
            f"validation.pairs: {hq_path} is {hq.width}x{hq.height}, {lq_path} is {lq.width}x{lq.height}; "
            "wanted the same size or a whole multiple."
        )
    lq = middle(lq, max(crop_px // scale, 1))
    hq = middle(hq, max(crop_px // scale, 1) * scale, scale)
    return Pair(hq_path.stem, lq.resize(hq.size, Image.Resampling.BICUBIC), hq)


def make_pairs(settings: ValidationConfig, recipe: DegradationRecipe) -> list[Pair]:
    """`validation.photos`, degraded as the recipe says by a chance that hangs on the file's name
    alone.

    So run.seed, the other photos and their order change nothing: runs can be compared.
    """
    try:
        photos = list_photos(settings.photos)
    except PisasrError as error:
        raise PisasrError(str(error).replace("data.photos", "validation.photos")) from error
    pairs = []
    for path in spread(photos, settings.count):
        try:
            hq = middle(split(open_image(path))[0], settings.crop_px)
        except ImageError as error:
            raise PisasrError(f"validation.photos: {path}: {error}.") from error
        generator = sample_generator(0, -1, zlib.crc32(path.name.encode()))
        lq = to_image(degrade_one(to_tensor(hq)[0], recipe, generator))
        pairs.append(Pair(path.stem, lq.resize(hq.size, Image.Resampling.BICUBIC), hq))
    return pairs


def spread(items: Sequence[Any], count: int) -> list[Any]:
    """At most `count` of the items, evenly from first to last."""
    count = min(count, len(items))
    return [items[index * len(items) // count] for index in range(count)]


def middle(picture: Image.Image, side: int, step: int = 1) -> Image.Image:
    """The middle of a picture, at most side x side; its corner lies on multiples of `step`."""
    width, height = (min(side, length) for length in picture.size)
    left, top = (
        (whole - part) // step // 2 * step
        for whole, part in zip(picture.size, (width, height), strict=True)
    )
    return picture.crop((left, top, left + width, top + height))
