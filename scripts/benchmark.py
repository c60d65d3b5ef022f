"""Time PiSA-SR on this machine, by torch's own timer and FLOP counter; nothing is downloaded.

python scripts/benchmark.py --px 512 1024 --output bench.json
python scripts/benchmark.py --device cuda --size full --published --training

A row is a case at a size of the result: the median of some runs, its interquartile range, TFLOP
(two for each multiplied and added pair), and on CUDA the most memory held. Cases are what the
strengths cost (one pass, two passes, no pass), the published tiles, and a step of each stage.
"""

import argparse
import json
import platform
import sys
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a clone works before it is installed

from pisasr.commands.options import choose_device, command_parser, finite, whole
from pisasr.errors import UsageError, guarded, safe_text

MODES = {
    "one pass (1, 1)": (1.0, 1.0),
    "one pass (1, 0)": (1.0, 0.0),
    "two passes (0.7, 1.2)": (0.7, 1.2),
    "no pass (0, 0)": (0.0, 0.0),
}
PX = {"demo": [512, 1024], "full": [512]}

Case = tuple[str, int, Callable[[], Any]]  # name, side of the result in pixels, what is timed


def parser() -> argparse.ArgumentParser:
    made = command_parser("benchmark.py", __doc__ or "")
    add = made.add_argument
    add("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto", help="default: auto")
    size = "demo: the embedded model; full: Stable Diffusion 2.1's size, random (default: demo)"
    add("--size", choices=tuple(PX), default="demo", help=size)
    side = "sides of the results, multiples of 64 (default: 512 1024, full: 512)"
    add("--px", type=partial(whole, least=64), nargs="+", metavar="N", help=side)
    seconds = "time for each row's runs (default: 10)"
    add("--seconds", type=partial(finite, least=0.1), default=10.0, metavar="S", help=seconds)
    published = "add the published plan of tiles, with its overlap of a third"
    add("--published", action="store_true", help=published)
    add("--training", action="store_true", help="add a step of each stage, one crop a batch")
    add("--output", type=Path, metavar="FILE", help="the rows as JSON, written after each")
    return made


def run(args: argparse.Namespace) -> None:
    """Measure every case, print its row, and keep the file up to date."""
    import torch

    from pisasr.files import write_whole
    from pisasr.pipeline import usual_dtype

    sizes = args.px or PX[args.size]
    if wrong := [px for px in sizes if px % 64]:
        raise UsageError(f"--px {wrong[0]} is no multiple of 64")
    if args.output and not args.output.absolute().parent.is_dir():
        raise UsageError(f"--output {safe_text(args.output)} lies in no folder; make it first")
    device = choose_device(args.device)
    dtype = usual_dtype(device)
    machine = torch.cuda.get_device_name() if device.startswith("cuda") else platform.processor()
    report = {
        "machine": machine or platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "size": args.size,
        "device": device,
        "dtype": str(dtype).removeprefix("torch."),
        "rows": [],
    }
    print(", ".join(f"{key} {value}" for key, value in report.items() if key != "rows"))
    print(f"{'case':34}{'px':>6}{'s':>10}{'iqr':>9}{'runs':>6}{'TFLOP':>11}{'MiB':>8}")
    cases = inference_cases(args.size, device, dtype, sizes, args.published)
    if args.training:
        cases = chain(cases, training_cases(args.size, device, min(sizes)))
    for name, px, call in cases:
        row = {"case": name, "px": px, **measure(call, device, args.seconds)}
        report["rows"].append(row)
        numbers = "{seconds:10.4g}{iqr:9.2g}{runs:6}{tflop:11.4g}".format(**row)
        print(f"{name:34}{px:6}{numbers}{row['peak_mib'] or '':>8}", flush=True)
        if args.output:
            write_whole(args.output, json.dumps(report, indent=1) + "\n")


