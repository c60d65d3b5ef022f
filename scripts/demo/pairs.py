"""Step 7 of the embedded default: the 643 pairs that the semantic adapter goes on with, of the
tiles that are there.

    python scripts/demo/pairs.py --more data/more/train --demo data/demo/train --pages data/pages --output data/pairs

scripts/demo/pairs.json names them: n_RECIPE_TILE is one of more.py, o_RECIPE_old_TILE one of
photos.py, p_PAGE one of pages.py (--count 40). They were drawn by a seeded shuffle: of each package
of more.py up to 75 tiles for photos.yaml and 40 for soft.yaml, 180 and 80 of photos.py, 40 pages;
108 that no teacher had looked at in time are left out. Writes OUTPUT/a and OUTPUT/b, each with lq/
and hq/; teacher.py adds its pictures.
"""

import argparse
import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for degrade.py

import degrade

HERE = Path(__file__).parent
SEEDS = {"n": 11, "o": 21, "p": 21}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in ("more", "demo", "pages", "output"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    args = parser.parse_args()
    folders = {"n": args.more, "o": args.demo, "p": args.pages}
    for part, names in json.loads((HERE / "pairs.json").read_text()).items():
        for (kind, recipe), members in groups(names).items():
            make(members, folders[kind], HERE / f"{recipe}.yaml", SEEDS[kind], args.output / part)


def groups(names: list[str]) -> dict[tuple[str, str], dict[str, str]]:
    """(kind, recipe) -> {name of the pair: name of the tile as it was degraded}."""
    found: dict[tuple[str, str], dict[str, str]] = {}
    for name in names:
        kind, rest = name.split("_", 1)
        recipe, tile = ("photos", rest) if kind == "p" else rest.split("_", 1)
        found.setdefault((kind, recipe), {})[name] = tile
    return found


def make(members: dict[str, str], tiles: Path, recipe: Path, seed: int, output: Path) -> None:
    """Degrade the tiles under the names that their chance comes from, and give the pairs theirs."""
    with TemporaryDirectory() as place:
        given, made = Path(place) / "given", {part: Path(place) / part for part in ("lq", "hq")}
        given.mkdir()
        for tile in members.values():
            (given / f"{tile}.png").symlink_to(
                (tiles / f"{tile.removeprefix('old_')}.png").resolve()
            )
        words = [
            "--input",
            given,
            "--output",
            made["lq"],
            "--hq_output",
            made["hq"],
            "--recipe",
            recipe,
        ]
        if degrade.main([*map(str, words), "--crop", "192", "--seed", str(seed)]):
            sys.exit(f"some of {tiles} could not be degraded")
        for part, folder in made.items():
            (output / part).mkdir(parents=True, exist_ok=True)
            for name, tile in members.items():
                (output / part / f"{name}.png").write_bytes((folder / f"{tile}.png").read_bytes())


if __name__ == "__main__":
    main()
