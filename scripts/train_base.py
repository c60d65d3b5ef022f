"""Train the embedded default's base, from nothing but tiles of photos: autoencoder first, then the prior.

    python scripts/demo_photos.py --output data/demo
    python scripts/train_base.py --photos data/demo/train --output runs/base --autoencoder_minutes 5 --prior_minutes 25

Writes OUTPUT/{vae,unet,text_encoder,tokenizer,scheduler}: a base in diffusers' layout on which
`scripts/train.py --config configs/demo.yaml` then trains both adapters. A part whose minutes are 0 is taken as it lies
in OUTPUT. Minutes are wall-clock: another machine takes other numbers of steps and ends with other weights.
"""

import argparse
import logging
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a clone works before it is installed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True, help="folder of equal-sized *.png tiles")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--degradation", type=Path, default="configs/degradation/camera.yaml", help="recipe (YAML)")
    parser.add_argument("--autoencoder_minutes", type=float, default=5)
    parser.add_argument("--prior_minutes", type=float, default=25)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")

    from pisasr.autoencoder import LappedAutoencoder
    from pisasr.config import load_recipe
    from pisasr.training.autoencoder import load_tiles, train_autoencoder
    from pisasr.training.prior import train_prior

    tiles = load_tiles(args.photos)
    if args.autoencoder_minutes:
        vae = train_autoencoder(tiles, args.autoencoder_minutes, seed=args.seed, log=logging.info)
        vae.save_pretrained(args.output / "vae")
    vae = LappedAutoencoder.from_pretrained(args.output / "vae")
    if args.prior_minutes:
        recipe = load_recipe(args.degradation)
        train_prior(tiles, vae, args.output, recipe, args.prior_minutes, seed=args.seed, log=logging.info)


if __name__ == "__main__":
    main()
