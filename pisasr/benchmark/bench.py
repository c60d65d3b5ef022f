"""Measure, the loop: check each variant against a reference, count it, then time it in turn with
its case's first.
"""

import math
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from pisasr.benchmark.counting import Counted, count
from pisasr.benchmark.subjects import Change, load, picture
from pisasr.errors import MemoryShort, NotFinite, explain, is_out_of_memory
from pisasr.evaluation.rules import Pair
from pisasr.method.compiling import CompilingFailed
from pisasr.options import Options
from pisasr.pipeline import PiSASRPipeline

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
TILE_PX = {
    "tiny": 64,
    "demo": 768,
    "full": 768,
}  # the published tile; of the tiny model one that small pictures outgrow
EXACT_LEVELS = (
    0.5  # grey levels by which what computes the same in float32 may differ from the reference
)

Call = Callable[[], object]
Case = Callable[["Bench", list[int]], Iterator["list[Variant]"]]


class Skipped(Exception):
    """A variant that can't be measured here: the reason."""


@dataclass(frozen=True)
class Variant:
    """One way of doing a case's work. shape (H, W) and results: the pictures that come out.

    made, wanted: its results and the reference's, as floats in [0, 1]; exact: both are the same but
    for rounding.
    """

    name: str
    run: Call
    shape: tuple[int, int] = (0, 0)
    results: int = 1
    dtype: torch.dtype = torch.float32
    count: Callable[[], Counted] | None = None
    made: Callable[[], np.ndarray] | None = None
    wanted: Callable[[], np.ndarray] | None = None
    exact: bool = False
    note: str = ""


@dataclass
class Row:
    """What the report says of a variant; None where it was not measured, and `note` says why.

    against: what `ratio` divides by, pair by pair. percent: of the faster ceiling in this dtype.
    counted_mib: tensors beside the weights, counted; peak_mib: CUDA's count with weights, elsewhere
    the process's so far. max_levels, mean_levels (grey levels), psnr: to the reference: float32 (of
    the tiny model float64), plain layers, no UNet tiles.
    """

    case: str
    variant: str
    against: str = ""
    shape: tuple[int, int] = (0, 0)
    results: int = 0
    dtype: str = ""
    ms: float | None = None
    ms_iqr: float | None = None
    megapixels: float = 0.0
    ms_per_mp: float | None = None
    ratio: float | None = None
    ratio_iqr: float | None = None
    pairs: int = 0
    tflop: float | None = None
    percent: float | None = None
    operations: int | None = None
    unet_calls: int | None = None
    counted_mib: float | None = None
    peak_mib: float | None = None
    max_levels: float | None = None
    mean_levels: float | None = None
    psnr: float | None = None
    note: str = ""
    failed: bool = False


