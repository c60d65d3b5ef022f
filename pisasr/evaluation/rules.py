"""Score, to choose strengths: a rule in words, such as `niqe where psnr_lq >= 30`, and the pair
that it chooses.

Strengths come as pairs (lambda_pix, lambda_sem), their scores as a mapping from a metric's name to
its number. Nothing here looks at a picture.
"""

import difflib
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from itertools import islice
from typing import TYPE_CHECKING, TypeVar

from pisasr.errors import PisasrError, UsageError

if TYPE_CHECKING:
    from pisasr.evaluation.metrics import Metric

EXAMPLE = "niqe where psnr_lq >= 30"
MAX_LAMBDAS = 200

RULE = re.compile(r"\s*([^\s<>=]+)(?:\s+where\s+(.+?))?\s*", re.DOTALL)
LIMIT = re.compile(r"([^\s<>=]+)\s*(>=|<=)\s*([^\s<>=]+)")

Pair = tuple[float, float]
Held = TypeVar("Held")


@dataclass(frozen=True)
class Limit:
    """What a score must keep: `psnr_lq >= 30`. operator: >= or <=."""

    metric: str
    operator: str
    bound: float

    def __str__(self) -> str:
        return f"{self.metric} {self.operator} {repr(self.bound).removesuffix('.0')}"

    def shortfall(self, score: float) -> float:
        """How far a score stays behind, as a share of the bound (of 1, where the bound is 0): 0 if
        it keeps the limit.

        NaN keeps nothing and is infinitely far.
        """
        missing = self.bound - score if self.operator == ">=" else score - self.bound
        return math.inf if math.isnan(missing) else max(missing, 0.0) / (abs(self.bound) or 1.0)


@dataclass(frozen=True)
class Rule:
    """The best value of `metric` among the pairs that keep every limit. Its text, `str(rule)`,
    reads back to it.
    """

    metric: str
    limits: tuple[Limit, ...] = ()

    def __str__(self) -> str:
        return f"{self.metric} where {self.demand}" if self.limits else self.metric

    @property
    def demand(self) -> str:
        """The limits alone: `psnr_lq >= 30 and ssim >= 0.7`."""
        return " and ".join(map(str, self.limits))

    @property
    def metrics(self) -> list[str]:
        """The metric to be best in, then those of the limits, each once."""
        return list(dict.fromkeys([self.metric, *(limit.metric for limit in self.limits)]))

    def shortfall(self, scores: Mapping[str, float]) -> float:
        """The sum of the limits' shortfalls: 0 if all are kept. A metric without a score counts as
        NaN.
        """
        return sum(limit.shortfall(scores.get(limit.metric, math.nan)) for limit in self.limits)

    def rank(self, scores: Mapping[str, float]) -> tuple[bool, float, float]:
        """Sorts pairs, the best first: numbers before NaN, then the least shortfall, then the
        better metric.
        """
        score = scores.get(self.metric, math.nan)
        if math.isnan(score):
            return True, 0.0, 0.0
        return (
            False,
            self.shortfall(scores),
            -score if _metrics()[self.metric].higher_is_better else score,
        )


@dataclass(frozen=True)
class Choice:
    """The pair that a rule chose, with its scores; `kept` is False if no pair keeps the limits and
    this is nearest.
    """

    pair: Pair
    kept: bool
    scores: Mapping[str, float]


def parse_rule(text: str) -> Rule:
    """Read `METRIC` or `METRIC where METRIC >= X and METRIC <= Y ...`. UsageError, one line, for
    anything else.
    """
    try:
        if not (match := RULE.fullmatch(text)):
            raise UsageError("it is METRIC, or METRIC where METRIC >= NUMBER and ...")
        metric, limits = match.groups()
        return Rule(
            _known(metric),
            tuple(map(_parse_limit, re.split(r"\s+and\s+", limits) if limits else [])),
        )
    except UsageError as error:
        raise UsageError(
            f"{text.strip()!r} is no rule: {error} (a right one: {EXAMPLE!r})"
        ) from None


def _parse_limit(part: str) -> Limit:
    if not (match := LIMIT.fullmatch(part)):
        raise UsageError(f"{part!r} is not METRIC >= NUMBER or METRIC <= NUMBER")
    metric, operator, bound = match.groups()
    return Limit(_known(metric), operator, float(_parse_number(bound)))