def measure(call: Callable[[], Any], device: str, seconds: float) -> dict[str, Any]:
    """Time runs for some seconds, then count what one of them computes."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.benchmark import Timer
    from torch.utils.flop_counter import FlopCounterMode

    on_cuda = device.startswith("cuda")
    if on_cuda:
        torch.cuda.reset_peak_memory_stats()
    timer = Timer("call()", globals={"call": call}, num_threads=torch.get_num_threads())
    found = timer.blocked_autorange(min_run_time=seconds)  # it runs once before, too
    peak_mib = torch.cuda.max_memory_allocated() // 2**20 if on_cuda else None
    # The counter has no formula for the CPU's fused attention; of two products it has.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        call()
    return {
        "seconds": found.median,
        "iqr": found.iqr,
        "runs": len(found.times) * found.number_per_run,
        "tflop": counter.get_total_flops() / 1e12,
        "peak_mib": peak_mib,
    }


# --- what is measured -----------------------------------------------------------------------------


def inference_cases(
    size: str, device: str, dtype: Any, sizes: list[int], published: bool
) -> Iterator[Case]:
    """Yield every mode at every size, then the tiling plans where a picture has several tiles."""
    from pisasr.options import TILE_PX
    from pisasr.pipeline import PiSASRPipeline

    if size == "demo":
        pipe = PiSASRPipeline.from_pretrained(torch_dtype=dtype)
    else:
        pipe = full_pipeline(dtype)
    pipe = pipe.to(device)
    for px in sizes:
        image = picture(px // 4)
        for name, pair in MODES.items():
            yield name, px, partial(pipe, image, *pair, process_size=px)
        if published and px > TILE_PX:
            tiled = partial(pipe, image, *MODES["two passes (0.7, 1.2)"], process_size=px)
            yield "two passes, published tiles", px, partial(tiled, tiling="published")


def full_pipeline(dtype: Any) -> Any:
    """Return a pipeline of Stable Diffusion 2.1's size with seeded random weights, wordless."""
    from copy import deepcopy

    from pisasr.pipeline import PiSASRPipeline

    unet, vae = (part.to(dtype).eval().requires_grad_(False) for part in full_networks())
    return PiSASRPipeline(vae=vae, unet=unet, unet_pix=deepcopy(unet))


def full_networks() -> tuple[Any, Any]:
    """Return a UNet that hears constant words, and a VAE, of Stable Diffusion 2.1's size."""
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel

    class ConstantWords(UNet2DConditionModel):
        def forward(self, sample: Any, timestep: Any, *_: Any, **__: Any) -> Any:
            words = sample.new_zeros(len(sample), 77, 1024)
            return super().forward(sample, timestep, encoder_hidden_states=words)

    torch.manual_seed(0)
    unet = ConstantWords(
        attention_head_dim=(5, 10, 20, 20), cross_attention_dim=1024, use_linear_projection=True
    )
    vae = AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        latent_channels=4,
    )
    return unet, vae


def training_cases(size: str, device: str, px: int) -> Iterator[Case]:
    """Yield a step of each stage: forward, l2 (sem of a noise model: and CSD), backward, AdamW."""
    import torch

    from pisasr.method.adapters import active, parameters_of, train_only
    from pisasr.training.config import TrainConfig
    from pisasr.training.loop import restore_batch
    from pisasr.training.losses import Batch, Scorers, distillation, score
    from pisasr.training.setup import Predictor
    from pisasr.training.stages import Stage, stages_of

    weight_csd = 1.0 if size == "full" else 0.0
    config = TrainConfig.model_validate(
        {
            "model": {"pretrained_model": None},
            "data": {"photos": ["."]},
            "run": {"output": "."},
            "sem": {"steps": 1, "weight_csd": weight_csd, "weight_lpips": 0.0},
        }
    )
    base = training_base(config, size, device)
    x = torch.rand(1, 3, px, px, generator=torch.Generator().manual_seed(0)).to(device) * 2 - 1
    batch = Batch(x_L=x, x_H=x.flip(3), captions=["a photo"], seeds=[0])
    csd = None
    if weight_csd:
        csd = distillation(base.model, base.prompts, base.alphas_cumprod, config.csd)

    def step(stage: Stage, optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad(set_to_none=True)
        with active(base.model.unet, stage.active):
            x_pred, z_H = restore_batch(batch, stage, base, Predictor(base.model.unet), 0.0)
            score(stage.settings, Scorers(None, csd), batch, x_pred, z_H)[0].backward()
        optimizer.step()

    for stage in stages_of(config):
        train_only(base.model.unet, stage.name)
        learning = parameters_of(base.model.unet, stage.name).values()
        optimizer = torch.optim.AdamW(learning, lr=1e-5)
        yield f"training step, {stage.name}", px, partial(step, stage, optimizer)


def training_base(config: Any, size: str, device: str) -> Any:
    """Return what training calls a base: the embedded one, or random ones of full size."""
    import torch

    from pisasr.method.model import PiSASR
    from pisasr.training.setup import Base, freeze, load_model, prepare_model

    if size == "demo":
        return load_model(config, torch.device(device))
    unet, vae = full_networks()
    prepare_model(config, unet, vae)
    for part in (unet, vae):
        freeze(part, torch.float32)

    def prompts(texts: list[str]) -> torch.Tensor:  # the network puts its own in their place
        return torch.zeros(len(texts), 1, 1)

    model = PiSASR(unet.to(device), vae.to(device), prompts)
    return Base(model, prompts, torch.linspace(0.999, 0.005, 1000))


def picture(side: int) -> Any:
    """Return a seeded photo-like picture: areas, edges and noise, never zeros."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3), np.uint8)).resize((side, side))
    noisy = np.asarray(coarse) + rng.normal(0, 12, (side, side, 3))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


if __name__ == "__main__":
    given = parser().parse_args()
    sys.exit(guarded(lambda: run(given), given.debug))
