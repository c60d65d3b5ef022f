"""Draw what a training run logged: losses by step, and the scores of its fixed pictures.

python scripts/demo/draw_training.py runs/demo --output figs/training.png

Reads RUN/log.jsonl and RUN/validation.jsonl. Losses are means over --smooth steps; steps that were not taken are left
out. SEM continues where PIX ends.
"""

import argparse
import json
import sys
from pathlib import Path


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a run.output of scripts/train.py")
    parser.add_argument("--output", type=Path, required=True, help="a picture: png, pdf or svg")
    parser.add_argument("--smooth", type=int, default=25, help="steps that one point of a curve is the mean of")
    args = parser.parse_args(argv)
    losses = read_rows(args.run / "log.jsonl")
    if not losses:
        print(f"{args.run / 'log.jsonl'} has no rows; name the folder that run.output named", file=sys.stderr)
        return 1
    args.output.parent.mkdir(parents=True, exist_ok=True)
    draw(losses, read_rows(args.run / "validation.jsonl"), max(1, args.smooth), args.output)
    print(args.output)
    return 0


def read_rows(path: Path) -> list[dict]:
    """The whole rows of a log; a kill may have left half of one at the end."""
    lines = path.read_text().splitlines(keepends=True) if path.is_file() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def draw(losses: list[dict], scores: list[dict], smooth: int, output: Path) -> None:
    """A panel for each loss, and one for each metric with a curve for each pair of strengths."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    switch = max(row["step"] for row in losses if row["stage"] == losses[0]["stage"])
    hidden = ("stage", "step", "total", "grad_norm", "skipped")
    panels = {name: {name: curve(losses, name, switch, smooth)} for name in names_of(losses) if name not in hidden}
    for name in names_of(scores):
        if name not in hidden:
            metric, what = name.split("/")
            panels.setdefault(metric, {})[what] = curve(scores, name, switch, 1)
    figure, axes = plt.subplots(1, len(panels), figsize=(4.2 * len(panels), 3.2), layout="constrained", squeeze=False)
    for axis, (title, curves) in zip(axes[0], panels.items(), strict=True):
        for name, (steps, values) in curves.items():
            axis.plot(steps, values, label=name, marker="." if len(steps) < 40 else None)
        axis.axvline(switch, color="grey", linewidth=0.8, linestyle=":")
        axis.set(title=title, xlabel="step")
        if len(curves) > 1:
            axis.legend(fontsize="small")
    figure.savefig(output, dpi=110)


def curve(rows: list[dict], name: str, switch: int, smooth: int) -> tuple[list[float], list[float]]:
    """(steps, values) of one column; the second stage's steps follow the first's. Means over `smooth` rows."""
    first = rows[0]["stage"]
    points = [(r["step"] + (r["stage"] != first) * switch, r[name]) for r in rows if r.get(name) is not None]
    groups = [points[i : i + smooth] for i in range(0, len(points), smooth)]
    steps, values = ([sum(point[k] for point in group) / len(group) for group in groups] for k in (0, 1))
    return steps, values


def names_of(rows: list[dict]) -> list[str]:
    return list(dict.fromkeys(key for row in rows for key in row))


if __name__ == "__main__":
    sys.exit(main())