def _known(metric: str) -> str:
    if metric in _metrics():
        return metric
    near = difflib.get_close_matches(metric.lower(), _metrics(), n=1)
    advice = f"did you mean {near[0]}?" if near else f"there are {', '.join(_metrics())}"
    raise UsageError(f"no metric is called {metric!r}, {advice}")


def _metrics() -> "dict[str, Metric]":
    from pisasr.evaluation.metrics import (
        METRICS,
    )  # numpy comes with it, and --help doesn't wait for that

    return METRICS


def choose(rule: Rule, scores: Mapping[Pair, Mapping[str, float]]) -> Choice:
    """The pair that the rule wants, of those in `scores`; of equals the first. NaN never wins and
    keeps no limit.

    If no pair keeps the limits, it is the one with the smallest sum of shortfalls, each as a share
    of its bound, and `kept` is False. PisasrError if no pair has a number for the rule's metric.
    """
    return pick(rule, ((pair, numbers, None) for pair, numbers in scores.items()))[0]


def pick(
    rule: Rule, candidates: Iterable[tuple[Pair, Mapping[str, float], Held]]
) -> tuple[Choice, Held]:
    """`choose` for candidates (pair, scores, picture) that come one by one: the choice and its
    picture.

    Only the best so far is held, so that a large grid needs no more memory than a few pictures.
    """
    best = min(candidates, key=lambda candidate: rule.rank(candidate[1]), default=None)
    if best is None or math.isnan(best[1].get(rule.metric, math.nan)):
        raise PisasrError(
            f"{rule.metric} has no number at any pair of strengths; choose by another metric"
        )
    pair, scores, held = best
    return Choice(pair, rule.shortfall(scores) == 0, scores), held


def describe(rule: Rule, choice: Choice) -> str:
    """A choice as one line: `lambda_pix 0.75, lambda_sem 1.25: niqe 4.8132, psnr_lq 31.20`."""
    scores = (
        (name, choice.scores.get(name, math.nan), _metrics()[name].decimals)
        for name in rule.metrics
    )
    line = "lambda_pix {:.15g}, lambda_sem {:.15g}: ".format(*choice.pair)
    line += ", ".join(f"{name} {score:.{decimals}f}" for name, score, decimals in scores)
    return line if choice.kept else f"no pair has {rule.demand}; nearest: {line}"


# --- strengths in a word --------------------------------------------------------------------------


def parse_lambdas(text: str) -> list[float]:
    """The strengths that a list, "0,0.5,1", a range start:stop:step, "0:1.5:0.25", or a mixture
    names.

    Each once, in the order they come, to fifteen digits, by which files are called. The stop
    belongs to a range if a step hits it; the arithmetic is decimal, so that steps of 0.1 pass
    through 0.3. UsageError, one line, for anything else and for more than 200.
    """
    named = (value for part in text.split(",") for value in _spread(part))
    values = list(islice(named, MAX_LAMBDAS + 1))
    if len(values) > MAX_LAMBDAS:
        raise UsageError(
            f"'{text.strip()}' has more than {MAX_LAMBDAS} values; make the step larger"
        )
    return list(dict.fromkeys(float(f"{value:.15g}") for value in values))


def _spread(part: str) -> Iterator[float]:
    if ":" not in part:
        yield float(_parse_number(part))
        return
    bounds = part.split(":")
    if len(bounds) != 3:
        raise UsageError(f"'{part.strip()}' is not a range start:stop:step such as 0:1.5:0.25")
    start, stop, step = map(_parse_number, bounds)
    if float(step) == 0 or (stop - start) * step < 0:
        raise UsageError(
            f"'{part.strip()}' never gets from {start} to {stop}; a range is start:stop:step: 0:1.5:0.25"
        )
    yield from (float(start + number * step) for number in range(int((stop - start) / step) + 1))


def _parse_number(text: str) -> Decimal:
    try:
        number = Decimal(text.strip())
        finite = math.isfinite(float(number))
    except (ArithmeticError, ValueError):
        finite = False
    if not finite:
        raise UsageError(f"'{text.strip()}' is not a finite number such as 0.5")
    return number
