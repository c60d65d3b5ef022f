"""`pisasr evaluate` and scripts/evaluate.py: folders in, scores out."""

from __future__ import annotations

import argparse
import os
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pisasr.commands.options import add_pipeline_options, check_pipeline_options, normalise
from pisasr.errors import PisasrError
from pisasr.evaluation.rules import parse_lambdas, parse_rule

if TYPE_CHECKING:
    from pisasr.evaluation.evaluate import Checked, Settings
    from pisasr.evaluation.processes import Processes
    from pisasr.evaluation.scorers import Panel
    from pisasr.evaluation.surface import Grid
    from pisasr.evaluation.testsets import TestSet

OK, NOTHING_STARTED, UNFIT, INTERRUPTED = 0, 1, 3, 130
OFFLINE_METRICS = ("psnr", "ssim", "niqe", "featdist")

EXAMPLES = """\
examples:
  python scripts/evaluate.py --sr results/photos --hr photos --output results/scores
  python scripts/evaluate.py --sr bicubic=out/bicubic ours=out/ours --hr hq --lr lq \\
      --metrics psnr ssim psnr_lq niqe featdist --output results/scores
  python scripts/evaluate.py --sets sets.yaml --compare_published --output results/paper
  python scripts/evaluate.py --lr lq --hr hq --lambdas 0:1.5:0.25 0:1.5:0.25 --rule "niqe where psnr_lq >= 30" \\
      --metrics psnr psnr_lq niqe --output results/surface
  accelerate launch --num_processes 4 scripts/evaluate.py ...       the pictures are shared, the result is the same

Pictures are paired by name: equal names first, then names without endings such as x4, _LR4, _HR, _SR, _out, _gt
(--suffix). Anything missing, extra, unreadable or of another size is listed and nothing is scored, unless
--allow_missing. The same command continues a run that was killed.

sets.yaml (paths count from its folder; {set} is the set's name):
  stablesr_testsets: StableSR-TestSets       adds DIV2K-Val, RealSR and DRealSR, those that are there
  sr: {ours: "results/ours/{set}", OSEDiff: "results/osediff/{set}"}
  sets:
    RealLQ250: {lr: RealLQ250}               no true pictures: metrics without a reference
    mine: {hr: photos/hq, lr: photos/lq}     a manifest.json of scripts/degrade.py in lr is verified

exit code: 0 scored, 1 nothing could start, 2 usage, 3 pictures do not fit together
"""


