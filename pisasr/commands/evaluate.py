"""Score, at the command line: `pisasr evaluate` and scripts/evaluate.py, folders in, scores out."""

import argparse
import difflib
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pisasr.commands.batch import check_output, picture_seed
from pisasr.commands.options import (
    add_pipeline_options,
    add_weights_option,
    check_pipeline_options,
    command_parser,
    load_pipeline,
    normalise,
    pipeline_settings,
    whole,
)
from pisasr.errors import (
    NOTHING_STARTED,
    OK,
    SOME_FAILED,
    PisasrError,
    UsageError,
    guarded,
    safe_text,
)
from pisasr.evaluation.evaluate import JOURNALS, evaluate_set, write_overview
from pisasr.evaluation.metrics import ALIASES, METRICS, PROTOCOLS
from pisasr.evaluation.pairs import Pairing
from pisasr.evaluation.processes import Processes
from pisasr.evaluation.published import check_aliases, compare_summary
from pisasr.evaluation.report import Settings
from pisasr.evaluation.rules import Pair, parse_lambdas, parse_rule
from pisasr.evaluation.scoring import load_scorers, usual_metrics
from pisasr.evaluation.surface import Grid, check_rule, name_pairs
from pisasr.evaluation.tables import build_table, remarks, to_text
from pisasr.evaluation.testsets import TestSet, check_set, load_sets
from pisasr.files import write_whole
from pisasr.pictures.folders import SUFFIX

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
  sr: {ours: "results/ours/{set}", OSEDiff: "results/osediff/{set}"}
  sets:
    RealSR: {hr: RealSRVal_crop128/test_HR, lr: RealSRVal_crop128/test_LR}
    RealLQ250: {lr: RealLQ250}               no true pictures: metrics without a reference
    mine: {hr: photos/hq, lr: photos/lq}     a manifest.json of scripts/degrade.py in lr is verified

