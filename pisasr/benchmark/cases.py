"""Measure, what for: a case is a few ways of doing one piece of work, each timed against the first
of its list.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import replace
from functools import lru_cache, partial
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NoReturn

import numpy as np
import torch
from torch import Tensor, nn

from pisasr.benchmark.bench import DTYPES, Bench, Case, Skipped, Variant, called_published
from pisasr.benchmark.counting import Counted, count
from pisasr.benchmark.subjects import Change, picture
from pisasr.evaluation.lookup import MetricUnavailable
from pisasr.evaluation.realesrgan import RRDBNet, load_x4plus
from pisasr.evaluation.rules import Pair
from pisasr.method.model import Plan, Predictors, predict, restore
from pisasr.method.residual import mix_residuals
from pisasr.options import VAE_TILE_PX
from pisasr.pipeline import PiSASRPipeline, usual_dtype

Group = list[Variant]

DEFAULT, ADJUSTED = (1.0, 1.0), (0.7, 1.2)
FILES = 16


def modes(bench: Bench, sizes: list[int]) -> Iterator[Group]:
    """One pass, two passes, and the strengths that need one or none."""
    pairs = {"default (1, 1)": DEFAULT, "adjustable": ADJUSTED, "pix alone (L, 0)": (0.8, 0.0)}
    pairs |= {"equal (L, L)": (0.8, 0.8), "nothing (0, 0)": (0.0, 0.0)}
    for px in sizes:
        yield [bench.restoring(name, (px, px), [pair]) for name, pair in pairs.items()]


def grid_of(count: int) -> list[Pair]:
    """A square number of strengths, all of which need both predictions but those that are equal."""
    side = round(count**0.5)
    return [(0.7 + i / side, 1.2 + j / side) for i, j in product(range(side), repeat=2)]


def sweep(bench: Bench, sizes: list[int]) -> Iterator[Group]:
    """Several strengths of one picture."""
    for px in sizes:
        yield [
            bench.restoring(f"{count} strengths", (px, px), grid_of(count))
            for count in (1, 4, 9, 16)
        ]


def tiles(bench: Bench, sizes: list[int]) -> Iterator[Group]:
    """Our tiles, the published plan, and the whole picture at once, for sizes beyond one tile."""
    for px in sizes:
        shape, ours = (px, px), bench.ours()
        if bench.is_whole(shape, bench.published()):
            continue
        whole = bench.restoring("whole", shape, plan=bench.whole(shape))
        yield [
            bench.restoring("our tiles", shape),
            bench.restoring("published tiles", shape, plan=bench.published()),
            whole if px <= bench.check_px else without(whole, f"--check_px is {bench.check_px}"),
            bench.restoring("our tiles, four at once", shape, plan={**ours, "batch_size": 4}),
            bench.restoring("our tiles, low memory", shape, low_memory=True),
        ]


def scaling(bench: Bench, sizes: list[int]) -> Iterator[Group]:
    """Squares and long thin pictures."""
    thin = [(sizes[0], sizes[-1]), (sizes[-1], sizes[0])] if len(sizes) > 1 else []
    yield [
        bench.restoring("{} x {}".format(*shape), shape)
        for shape in [*((px, px) for px in sizes), *thin]
    ]


def dtypes(bench: Bench, sizes: list[int]) -> Iterator[Group]:
    """Number formats and memory formats."""
    absent = {"fp16": "fp16 wants a GPU"}
    if usual_dtype("cpu") != torch.bfloat16 and bench.size != "tiny":
        absent["bf16"] = "this processor has no bfloat16 of its own"
    formats = {"NCHW": torch.contiguous_format, "NHWC": torch.channels_last}
    for px in sizes:
        group = [bench.restoring("as loaded", (px, px))]
        for (name, dtype), (order, memory_format) in product(DTYPES.items(), formats.items()):
            change = Change(dtype, memory_format=memory_format)
            variant = bench.restoring(f"{name} {order}", (px, px), change=change)
            group.append(
                without(variant, absent[name])
                if bench.device == "cpu" and name in absent
                else variant
            )
        yield group


def execution(bench: Bench, sizes: list[int]) -> Iterator[Group]:
    """Eager, blocks compiled, and whole networks as CUDA graphs (reduce-overhead). Minutes of
    compiling on a CPU.
    """
    for px in sizes:
        compiled, graphs = (
            bench.restoring(name, (px, px), change=Change(bench.dtype, mode=mode))
            for name, mode in (("compiled", "default"), ("CUDA graphs", "reduce-overhead"))
        )
        graphs = graphs if bench.device == "cuda" else without(graphs, "CUDA graphs want CUDA")
        yield [bench.restoring("eager", (px, px)), compiled, graphs]


def batch(bench: Bench, sizes: list[int]) -> Iterator[Group]:
    """Pictures of one size at once."""
    for px in sizes:
        yield [
            bench.restoring(f"batch of {count}", (px, px), pictures=count)
            for count in (1, 2, 4, 8, 16)
        ]


def folder(bench: Bench, sizes: list[int]) -> Iterator[Group]:
    """Small files through `pisasr infer`, loading and PNG included, against the pipeline alone on
    the same pictures.
    """
    from pisasr.commands.infer import (
        infer,
    )  # here, so that nothing but this case needs the commands

    px, dtype = sizes[0], next(name for name, own in DTYPES.items() if own == bench.dtype)
    images = [picture(px // 4, px // 4, number) for number in range(FILES)]

    def alone() -> None:
        for image in images:
            bench.pipe(image, process_size=px, **bench.ours())

    with TemporaryDirectory() as place:
        paths = [Path(place) / f"{number:02}.png" for number in range(FILES)]
        for path, image in zip(paths, images, strict=True):
            image.save(path)
        options = [
            "--output",
            f"{place}/outputs",
            "--quiet",
            "--device",
            bench.device,
            "--dtype",
            dtype,
        ]
        options += ["--process_size", str(px), *model_options(bench)]

        def command(count: int) -> None:
            if infer(["--input", *map(str, paths[:count]), *options]):
                raise RuntimeError("pisasr infer failed, and said why")

        yield [
            Variant(f"{FILES} pictures, no files", alone, (px, px), FILES, bench.dtype),
            Variant(f"{FILES} files", partial(command, FILES), (px, px), FILES, bench.dtype),
            Variant("1 file", partial(command, 1), (px, px), 1, bench.dtype),
        ]


def model_options(bench: Bench) -> list[str]:
    return [] if bench.model is None else ["--pretrained_model", str(bench.model)]


def startup(bench: Bench, sizes: list[int]) -> Iterator[Group]:
    """From the command to an imported pipeline, and to the first written picture, in processes of
    their own.
    """
    paths = [str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}

    def python(*words: str) -> None:
        subprocess.run([sys.executable, *words], env=environment, capture_output=True, check=True)  # noqa: S603

    with TemporaryDirectory() as place:
        picture(sizes[0] // 4, sizes[0] // 4).save(f"{place}/one.png")
        words = [
            "-m",
            "pisasr.commands.main",
            "infer",
            "--input",
            f"{place}/one.png",
            "--output",
            f"{place}/outputs",
        ]
        words += ["--device", bench.device, "--process_size", str(sizes[0]), *model_options(bench)]
        yield [
            Variant("import torch", partial(python, "-c", "import torch"), results=0),
            Variant(
                "import the pipeline", partial(python, "-c", "import pisasr.pipeline"), results=0
            ),
            Variant("first written picture", partial(python, *words), (sizes[0], sizes[0])),
        ]


def training(bench: Bench, sizes: list[int]) -> Iterator[Group]:
    """A step of each stage, one picture; sem without LPIPS, whose network would be a download.
    Wants extra `train`.
    """
    from pisasr.config import TrainConfig
    from pisasr.method.adapters import active, parameters_of, train_only
    from pisasr.training.loop import restore_batch
    from pisasr.training.losses import Batch, Scorers, distillation, score
    from pisasr.training.setup import Predictor, load_model
    from pisasr.training.stages import Stage, stages_of

    px, precision = (
        sizes[0],
        {torch.float32: "no", torch.bfloat16: "bf16", torch.float16: "fp16"}[bench.dtype],
    )
    config = TrainConfig.model_validate(
        {
            "model": {"pretrained_model": bench.model and str(bench.model)},
            "data": {"photos": "."},
            "run": {"output": ".", "mixed_precision": precision},
            "sem": {"steps": 1, "weight_csd": 1.0},
        }
    )
    base = load_model(config, torch.device(bench.device))
    model = base.model
    x = (
        torch.from_numpy(np.array(picture(px, px))).permute(2, 0, 1)[None].to(bench.device) / 127.5
        - 1
    )
    examples = Batch(x_L=x, x_H=x.flip(3), captions=["a photo"], seeds=[0])

    def step(stage: Stage, optimizer: torch.optim.Optimizer) -> None:
        csd = None
        if stage.settings.weight_csd and base.alphas_cumprod is not None:
            csd = distillation(model, base.prompts, base.alphas_cumprod, config.csd)
        train_only(model.unet, stage.learns)
        optimizer.zero_grad(set_to_none=True)
        with torch.enable_grad(), active(model.unet, stage.active):
            with torch.autocast(bench.device, bench.dtype, enabled=bench.dtype != torch.float32):
                made = restore_batch(
                    examples, stage, base, Predictor(model.unet), config.data.null_text_ratio
                )
                total, _ = score(stage.settings, Scorers(csd=csd), examples, *made)
            total.backward()
        optimizer.step()

    def counted(call: Callable[[], object]) -> Counted:
        call()  # the optimizer's state and the words are there from the first on
        return count(call, bench.device, (model.unet,))

    group = []
    for stage in stages_of(config):
        call = partial(
            step, stage, torch.optim.AdamW(parameters_of(model.unet, stage.learns).values())
        )
        group.append(
            Variant(f"{stage.name} step", call, (px, px), 1, bench.dtype, partial(counted, call))
        )
    yield group


def x4plus(bench: Bench, sizes: list[int]) -> Iterator[Group]:
    """Real-ESRGAN x4plus, and this model beside it."""
    try:
        network, note = load_x4plus(), ""
    except MetricUnavailable:
        network, note = RRDBNet().eval().requires_grad_(False), "random weights, as fast as its own"
    network.to(bench.device, bench.dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
    for px in sizes:
        x_L = torch.from_numpy(np.array(picture(px // 4, px // 4))).permute(2, 0, 1)[None] / 255
        call = partial(
            run_network,
            network,
            x_L.to(bench.device, bench.dtype, memory_format=torch.channels_last),
        )
        counted = partial(count, call, bench.device)
        yield [
            Variant("x4plus", call, (px, px), 1, bench.dtype, counted, note=note),
            bench.restoring("one pass", (px, px)),
            bench.restoring("two passes", (px, px), [ADJUSTED]),
        ]


def run_network(network: nn.Module, x: Tensor) -> Tensor:
    return network(x).cpu()


def published(bench: Bench, sizes: list[int]) -> Iterator[Group]:
    """The published algorithm on the same networks: tiles one by one, two weight swaps for each,
    one encode a strength.

    A lower bound of its time: its trips of the VAE's maps to the CPU and its text encodes are left
    out.
    """
    swap_of = lru_cache(maxsize=2)(WeightSwap)  # of the pipeline and of the one without data
    for px, pairs in product(sizes, ([DEFAULT], [ADJUSTED], grid_of(4))):
        yield beside_published(bench, px, pairs, swap_of)


def beside_published(
    bench: Bench, px: int, pairs: Sequence[Pair], swap_of: "Callable[[PiSASRPipeline], WeightSwap]"
) -> Group:
    """The published algorithm, ours in its tiles, whose pictures must be the same, and ours."""
    what = (
        "default"
        if pairs == [DEFAULT]
        else "adjustable"
        if len(pairs) == 1
        else f"{len(pairs)} strengths"
    )
    plain, plan = Change(bench.dtype, plain=True), bench.published()
    same, ours = (
        bench.restoring(f"{what}, {name}", (px, px), pairs, tiles, upscale=1, color_fix="none")
        for name, tiles in (("ours in published tiles", plan), ("ours", bench.ours()))
    )
    vae_tile_px = plan.get("vae_tile_size", VAE_TILE_PX)
    cut = Plan(
        tile=plan["tile_size"],
        overlap=plan["tile_overlap"],
        vae_tile_px=vae_tile_px,
        **called_published(Plan),
    )
    levels = torch.from_numpy(np.array(picture(px, px))).permute(2, 0, 1)[None]

    def restored(pipe: PiSASRPipeline) -> list[Tensor]:
        """[3, H, W] in [0, 1] for each pair: strengths are weights, written before each pass of a
        tile.
        """
        x_L, embeds = levels.to(pipe.device) / 127.5 - 1, pipe.model.prompt_encoder("", pipe.device)

        def eps(pair: Pair, z: Tensor) -> Tensor:
            return (
                predict(pipe.unet, z, embeds)
                if pair == DEFAULT
                else swap_of(pipe).mixed(z, embeds, pair)
            )

        found = []
        for pair in pairs:
            (made,) = restore(pipe.model, x_L, Predictors(None, partial(eps, pair)), [DEFAULT], cut)
            assert made.x_H is not None  # noqa: S101  # for the type checker: it was decoded
            found.append((made.x_H[0].float() / 2 + 0.5).clamp(0, 1).cpu())
        return found

    published = replace(
        same,
        name=f"{what}, published",
        run=lambda: restored(bench.changed(plain)),
        count=lambda: bench.counted(plain, restored, swap_of(bench.countable(plain)).unet),
        made=lambda: torch.stack(restored(bench.changed(plain))).movedim(1, -1).numpy(),
        wanted=same.made if same.wanted else None,
        exact=bench.dtype == torch.float32,
    )
    return [published, replace(same, wanted=None), replace(ours, wanted=None)]


class WeightSwap:
    """One UNet whose weights are written before each pass: original + share * difference, every
    adapted tensor.
    """

    def __init__(self, pipe: PiSASRPipeline):
        self.unet = deepcopy(pipe.unet)
        both, pix, own = (unet.state_dict() for unet in (pipe.unet, pipe.unet_pix, self.unet))
        adapted = [
            name for name in both if both[name].is_meta or not torch.equal(both[name], pix[name])
        ]
        self._tensors = [(own[name], pix[name], both[name] - pix[name]) for name in adapted]

    def predicted(self, z: Tensor, embeds: Tensor, share: float) -> Tensor:
        for own, pix, difference in self._tensors:
            torch.add(pix, difference, alpha=share, out=own)
        return predict(self.unet, z, embeds)

    def mixed(self, z: Tensor, embeds: Tensor, pair: Pair) -> Tensor:
        eps_pix, eps_pisa = (self.predicted(z, embeds, share) for share in (0.0, 1.0))
        return mix_residuals(eps_pix, eps_pisa, *pair)


def without(variant: Variant, reason: str) -> Variant:
    """The variant with a reason in place of a measurement."""

    def skip() -> NoReturn:
        raise Skipped(reason)

    return replace(variant, run=skip, count=None, wanted=None)


CASES: dict[str, Case] = {
    case.__name__: case
    for case in (
        modes, sweep, tiles, scaling, dtypes, execution, batch, folder, startup, training, x4plus, published
    )
}  # fmt: skip