def build_parser() -> argparse.ArgumentParser:
    from pisasr.evaluation.metrics import METRICS, PROTOCOLS

    parser = argparse.ArgumentParser(
        prog="pisasr evaluate",
        usage="%(prog)s --sr [NAME=]DIR ... --hr DIR --output DIR [options]; --help tells them",
        description="Score folders of restored pictures: a number per picture, the means, and how they were made.",
        epilog=EXAMPLES,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument_group("pictures").add_argument
    add("--sr", nargs="+", default=[], metavar="[NAME=]DIR", help="restored pictures, one folder per method")
    add("--hr", type=Path, metavar="DIR", help="the true pictures")
    add("--lr", type=Path, metavar="DIR", help="the inputs")
    add("--sets", type=Path, metavar="YAML", help="several test sets at once, see below")
    add(
        "--set",
        default="",
        metavar="NAME",
        help="the test set's name; one whose pictures are known (RealSR) is refused when they differ",
    )
    add("--suffix", metavar="REGEX", help="name endings to disregard instead of the ones below")
    add("--allow_missing", action="store_true", help="score what every folder has, list the rest in the tables")

    add = parser.add_argument_group("numbers").add_argument
    add(
        "--metrics",
        nargs="+",
        type=_metric,
        metavar="METRIC",
        help=f"any of {' '.join(METRICS)} (default: {' '.join(OFFLINE_METRICS)}, those that the folders allow)",
    )
    add(
        "--protocol",
        choices=PROTOCOLS,
        default="stablesr",
        help="how PSNR and SSIM are taken (default: stablesr): "
        + "; ".join(f"{name}: {protocol.source}" for name, protocol in PROTOCOLS.items()),
    )
    add(
        "--border", type=int, metavar="N", help="px that PSNR and SSIM leave out at each side (default: the protocol's)"
    )
    add(
        "--weights",
        type=Path,
        default=os.environ.get("PISASR_WEIGHTS"),
        metavar="DIR",
        help="files that metrics need, by their own names (default: $PISASR_WEIGHTS)",
    )
    add("--cross_check", action="store_true", help="score with torchmetrics, too, and say the largest differences")

    add = parser.add_argument_group("results").add_argument
    add(
        "--output",
        type=Path,
        required=True,
        metavar="DIR",
        help="for per_image.csv, summary.json, table.md, table.tex, plots/ and sheets/",
    )
    add("--paired", nargs=2, metavar=("A", "B"), help="methods to compare picture by picture (default: the first two)")
    add("--plots", choices=("png", "pdf", "svg", "none"), default="png", help="default: png")
    add(
        "--sheets",
        type=int,
        default=8,
        metavar="N",
        help="pictures on the comparison sheets, those where methods differ most (default: 8)",
    )
    add(
        "--compare_published",
        nargs="*",
        metavar="OURS=THEIRS",
        help="hold the means against the tables of the literature; names that differ are given",
    )
    add(
        "--published_scores",
        metavar="[METHOD=]CSV",
        help="somebody's per-picture scores (name, metrics) to hold one method's against",
    )

    add = parser.add_argument_group("strengths: run the model itself on --lr").add_argument
    add(
        "--lambdas",
        nargs=2,
        type=parse_lambdas,
        metavar=("PIX", "SEM"),
        help='a grid of strengths, "0:1.5:0.25" or "0,0.5,1", from one encoding and two UNet passes a picture',
    )
    add("--rule", type=parse_rule, help='which pair is the best: "niqe where psnr_lq >= 30"; infer has --lambda_auto')
    add("--save_pictures", action="store_true", help="keep the grid's pictures in OUTPUT/pictures")
    add_pipeline_options(parser)
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    return parser


def main(argv: list[str] | None = None) -> int:
    from pisasr.evaluation.processes import Processes

    parser = build_parser()
    args = parser.parse_args(normalise(sys.argv[1:] if argv is None else argv))
    methods = _name_methods(args.sr, parser)
    _check_usage(args, parser)
    processes = Processes()
    try:
        return evaluate(methods, args, processes)
    except KeyboardInterrupt:
        print("pisasr: interrupted; the same command goes on from here", file=sys.stderr)
        return INTERRUPTED
    except (PisasrError, OSError) as error:
        if args.debug:
            raise
        if processes.is_first:
            print(f"pisasr: {error}", file=sys.stderr)
        return NOTHING_STARTED
    finally:
        processes.close()


def evaluate(methods: dict[str, Path], args: argparse.Namespace, processes: Processes) -> int:
    from pisasr.evaluation.evaluate import evaluate_set, write_overview

    sets = processes.once(lambda: _read_sets(methods, args))
    metrics = args.metrics or _usual_metrics(sets)
    checked = processes.once(lambda: _check_sets(sets, args))
    if checked is None:
        return UNFIT
    if args.compare_published is not None and not all(one.set.name for one in checked):
        raise PisasrError("--compare_published: these pictures are of no set known by its pixels; name it with --set")
    _check_promises(checked, args)
    panel = _load_panel(metrics, args, processes)
    if not panel.scorers and not panel.extractors:
        return NOTHING_STARTED
    if args.rule and (absent := [name for name in args.rule.metrics if name in panel.missing]):
        raise PisasrError(f"--rule '{args.rule}' needs {absent[0]}, which can't be had here (the reason stands above)")
    settings = _build_settings(metrics, args)
    summaries = []
    for one in checked:
        output = args.output / one.set.name if len(checked) > 1 else args.output
        if (done := evaluate_set(one, panel, settings, output, processes)) is None:
            continue
        summary, scores = done
        summaries.append(summary)
        _tell(summary, output)
        _compare(summary, scores.rows, args, output)
    if len(summaries) > 1:
        write_overview(args.output, summaries)
        print(f"All sets: {args.output}/table.md, table.tex and summary.json")
    return OK


# --- before ----------------------------------------------------------------------------------------------------------


def _read_sets(methods: dict[str, Path], args: argparse.Namespace) -> list[TestSet]:
    from pisasr.evaluation.testsets import TestSet, load_sets

    sets = load_sets(args.sets) if args.sets else [TestSet(args.set, methods, args.hr, args.lr)]
    for one in sets:
        if args.lambdas and not one.lr:
            raise PisasrError(f"--lambdas restores inputs, and {one.name} has none; name their folder with lr")
        _refuse_own_folders(one, args.output / one.name if len(sets) > 1 else args.output)
        if args.metrics and not one.sr and not args.lambdas:
            raise PisasrError(f"{one.name} has no restored pictures; name their folders with sr, or give --lambdas")
    return sets


def _refuse_own_folders(one: TestSet, output: Path) -> None:
    """Folders that this run writes, and empties of what an earlier one wrote, can't be its inputs."""
    if output.exists() and not output.is_dir():
        raise PisasrError(f"--output {output} is a file; name a folder")
    for folder in filter(None, [*one.sr.values(), one.hr, one.lr]):
        for own in (output / name for name in ("sheets", "plots", "pictures", ".scores")):
            if own.resolve() in [folder.resolve(), *folder.resolve().parents]:
                raise PisasrError(f"{folder} lies where this run writes ({own}); choose another --output")


def _check_promises(checked: list[Checked], args: argparse.Namespace) -> None:
    """What can be known to fail before anything is scored: names of methods and sets, other people's scores."""
    from pisasr.evaluation.published import compare_published, read_scores
    from pisasr.evaluation.surface import name_pairs

    if args.published_scores:
        read_scores(Path(args.published_scores.rpartition("=")[2]))
    grid = name_pairs(*args.lambdas) if args.lambdas else {}
    named = [*(args.paired or []), *(word.split("=", 1)[0] for word in args.compare_published or [])]
    named += [args.published_scores.rpartition("=")[0]] if "=" in (args.published_scores or "") else []
    for one in checked:
        if clash := grid.keys() & one.set.sr.keys():
            raise PisasrError(f"--sr {min(clash)} has the name of a pair of --lambdas; call it otherwise")
        methods = [*one.set.sr, *grid]
        if absent := [name for name in named if name not in methods]:
            raise PisasrError(f"{one.set.name or 'the set'} has no method {absent[0]}; it has {', '.join(methods)}")
    if args.compare_published is not None:
        names = [one.set.name for one in checked]
        known = [name for name in names if _is_published(name)] or names[:1]
        aliases = dict(word.split("=", 1) for word in args.compare_published)
        compare_published(known[0], {name: {} for name in aliases}, 0, aliases)


def _usual_metrics(sets: list[TestSet]) -> list[str]:
    from pisasr.evaluation.metrics import METRICS

    return [name for name in OFFLINE_METRICS if METRICS[name].needs is None or any(one.hr for one in sets)]


def _check_sets(sets: list[TestSet], args: argparse.Namespace) -> list[Checked] | None:
    """Every set's examples; None, with the reasons told, if some do not fit: nothing is scored before all do."""
    from pisasr.evaluation.evaluate import check_set
    from pisasr.pictures.folders import SUFFIX

    checked = [check_set(one, args.suffix or SUFFIX) for one in sets]
    for one in checked:
        for problem in one.pairing.problems:
            print(f"{one.set.name}: {problem}" if args.sets else problem, file=sys.stderr)
    if any(one.pairing.problems for one in checked) and not args.allow_missing:
        print("Nothing was scored; --allow_missing scores the pictures that every folder has.", file=sys.stderr)
        return None
    if empty := [one for one in checked if not one.pairing.examples]:
        where = f"{empty[0].set.name}: no" if args.sets else "No"
        print(f"{where} picture is in every folder, readable and of the right size.", file=sys.stderr)
        return None
    return checked


def _load_panel(metrics: list[str], args: argparse.Namespace, processes: Processes) -> Panel:
    from pisasr.evaluation.scorers import load_panel

    if not processes.is_first:
        processes.wait()  # what must be fetched is fetched once
    panel = load_panel(metrics, _protocol(args), args.weights, args.cross_check)
    if processes.is_first:
        for name, reason in panel.missing.items():
            print(f"{name}: n/a. {reason}", file=sys.stderr)
        processes.wait()
    return panel


def _protocol(args: argparse.Namespace):
    from pisasr.evaluation.metrics import PROTOCOLS

    protocol = PROTOCOLS[args.protocol]
    if args.border is None or args.border == protocol.border_px:
        return protocol
    name, source = f"{protocol.name}, border {args.border} px", f"{protocol.source}; but for the border"
    return replace(protocol, name=name, source=source, border_px=args.border)


def _build_settings(metrics: list[str], args: argparse.Namespace) -> Settings:
    from pisasr.evaluation.evaluate import Settings

    return Settings(
        metrics,
        _protocol(args),
        tuple(args.paired) if args.paired else None,
        "" if args.plots == "none" else args.plots,
        args.sheets,
        _build_grid(metrics, args) if args.lambdas else None,
    )


def _build_grid(metrics: list[str], args: argparse.Namespace) -> Grid:
    """The model's pictures of an input at each pair: the ones that `infer` would write."""
    from pisasr.commands.batch import picture_seed
    from pisasr.commands.options import load_pipeline, pipeline_settings
    from pisasr.evaluation.surface import Grid, check_rule
    from pisasr.pictures.images import open_image

    if args.rule:
        check_rule(args.rule, metrics)
    pipe = load_pipeline(args)
    options = pipeline_settings(args)

    def restore(path: Path, pairs):
        seed = picture_seed(args.seed, Path(path.name))
        return pipe.sweep_lazily(open_image(path), pairs, generator=seed, **options)

    model = [args.pretrained_model, args.adapters, args.dtype, args.seed, str(options), *map(str, args.lambdas)]
    return Grid(*args.lambdas, restore, args.rule, fingerprint=repr(model), saves=args.save_pictures)


def _is_published(set_name: str) -> bool:
    """Whether the tables of the literature, as kept here, speak of a set."""
    from pisasr.evaluation.published import load_published
    from pisasr.evaluation.testsets import fold_name

    return fold_name(set_name) in {fold_name(row.set) for row in load_published().rows}


# --- after -----------------------------------------------------------------------------------------------------------


def _tell(summary: dict, output: Path) -> None:
    from pisasr.evaluation.evaluate import shown_methods
    from pisasr.evaluation.tables import build_table, to_text

    about = f"{summary['set']}: " if summary["set"] else ""
    print(f"{about}{summary['pictures']} pictures, protocol {summary['protocol']['name']}")
    print(to_text(build_table(summary, shown_methods(summary))), end="")
    for fault in [*summary["left_out"], *summary["faults"]]:
        print(fault)
    if best := summary.get("surface", {}).get("best"):
        print(f"{best['rule']}: {best['words']}")
    print(f"Written to {output}: table.md (with intervals and protocol), table.tex, per_image.csv, summary.json")


def _compare(summary: dict, rows: list[dict], args: argparse.Namespace, output: Path) -> None:
    """What the literature and other people's scores say of the same, told and written to published.md."""
    from pisasr.evaluation.published import (
        compare_published,
        compare_scores,
        read_scores,
        render_published,
        render_scores,
    )
    from pisasr.files import write_whole

    parts = []
    if args.published_scores:
        method, equals, path = args.published_scores.rpartition("=")
        method = method or next(iter(summary["methods"]))
        chosen = [row for row in rows if row["method"] == method]
        parts.append(f"{method}\n\n" + render_scores(compare_scores(chosen, read_scores(Path(path)))))
    if args.compare_published is not None:
        aliases = dict(word.split("=", 1) for word in args.compare_published)
        means = {
            method: {name: column["mean"] for name, column in columns.items() if isinstance(column, dict)}
            for method, columns in summary["methods"].items()
        }
        protocol = summary["protocol"]["name"]
        parts.append(f"{summary['pictures']} pictures, protocol {protocol}; the published numbers are by stablesr.\n")
        if _is_published(summary["set"]):
            found = compare_published(summary["set"], means, summary["pictures"], aliases)
            parts.append(render_published(found))
        else:
            parts.append(f"Nothing is published here on {summary['set']}.\n")
    if parts:
        print("\n" + "\n".join(parts))
        write_whole(output / "published.md", "\n".join(parts))


# --- words -----------------------------------------------------------------------------------------------------------


def _metric(word: str) -> str:
    from pisasr.evaluation.metrics import ALIASES, METRICS

    name = ALIASES.get(word.lower(), word.lower())
    if name not in METRICS:
        import difflib

        near = difflib.get_close_matches(name, METRICS, n=1)
        advice = f"did you mean {near[0]}?" if near else f"there are {' '.join(METRICS)}"
        raise argparse.ArgumentTypeError(f"no metric is called {word!r}; {advice}")
    return name


def _name_methods(words: list[str], parser: argparse.ArgumentParser) -> dict[str, Path]:
    """NAME=DIR or DIR, whose own name then names the method."""
    methods = {}
    for word in words:
        name, equals, folder = word.partition("=")
        if not equals or Path(word).is_dir():
            name, folder = Path(word).resolve().name, word
        if not name.isprintable():
            parser.error(f"--sr {word!r}: a name that can't be printed; give another as NAME=DIR")
        if not name or name in methods:
            parser.error(f"--sr {word}: every method needs a name of its own, as in --sr NAME={folder}")
        methods[name] = Path(folder)
    return methods


def _check_usage(args: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    from pisasr.evaluation.metrics import METRICS

    args.metrics = list(dict.fromkeys(args.metrics)) if args.metrics else None
    try:
        re.compile(args.suffix or "")
    except re.error as error:
        parser.error(f"--suffix {args.suffix} is not a regular expression: {error}")
    if args.border is not None and args.border < 0:
        parser.error(f"--border {args.border}: it must be 0 or more")
    if args.sheets < 0:
        parser.error(f"--sheets {args.sheets}: it must be 0 or more")
    _check_folders(args, parser)
    for name in [] if args.sets else args.metrics or []:
        if METRICS[name].needs in ("hq", "hq_set") and not args.hr:
            parser.error(f"--metrics {name} compares with the true pictures; name their folder with --hr")
        if METRICS[name].needs == "lq" and not args.lr:
            parser.error(f"--metrics {name} compares with the inputs; name their folder with --lr")
    if args.rule and not args.lambdas:
        parser.error("--rule chooses among the pairs of --lambdas; give both")
    if args.save_pictures and not args.lambdas:
        parser.error("--save_pictures keeps those of --lambdas; give both")
    if args.paired and args.paired[0] == args.paired[1]:
        parser.error(f"--paired {args.paired[0]} {args.paired[1]}: two different methods are wanted")
    if wrong := [word for word in args.compare_published or [] if "=" not in word]:
        parser.error(f"--compare_published {wrong[0]}: wanted OURS=THEIRS, or nothing where the names are the same")
    check_pipeline_options(parser, args)


def _check_folders(args: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    if args.sets and (args.sr or args.hr or args.lr or args.set):
        parser.error("--sets names the folders itself; leave out --sr, --hr, --lr and --set")
    if not args.sets and not args.sr and not args.lambdas:
        parser.error("nothing to score: give --sr, --sets, or --lambdas with --lr")
    if args.lambdas and not (args.sets or args.lr):
        parser.error("--lambdas restores the inputs; name their folder with --lr")