exit code: 0 scored, 1 nothing could start, 2 usage, 3 pictures do not fit together
"""


def build_parser() -> argparse.ArgumentParser:
    about = "Score folders of restored pictures: a number per picture, the means, and how they were made."
    parser = command_parser("pisasr evaluate", about, EXAMPLES)
    parser.usage = "%(prog)s --sr [NAME=]DIR ... --hr DIR --output DIR [options]; --help tells them"
    add = parser.add_argument_group("pictures").add_argument
    add(
        "--sr",
        nargs="+",
        default=[],
        metavar="[NAME=]DIR",
        help="restored pictures, one folder per method",
    )
    add("--hr", type=Path, metavar="DIR", help="the true pictures")
    add("--lr", type=Path, metavar="DIR", help="the inputs")
    add("--sets", type=Path, metavar="YAML", help="several test sets at once, see below")
    known = "the test set's name; one whose pictures are known (RealSR) is refused when they differ"
    add("--set", default="", metavar="NAME", help=known)
    endings = "name endings to disregard instead of the ones below"
    add("--suffix", type=_regex, default=SUFFIX, metavar="REGEX", help=endings)
    add(
        "--allow_missing",
        action="store_true",
        help="score what every folder has, list the rest in the tables",
    )

    add = parser.add_argument_group("numbers").add_argument
    usual = f"any of {' '.join(METRICS)} (default: psnr ssim niqe featdist, and lpips where its weights are at hand)"
    add("--metrics", nargs="+", type=_metric, default=[], metavar="METRIC", help=usual)
    habits = "; ".join(f"{name}: {protocol.source}" for name, protocol in PROTOCOLS.items())
    taken = f"how PSNR and SSIM are taken (default: stablesr): {habits}"
    add("--protocol", choices=PROTOCOLS, default="stablesr", help=taken)
    left_out = "px that PSNR and SSIM leave out at each side (default: the protocol's)"
    add("--border", type=whole, metavar="N", help=left_out)
    add_weights_option(add)

    add = parser.add_argument_group("results").add_argument
    kept = "for per_image.csv, summary.json, table.md, table.tex, plots/ and sheets/"
    add("--output", type=Path, required=True, metavar="DIR", help=kept)
    paired = "methods to compare picture by picture (default: the first two)"
    add("--paired", nargs=2, default=(), metavar=("A", "B"), help=paired)
    add("--plots", choices=("png", "pdf", "svg", "none"), default="png", help="default: png")
    sheets = "pictures on the comparison sheets, those where methods differ most (default: 8)"
    add("--sheets", type=whole, default=8, metavar="N", help=sheets)
    tables = "hold the means against the tables of the literature; names that differ are given"
    add("--compare_published", nargs="*", type=_alias, metavar="OURS=THEIRS", help=tables)

    add = parser.add_argument_group("strengths: run the model itself on --lr").add_argument
    grid = 'a grid of strengths, "0:1.5:0.25" or "0,0.5,1", from one encoding and two UNet passes a picture'
    add("--lambdas", nargs=2, type=parse_lambdas, metavar=("PIX", "SEM"), help=grid)
    best = 'which pair is the best: "niqe where psnr_lq >= 30"; infer has --lambda_auto'
    add("--rule", type=parse_rule, help=best)
    add_pipeline_options(parser)
    return parser


def evaluate(argv: list[str] | None = None) -> int:
    """Score folders of results; returns the exit code."""
    parser = build_parser()
    args = parser.parse_args(normalise(sys.argv[1:] if argv is None else argv))
    try:
        processes = Processes()
    except UsageError as error:
        parser.error(str(error))
    stopped = "pisasr: interrupted; the same command goes on from here"

    def run() -> int:
        methods = _name_methods(args.sr, parser)
        _check_usage(args, parser)
        sets = load_sets(args.sets) if args.sets else [TestSet(args.set, methods, args.hr, args.lr)]
        return score(sets, args, processes)

    try:
        return guarded(run, args.debug, not processes.is_first, stopped)
    finally:
        processes.close()


def score(sets: list[TestSet], args: argparse.Namespace, processes: Processes, **notes: Any) -> int:
    """Check everything, then score and report set after set. notes: what Settings knows of the
    pictures' making.
    """
    outputs = {one.name: args.output / one.name if len(sets) > 1 else args.output for one in sets}
    _check_sets(sets, outputs, args)
    pairings = processes.once(lambda: _pair(sets, args))
    if pairings is None:
        return SOME_FAILED
    for folder in (args.output, *outputs.values()):
        check_output(folder, "per_image.csv", "summary.json", "table.md", "table.tex")
    settings = replace(_settle(args, any(one.hr for one in sets), processes), **notes)
    if not settings.scorers:
        return NOTHING_STARTED
    summaries = []
    for one, pairing in zip(sets, pairings, strict=True):
        if summary := evaluate_set(one, pairing, settings, outputs[one.name], processes):
            summaries.append(summary)
            _tell(summary, outputs[one.name], args)
    if len(summaries) > 1:
        write_overview(args.output, summaries)
        print(f"All sets: {args.output}/table.md, table.tex and summary.json")
    return OK


# --- before ---------------------------------------------------------------------------------------


def _check_sets(sets: list[TestSet], outputs: Mapping[str, Path], args: argparse.Namespace) -> None:
    """What can be known to fail before a picture is read: names of methods and sets, and
    folders.
    """
    aliases = dict(args.compare_published or [])
    grid = name_pairs(*args.lambdas) if args.lambdas else {}
    for one in sets:
        if args.lambdas and not one.lr:
            raise PisasrError(
                f"--lambdas restores inputs, and {one.name} has none; name their folder with lr"
            )
        _refuse_own_folders(one, outputs[one.name], args.output)
        methods, named = [*one.sr, *grid], [*args.paired, *aliases]
        if clash := grid.keys() & one.sr.keys():
            raise PisasrError(
                f"--sr {min(clash)} has the name of a pair of --lambdas; call it otherwise"
            )
        if absent := [name for name in named if name not in methods]:
            raise PisasrError(
                f"{one.name or 'the set'} has no method {absent[0]}; it has {', '.join(methods)}"
            )
    if args.compare_published is not None:
        if not all(one.name for one in sets):
            raise PisasrError(
                "--compare_published: which set are these pictures of? name it with --set"
            )
        check_aliases([one.name for one in sets], aliases)


def _refuse_own_folders(one: TestSet, *outputs: Path) -> None:
    """Folders that this run writes, and empties of what an earlier one wrote, can't be its
    inputs.
    """
    for folder in filter(None, [*one.sr.values(), one.hr, one.lr]):
        for output in outputs:
            if output.exists() and not output.is_dir():
                raise PisasrError(f"--output {output} is a file; name a folder")
            if folder.resolve() == output.resolve():
                raise UsageError(
                    f"--output {output} is a folder of pictures that are scored; choose another one"
                )
            for own in (output / name for name in ("sheets", "plots", JOURNALS)):
                if own.resolve() in [folder.resolve(), *folder.resolve().parents]:
                    raise PisasrError(
                        f"{folder} lies where this run writes ({own}); choose another --output"
                    )


def _pair(sets: list[TestSet], args: argparse.Namespace) -> list[Pairing] | None:
    """Every set's examples; None, with the reasons told, if some do not fit: nothing is scored
    before all do.
    """
    pairings = {one.name: check_set(one, args.suffix) for one in sets}
    for name, pairing in pairings.items():
        for problem in pairing.problems:
            print(safe_text(f"{name}: {problem}" if args.sets else problem), file=sys.stderr)
    if any(pairing.problems for pairing in pairings.values()) and not args.allow_missing:
        print(
            "Nothing was scored; evaluate --allow_missing scores what every folder has.",
            file=sys.stderr,
        )
        return None
    if empty := [name for name, pairing in pairings.items() if not pairing.examples]:
        where = f"{empty[0]}: no" if args.sets else "No"
        print(
            f"{where} picture is in every folder, readable and of the right size.", file=sys.stderr
        )
        return None
    return list(pairings.values())


def _settle(args: argparse.Namespace, with_hq: bool, processes: Processes) -> Settings:
    """What holds for every set: the protocol, the scorers that can be had, the grid."""
    protocol = PROTOCOLS[args.protocol]
    if args.border not in (None, protocol.border_px):
        name, source = (
            f"{protocol.name}, border {args.border} px",
            f"{protocol.source}; but for the border",
        )
        protocol = replace(protocol, name=name, source=source, border_px=args.border)
    metrics = args.metrics or usual_metrics(with_hq)
    if not processes.is_first:
        processes.wait()  # what must be fetched is fetched once
    scorers, missing = load_scorers(
        metrics, protocol, args.weights, None if args.device == "auto" else args.device
    )
    if processes.is_first:
        for name, reason in missing.items():
            print(f"{name}: n/a. {reason}", file=sys.stderr)
        processes.wait()
    if (
        scorers
        and args.rule
        and (absent := [name for name in args.rule.metrics if name in missing])
    ):
        raise PisasrError(
            f"--rule '{args.rule}' needs {absent[0]}, which can't be had here (the reason stands above)"
        )
    grid = _build_grid(metrics, args) if scorers and args.lambdas else None
    plots = "" if args.plots == "none" else args.plots
    return Settings(metrics, protocol, scorers, missing, args.paired, plots, args.sheets, grid)


def _build_grid(metrics: list[str], args: argparse.Namespace) -> Grid:
    """The model's pictures of an input at each pair: the ones that `infer` would write."""
    from pisasr.pictures.images import open_image  # torch comes with it, and PSNR does without

    if args.rule:
        check_rule(args.rule, metrics)
    pipe = load_pipeline(args)
    options = pipeline_settings(args)

    def restore(path: Path, pairs: Sequence[Pair]) -> Iterator[Any]:
        seed = picture_seed(args.seed or 0, Path(path.name))
        prediction = pipe.predict(
            open_image(path), generator=None if args.seed is None else seed, **options
        )
        return (pipe.decode(prediction, *pair) for pair in pairs)

    model = [
        args.pretrained_model,
        args.adapters,
        args.dtype,
        args.seed,
        str(options),
        *map(str, args.lambdas),
    ]
    lambdas_pix, lambdas_sem = args.lambdas
    return Grid(lambdas_pix, lambdas_sem, restore, args.rule, repr(model))