@dataclass
class Bench:
    """The subject and how it is measured. model: a folder, None for the embedded one."""

    model: Path | None
    size: str
    device: str = "cpu"
    dtype: torch.dtype = torch.float32
    pairs: int = 5
    seconds: float = 60  # after which a row begins no further pair
    check_px: int = 1024  # pictures up to its square are compared with the reference
    rows: list[Row] = field(default_factory=list)
    ceilings: dict[str, dict[str, float]] = field(default_factory=dict)
    counting: str = "meta"  # the device on which variants are counted; the tiny model is quicker with data than without
    _counted: dict[Change, PiSASRPipeline] = field(default_factory=dict)
    _other: tuple[Change, PiSASRPipeline] | None = None
    _wanted: tuple[tuple, np.ndarray] | None = None

    @cached_property
    def pipe(self) -> PiSASRPipeline:
        """What is measured first, as a user loads it."""
        return load(self.model, Change(self.dtype), self.device)

    @property
    def exactly(self) -> Change:
        """The reference."""
        return Change(
            torch.float64 if self.size == "tiny" and self.device != "mps" else torch.float32,
            plain=True,
        )

    def changed(self, change: Change) -> PiSASRPipeline:
        """The pipeline made otherwise; the one before it is given up."""
        if change == Change(self.dtype):
            return self.pipe
        if self._other is None or self._other[0] != change:
            self._other = None
            self._other = change, load(self.model, change, self.device)
        return self._other[1]

    def counted(
        self, change: Change, call: Callable[[PiSASRPipeline], object], *unets: nn.Module
    ) -> Counted:
        """What `call` costs with the pipeline made so; what is done once is done before."""
        pipe = self.countable(change)
        return count(lambda: call(pipe), self.counting, (pipe.unet, pipe.unet_pix, *unets))

    def countable(self, change: Change) -> PiSASRPipeline:
        """The pipeline for counting, with all done that is done once."""
        if change not in self._counted:
            self._counted[change] = pipe = load(self.model, change, self.counting)
            count(
                lambda: pipe(picture(16, 16), lambda_sem=0.5, process_size=64, **self.ours()),
                self.counting,
            )
        return self._counted[change]

    # --- tiles ---

    @cached_property
    def factor(self) -> int:
        return self.pipe.model.factor

    def ours(self) -> dict[str, Any]:
        """What a user gets who asks for nothing; the tiny model is told its small tile."""
        tile_px = TILE_PX["tiny"]
        return (
            {"tile_size": tile_px // self.factor, "vae_tile_size": tile_px}
            if self.size == "tiny"
            else {}
        )

    def published(self) -> dict[str, Any]:
        tile = TILE_PX[self.size] // self.factor
        return {
            **self.ours(),
            **called_published(Options),
            "tile_size": tile,
            "tile_overlap": tile // 3,
        }

    def whole(self, shape: tuple[int, int]) -> dict[str, Any]:
        return {
            "tile_size": max(shape) // self.factor,
            "tile_overlap": 0,
            "vae_tile_size": max(shape),
        }

    def is_whole(self, shape: tuple[int, int], plan: Mapping[str, Any]) -> bool:
        """Whether the UNet sees this shape at once."""
        return shape[0] * shape[1] <= (Options(**plan).tile_plan(self.factor)[0] * self.factor) ** 2

    # --- measuring ---

    def restoring(
        self,
        name: str,
        shape: tuple[int, int],
        lambdas: Sequence[Pair] = ((1.0, 1.0),),
        plan: Mapping[str, Any] | None = None,
        pictures: int = 1,
        change: Change | None = None,
        upscale: int = 4,
        **settings: Any,
    ) -> Variant:
        """The pipeline from a picture to its enlarged result; several strengths are a sweep."""
        change, plan = change or Change(self.dtype), self.ours() if plan is None else plan
        images = [
            picture(shape[0] // upscale, shape[1] // upscale, number) for number in range(pictures)
        ]
        settings = {
            "upscale": upscale,
            "process_size": min(shape),
            "batch_size": pictures,
            **settings,
        }

        def restored(pipe: PiSASRPipeline, **keywords: Any) -> list[Any]:
            if len(lambdas) > 1:
                return pipe.sweep(images[0], lambdas, **{**settings, **keywords})
            return pipe(images, *lambdas[0], **{**settings, **keywords}).images

        def wanted() -> np.ndarray:
            key = shape, tuple(lambdas), pictures, *settings.items()
            if self._wanted is None or self._wanted[0] != key:
                with torch.backends.cudnn.flags(allow_tf32=False):
                    plain = restored(
                        self.changed(self.exactly), **self.whole(shape), output_type="np"
                    )
                self._wanted = key, np.stack(plain)
            return self._wanted[1]

        return Variant(
            name=name,
            run=lambda: restored(self.changed(change), **plan),
            shape=shape,
            results=max(pictures, len(lambdas)),
            dtype=change.dtype,
            count=lambda: self.counted(
                replace(change, mode=None), lambda pipe: restored(pipe, **plan)
            ),
            made=lambda: np.stack(restored(self.changed(change), **plan, output_type="np")),
            wanted=wanted if shape[0] * shape[1] <= self.check_px**2 else None,
            exact=change.dtype == torch.float32 and self.is_whole(shape, plan),
        )

    def measure(self, name: str, case: Case, sizes: list[int]) -> Iterator[Row]:
        """A case's rows as they are measured; the first of a list has its ratio to itself. A
        failure ends nothing.
        """
        try:
            for variants in case(self, sizes):
                for variant in variants:
                    row = Row(
                        name,
                        variant.name,
                        variants[0].name,
                        variant.shape,
                        variant.results,
                        note=variant.note,
                    )
                    row.dtype = next(known for known, own in DTYPES.items() if own == variant.dtype)
                    row.megapixels = row.results * row.shape[0] * row.shape[1] / 1e6
                    self.rows.append(row)
                    try:
                        with (
                            warnings.catch_warnings()
                        ):  # whoever goes on in another way is another variant
                            for otherwise in (MemoryShort, NotFinite, CompilingFailed):
                                warnings.filterwarnings("error", category=otherwise)
                            self._fill(row, variants[0], variant)
                    except Skipped as reason:
                        row.note = f"skipped: {reason}"
                    except Exception as error:
                        full = is_out_of_memory(error) or isinstance(error, MemoryShort)
                        row.note, row.failed = (
                            "skipped: out of memory" if full else explain(error),
                            not full,
                        )
                    yield row
        except Exception as error:
            self.rows.append(
                Row(name, "", note=explain(error), failed=not isinstance(error, ImportError))
            )
            yield self.rows[-1]
        self._other = self._wanted = None

    @torch.no_grad()
    def _fill(self, row: Row, first: Variant, variant: Variant) -> None:
        if variant.count:
            flops, row.operations, row.unet_calls, held = variant.count()
            row.tflop, row.counted_mib = flops / 1e12, held / 2**20
        if variant.made and variant.wanted:
            wanted = variant.wanted()
            compare(row, variant.made(), wanted)
            if variant.exact and not (row.max_levels or 0) <= EXACT_LEVELS:
                row.note, row.failed = (
                    f"differs from the reference by more than {EXACT_LEVELS} grey levels",
                    True,
                )
        for call in (first.run, variant.run):  # warm
            call()
        times = time_pairs(first.run, variant.run, self.pairs, self.seconds, self.device)
        row.ms, row.ms_iqr = middle([1000 * other for _, other in times])
        row.ratio, row.ratio_iqr = middle([other / one for one, other in times])
        row.pairs, row.peak_mib = len(times), peak_bytes(variant.run, self.device) / 2**20
        row.ms_per_mp = row.ms / row.megapixels if row.megapixels else None
        if row.tflop:
            row.percent = 100 * row.tflop * 1e15 / row.ms / max(self.ceiling(row.dtype).values())

    def ceiling(self, dtype: str) -> dict[str, float]:
        """FLOP/s of a matrix product and of a 3x3 convolution of 256 channels, each at its best of
        six.
        """
        if dtype not in self.ceilings:
            side = 8192 if self.device == "cuda" else 256 if self.size == "tiny" else 2048
            to: Any = {"device": self.device, "dtype": DTYPES[dtype]}
            a, b = torch.randn(2, side, side, **to)
            x, kernel = (
                torch.randn(1, 256, side // 16, side // 16, **to),
                torch.randn(256, 256, 3, 3, **to),
            )
            x, kernel = (tensor.to(memory_format=torch.channels_last) for tensor in (x, kernel))
            work: dict[str, tuple[Call, int]] = {
                "matmul": (lambda: a @ b, 2 * side**3),
                "conv3x3": (lambda: F.conv2d(x, kernel, padding=1), 2 * 9 * 256 * x.numel()),
            }
            self.ceilings[dtype] = {
                name: flops / min(_seconds(call, self.device) for _ in range(6))
                for name, (call, flops) in work.items()
            }
        return self.ceilings[dtype]


def time_pairs(
    first: Call, second: Call, pairs: int, seconds: float, device: str
) -> list[tuple[float, float]]:
    """Seconds of both in turn, ABAB, so that what the machine does meanwhile meets both. Both are
    warm already.
    """
    times: list[tuple[float, float]] = []
    end = time.perf_counter() + seconds
    while len(times) < pairs and (not times or time.perf_counter() < end):
        times.append((_seconds(first, device), _seconds(second, device)))
    return times


def _seconds(call: Call, device: str) -> float:
    wait = {"cuda": torch.cuda.synchronize, "mps": torch.mps.synchronize}.get(device, lambda: None)
    wait()
    start = time.perf_counter()
    call()
    wait()
    return time.perf_counter() - start


def middle(values: list[float]) -> tuple[float, float]:
    """(median, interquartile range)."""
    low, half, high = np.percentile(values, [25, 50, 75]).tolist()
    return half, high - low


def peak_bytes(call: Call, device: str) -> int:
    """The most that was held: on CUDA by PyTorch while `call` runs, else by this process so far,
    call or no call.
    """
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        call()
        return torch.cuda.max_memory_allocated()
    import resource  # Windows has none

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
        1 if sys.platform == "darwin" else 1024
    )


def compare(row: Row, made: np.ndarray, wanted: np.ndarray) -> None:
    """Differences in grey levels of floats in [0, 1]."""
    difference = 255 * np.abs(made.astype(np.float64) - wanted)
    row.max_levels, row.mean_levels = float(difference.max()), float(difference.mean())
    row.psnr = (
        20 * math.log10(255 / root)
        if (root := float(np.square(difference).mean()) ** 0.5)
        else None
    )


def called_published(options: type) -> dict[str, Any]:
    """Those settings of `options` that can be "published", as such: none where there is but one
    plan.
    """
    return {
        name: "published"
        for name, hint in get_type_hints(options).items()
        if "'published'" in str(hint)
    }
