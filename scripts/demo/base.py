"""Step 3 of the embedded default: its base, from nothing but tiles of photos; autoencoder first,
then the prior.

    python scripts/demo/base.py --photos data/demo/train data/demo/pages --mix train=0.92 pages=0.08 --output runs/base

Writes OUTPUT/{vae,unet,text_encoder,tokenizer,scheduler}: a base in diffusers' layout on which
`scripts/train.py --config scripts/demo/demo.yaml` then trains both adapters. The same command
continues a run that was cut short, from OUTPUT/checkpoints and with the same bytes as one that was
not; a part of 0 steps is taken as it lies in OUTPUT.

Exit code: 0 done, 1 nothing could start, or a checkpoint is of another run.
"""

from __future__ import annotations

import argparse
import io
import logging
import math
import sys
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # a clone works before it is installed

from pisasr.commands.options import positive_int
from pisasr.errors import CheckpointError, PisasrError, guarded
from pisasr.files import write_whole

if TYPE_CHECKING:
    from torch import Tensor, nn

    from pisasr.data.photos import Photos

    Part = TypeVar("Part", bound=nn.Module)
    Loss = Callable[[dict[str, Any]], Tensor]  # of a batch of `Photos`

log = logging.getLogger(__name__)
STATISTICS = 64  # pictures that principal components and channel widths are taken from


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add(
        "--photos",
        nargs="+",
        required=True,
        help="folders, path lists or manifests, as data.photos of train.py",
    )
    add(
        "--mix",
        nargs="*",
        default=[],
        metavar="NAME=WEIGHT",
        help="how often each source comes, as data.mix",
    )
    add("--output", type=Path, required=True)
    add(
        "--degradation",
        type=Path,
        default=Path("configs/degradation/camera.yaml"),
        help="recipe (YAML)",
    )
    add(
        "--crop",
        type=positive_int,
        default=128,
        metavar="PX",
        help="side of a sample, a multiple of 16",
    )
    add("--autoencoder_steps", type=int, default=2000)
    add("--prior_steps", type=int, default=6000)
    add("--batch", type=positive_int, default=8)
    add("--workers", type=int, default=0, help="processes that cut and degrade")
    add("--device", choices=("cpu", "cuda", "mps"), help="default: cuda where there is one")
    add("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    if args.crop % 16:
        parser.error(
            f"--crop {args.crop} is no multiple of 16, which the autoencoder and the UNet divide it by"
        )
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    return guarded(lambda: train(args))


def train(args: argparse.Namespace) -> None:
    """The whole story: photos, autoencoder, prior. Chance in a part belongs to the seed, so either
    can be redone.
    """
    import torch
    from autoencoder import autoencoder_loss, whiten
    from prior import build_parts, prior_loss, save_base

    from pisasr.models.autoencoder import LappedAutoencoder

    data = open_data(args)
    device = torch.device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    checkpoints = args.output / "checkpoints"
    checkpoints.mkdir(parents=True, exist_ok=True)
    if args.autoencoder_steps:
        first = next(data.batches(STATISTICS, 0))["x_H"]
        torch.manual_seed(args.seed)
        vae = LappedAutoencoder(latent_channels=16)
        vae.start_from_principal_components(first)
        vae.to(device)
        schedule = Schedule(args.autoencoder_steps, args.batch, lr=4e-4)
        train_part("vae", vae, autoencoder_loss(vae), data, schedule, checkpoints)
        whiten(vae.cpu(), first)
        vae.save_pretrained(args.output / "vae")
    vae = LappedAutoencoder.from_pretrained(args.output / "vae")
    if args.prior_steps:
        torch.manual_seed(args.seed)
        parts, tokenizer, scheduler = build_parts(
            vae.config.latent_channels, args.output / "tokenizer"
        )
        vae.requires_grad_(False).to(device)
        loss = prior_loss(parts.to(device), vae, tokenizer, scheduler)
        schedule = Schedule(args.prior_steps, args.batch, lr=5e-4, weight_decay=1e-3, average=0.998)
        trained = train_part("prior", parts, loss, data, schedule, checkpoints)
        save_base(args.output, vae.cpu(), dict(trained.cpu().items()), tokenizer, scheduler)


# --- what it learns from --------------------------------------------------------------------------


@dataclass
class Data:
    """Photos and their degraded versions, in an order that depends on the seed alone."""

    photos: Photos
    shares: list[tuple[list[int], int]]
    workers: int = 0

    def batches(self, size: int, start: int) -> Iterator[dict[str, Any]]:
        from torch.utils.data import DataLoader

        from pisasr.data.photos import KeyedBatches

        sampler = KeyedBatches(
            len(self.photos), size, self.photos.seed, shares=self.shares, start=start
        )
        return iter(DataLoader(self.photos, batch_sampler=sampler, num_workers=self.workers))


def open_data(args: argparse.Namespace) -> Data:
    from pisasr.config import load_recipe
    from pisasr.data.photos import Photos, list_photos, share_out

    try:
        mix = {name: float(weight) for name, weight in (text.split("=") for text in args.mix)}
    except ValueError:
        raise PisasrError(
            f"--mix is {' '.join(args.mix)}; wanted NAME=WEIGHT, like train=0.92 pages=0.08."
        ) from None
    chosen = list_photos(args.photos, mix)
    recipe = load_recipe(args.degradation)
    photos = Photos(chosen, args.crop, recipe, args.seed)
    return Data(photos, share_out(chosen, mix), args.workers)


# --- how it learns --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Schedule:
    """How long, how fast, how many pictures at a time. The learning rate rises over `warmup_steps`,
    stays until half of the steps are taken and falls to zero in a straight line."""

    steps: int
    batch_size: int
    lr: float
    warmup_steps: int = 100
    weight_decay: float = 0.0
    average: float | None = (
        None  # of weights, exponential, this much of the old at every step; None: the last ones
    )

    def lr_at(self, step: int) -> float:
        rise = step / self.warmup_steps if self.warmup_steps else 1.0
        return self.lr * max(0.0, min(1.0, rise, 2 - 2 * step / self.steps))


def train_part(
    name: str,
    part: Part,
    loss_of: Loss,
    data: Data,
    schedule: Schedule,
    folder: Path,
    checkpoint_every: int = 200,
    log_every: int = 100,
) -> Part:
    """Take every step that FOLDER/NAME.pt has not seen yet; return the part, or its average if the
    schedule has one.

    Chance in a loss belongs to the step. CheckpointError where the checkpoint is of another
    schedule: its steps were others. PisasrError at a loss that is not finite.
    """
    import torch
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

    from pisasr.data.degradation import sample_generator

    optimizer = torch.optim.AdamW(
        part.parameters(), lr=schedule.lr, weight_decay=schedule.weight_decay
    )
    average = (
        AveragedModel(part, multi_avg_fn=get_ema_multi_avg_fn(schedule.average))
        if schedule.average
        else None
    )
    moving = {"part": part, "optimizer": optimizer, **({"average": average} if average else {})}
    first = take_up(folder / f"{name}.pt", moving, schedule)
    running = None
    for step, batch in enumerate(data.batches(schedule.batch_size, first), start=first + 1):
        if step > schedule.steps:
            break
        torch.manual_seed(
            sample_generator(data.photos.seed, zlib.crc32(name.encode()), step).initial_seed()
        )
        optimizer.param_groups[0]["lr"] = schedule.lr_at(step)
        loss = loss_of(batch)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(part.parameters(), 1.0)
        optimizer.step()
        if average:
            average.update_parameters(part)
        running = loss.item() if running is None else 0.99 * running + 0.01 * loss.item()
        if not math.isfinite(running):
            raise PisasrError(
                f"{name}: the loss is {running} at step {step}; the last checkpoint is whole."
            )
        if step % log_every == 0 or step == schedule.steps:
            log.info("%s step %d/%d: loss %.5f", name, step, schedule.steps, running)
        if step % checkpoint_every == 0 or step == schedule.steps:
            save(folder / f"{name}.pt", moving, schedule, step)
    return cast("Part", average.module) if average else part


def save(file: Path, moving: dict[str, Any], schedule: Schedule, step: int) -> None:
    """All that a later start goes on from, whole or not at all."""
    import torch

    content = io.BytesIO()
    states = {key: one.state_dict() for key, one in moving.items()}
    torch.save({"step": step, "schedule": vars(schedule), **states}, content)
    write_whole(file, content.getvalue())


def take_up(file: Path, moving: dict[str, Any], schedule: Schedule) -> int:
    """Go back to a checkpoint and return its step; without one, 0."""
    import torch

    if not file.is_file():
        return 0
    found = torch.load(file, map_location="cpu", weights_only=True)
    if found["schedule"] != vars(schedule):
        raise CheckpointError(
            f"{file} was trained by {found['schedule']}, not {vars(schedule)}; "
            "give the same numbers again, or another --output."
        )
    for key, one in moving.items():
        one.load_state_dict(found[key])
    log.info("continued at step %d of %s", found["step"], file)
    return found["step"]


if __name__ == "__main__":
    sys.exit(main())