# --- after ----------------------------------------------------------------------------------------


def _tell(summary: dict[str, Any], output: Path, args: argparse.Namespace) -> None:
    """The table, and what the literature says of the same pictures, to published.md, too."""
    about = f"{summary['set']}: " if summary["set"] else ""
    print(f"{about}{summary['pictures']} pictures, protocol {summary['protocol']['name']}")
    print(to_text(build_table(summary)), end="")
    for fault in [*summary["left_out"], *summary["faults"], *remarks(summary["methods"], most=3)]:
        print(safe_text(fault))
    if best := summary.get("surface", {}).get("best"):
        print(f"{best['rule']}: {best['words']}")
    print(
        f"Written to {output}: table.md (with intervals and protocol), table.tex, per_image.csv, summary.json"
    )
    if args.compare_published is not None:
        told = "\n".join(compare_summary(summary, dict(args.compare_published)))
        print(f"\n{told}")
        write_whole(output / "published.md", told)


# --- words ----------------------------------------------------------------------------------------


def _metric(word: str) -> str:
    name = ALIASES.get(word.lower(), word.lower())
    if name not in METRICS:
        near = difflib.get_close_matches(name, METRICS, n=1)
        advice = f"did you mean {near[0]}?" if near else f"there are {' '.join(METRICS)}"
        raise argparse.ArgumentTypeError(f"no metric is called {word!r}; {advice}")
    return name


