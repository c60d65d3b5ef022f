"""A figure of a run, what its training logged: losses by step, and the scores of its fixed
pictures.

python scripts/demo/draw_training.py runs/demo --output figs/training.png

Reads RUN/log.jsonl and RUN/validation.jsonl. Losses are means over --smooth steps; steps that were
not taken are left out. SEM continues where PIX ends.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # a clone works before it is installed

from pisasr.commands.options import positive_int
from pisasr.errors import PisasrError, guarded
from pisasr.files import Journal


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="a run.output of scripts/train.py")
    parser.add_argument("--output", type=Path, required=True, help="a picture: png, pdf or svg")
    parser.add_argument(
        "--smooth",
        type=positive_int,
        default=25,
        help="steps that one point of a curve is the mean of",
    )
    args = parser.parse_args(argv)
    return guarded(lambda: draw_run(args.run, args.smooth, args.output))


def draw_run(run: Path, smooth: int, output: Path) -> None:
    losses = Journal(run / "log.jsonl").rows()
    if not losses:
        raise PisasrError(f"{run / 'log.jsonl'} has no rows; name the folder that run.output named")
    output.parent.mkdir(parents=True, exist_ok=True)
    draw(losses, Journal(run / "validation.jsonl").rows(), smooth, output)
    print(output)


def draw(losses: list[dict], scores: list[dict], smooth: int, output: Path) -> None:
    """A panel for each loss, and one for each metric with a curve for each pair of strengths."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    switch = max(row["step"] for row in losses if row["stage"] == losses[0]["stage"])
    hidden = ("stage", "step", "total", "grad_norm", "skipped")
    panels = {
        name: {name: curve(losses, name, switch, smooth)}
        for name in names_of(losses)
        if name not in hidden
    }
    for name in names_of(scores):
        if name not in hidden:
            metric, what = name.split("/")
            panels.setdefault(metric, {})[what] = curve(scores, name, switch, 1)
    figure, axes = plt.subplots(
        1, len(panels), figsize=(4.2 * len(panels), 3.2), layout="constrained", squeeze=False
    )
    for axis, (title, curves) in zip(axes[0], panels.items(), strict=True):
        for name, (steps, values) in curves.items():
            axis.plot(steps, values, label=name, marker="." if len(steps) < 40 else None)
        axis.axvline(switch, color="grey", linewidth=0.8, linestyle=":")
        axis.set(title=title, xlabel="step")
        if len(curves) > 1:
            axis.legend(fontsize="small")
    figure.savefig(output, dpi=110)


def curve(rows: list[dict], name: str, switch: int, smooth: int) -> tuple[list[float], list[float]]:
    """(steps, values) of one column; the second stage's steps follow the first's. Means over
    `smooth` rows.
    """
    first = rows[0]["stage"]
    points = [
        (r["step"] + (r["stage"] != first) * switch, r[name])
        for r in rows
        if r.get(name) is not None
    ]
    groups = [points[i : i + smooth] for i in range(0, len(points), smooth)]
    steps, values = (
        [sum(point[k] for point in group) / len(group) for group in groups] for k in (0, 1)
    )
    return steps, values


def names_of(rows: list[dict]) -> list[str]:
    return list(dict.fromkeys(key for row in rows for key in row))


if __name__ == "__main__":
    sys.exit(main())
