"""Train the embedded default's base, from nothing but tiles of photos: autoencoder first, then the prior.

    python scripts/demo/demo_photos.py --output data/demo
    python scripts/demo/draw_pages.py --output data/demo/pages
    python scripts/demo/train_base.py --photos data/demo/train data/demo/pages --mix train=0.92 pages=0.08 \\
        --output runs/base

Writes OUTPUT/{vae,unet,text_encoder,tokenizer,scheduler}: a base in diffusers' layout on which
`scripts/train.py --config scripts/demo/demo.yaml` then trains both. The same command continues a run that was cut
short, from OUTPUT/checkpoints and with the same bytes as one that was not; a part of 0 steps is taken as it lies in
OUTPUT.

Exit code: 0 done, 1 nothing could start, or a checkpoint is of another run.
"""

import argparse
import logging
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # a clone works before it is installed

from pisasr.commands.options import positive_int  # noqa: E402
from pisasr.errors import PisasrError  # noqa: E402


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--photos", nargs="+", required=True, help="folders, path lists or manifests, as data.photos of train.py")
    add("--mix", nargs="*", default=[], metavar="NAME=WEIGHT", help="how often each source comes, as data.mix")
    add("--output", type=Path, required=True)
    add("--degradation", type=Path, default=Path("configs/degradation/camera.yaml"), help="recipe (YAML)")
    add("--crop", type=positive_int, default=128, metavar="PX", help="side of a sample, a multiple of 16")
    add("--autoencoder_steps", type=int, default=2000)
    add("--prior_steps", type=int, default=6000)
    add("--batch", type=positive_int, default=8)
    add("--workers", type=int, default=0, help="processes that cut and degrade")
    add("--device", choices=("cpu", "cuda", "mps"), help="default: cuda where there is one")
    add("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    if args.crop % 16:
        parser.error(f"--crop {args.crop} is no multiple of 16, which the autoencoder and the UNet divide it by")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    try:
        train(args)
    except (PisasrError, ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def train(args: argparse.Namespace) -> None:
    import torch
    from autoencoder import train_autoencoder
    from parts import Schedule
    from prior import train_prior

    from pisasr.models.autoencoder import LappedAutoencoder
    from pisasr.training.checkpoints import Checkpoints

    data = open_data(args)
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    checkpoints = Checkpoints(args.output / "checkpoints", keep=1)
    if args.autoencoder_steps:
        schedule = Schedule(args.autoencoder_steps, args.batch, lr=4e-4)
        train_autoencoder(data, schedule, checkpoints, device=device).save_pretrained(args.output / "vae")
    vae = LappedAutoencoder.from_pretrained(args.output / "vae")
    if args.prior_steps:
        schedule = Schedule(args.prior_steps, args.batch, lr=5e-4, weight_decay=1e-3, average=0.998)
        train_prior(data, vae, args.output, schedule, checkpoints, device)


def open_data(args: argparse.Namespace):
    from parts import Data

    from pisasr.config import load_recipe
    from pisasr.data.photos import Photos, choose_photos, share_out

    try:
        mix = {name: float(weight) for name, weight in (text.split("=") for text in args.mix)}
    except ValueError:
        raise PisasrError(f"--mix is {' '.join(args.mix)}; wanted NAME=WEIGHT, like train=0.92 pages=0.08.") from None
    chosen = choose_photos(args.photos, mix=mix)
    recipe = load_recipe(args.degradation)
    photos = Photos([p.path for p in chosen], args.crop, recipe, args.seed, keep_in_memory=True)
    return Data(photos, share_out(chosen, mix), args.workers)


if __name__ == "__main__":
    sys.exit(main())