def _regex(word: str) -> str:
    try:
        re.compile(word)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"{word!r} is not a regular expression: {error}") from None
    return word


def _alias(word: str) -> tuple[str, str]:
    ours, equals, theirs = word.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(
            f"{word!r}: wanted OURS=THEIRS, or nothing where the names are the same"
        )
    return ours, theirs


def _name_methods(words: list[str], parser: argparse.ArgumentParser) -> dict[str, Path]:
    """NAME=DIR or DIR, whose own name then names the method."""
    methods: dict[str, Path] = {}
    for word in words:
        name, equals, folder = word.partition("=")
        if not equals or Path(word).is_dir():
            name, folder = Path(word).resolve().name, word
        if not name.isprintable():
            parser.error(f"--sr {word!r}: a name that can't be printed; give another as NAME=DIR")
        if not name or name in methods:
            parser.error(
                f"--sr {word}: every method needs a name of its own, as in --sr NAME={folder}"
            )
        methods[name] = Path(folder)
    return methods


def _check_usage(args: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """What options forbid each other or want each other."""
    check_pipeline_options(parser, args)
    args.metrics = list(dict.fromkeys(args.metrics))
    needs = {METRICS[name].needs: name for name in ([] if args.sets else args.metrics)}
    with_hr = needs.get("hq") or needs.get("hq_set")
    own_sets = args.sets and (args.sr or args.hr or args.lr or args.set)
    for wrong, said in (
        (own_sets, "--sets names the folders itself; leave out others"),
        (
            not (args.sets or args.sr or args.lambdas),
            "nothing to score: give --sr, --sets, or --lambdas with --lr",
        ),
        (
            args.lambdas and not (args.sets or args.lr),
            "--lambdas restores the inputs; name their folder with --lr",
        ),
        (
            with_hr and not args.hr,
            f"--metrics {with_hr} compares with the true pictures; name their folder with --hr",
        ),
        (
            "lq" in needs and not args.lr,
            f"--metrics {needs.get('lq')} compares with the inputs; name them with --lr",
        ),
        (args.rule and not args.lambdas, "--rule chooses among the pairs of --lambdas; give both"),
        (len({*(args.paired or "ab")}) == 1, "--paired: two different methods are wanted"),
    ):
        if wrong:
            parser.error(said)
