"""What a picture will take is told beforehand, near to what is counted and measured; short memory
is met at once.
"""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pisasr import PiSASRPipeline
from pisasr.benchmark.counting import count
from pisasr.benchmark.subjects import FULL, without_data
from pisasr.errors import MemoryShort
from pisasr.method import memory
from pisasr.method.memory import GIB, Forecast, free_bytes, held_bytes
from pisasr.method.model import PiSASR, Plan, Predictors, predict, restore
from pisasr.method.tiling import count_tiles

SMALL = {"upscale": 2, "process_size": 16}
TILES = {**SMALL, "tile_size": 32, "vae_tile_size": 64}


def photo(width=40, height=36):
    return Image.fromarray(
        np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    )


# --- the estimate ---------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=[torch.bfloat16, torch.float32], ids=str)
def parts(request):
    """A UNet and a VAE of SD-2.1's size, without data."""
    return without_data(FULL, request.param)


PLAN = Plan(96, 8, 4, 1, 512)
LEAN = replace(PLAN, lean=True, vae_tile_px=256)


@torch.no_grad()
@pytest.mark.parametrize(("px", "plan"), [(256, PLAN), (512, PLAN), (1024, PLAN), (1024, LEAN)])
def test_the_estimate_is_near_the_count_for_stable_diffusions_vae(parts, px, plan):
    """Which holds more than the UNet at every size."""
    model, levels = PiSASR(*parts), torch.empty(1, 3, px, px, device="meta", dtype=torch.uint8)

    def restored():
        list(restore(model, levels.float() / 127.5 - 1, Predictors(None, None), [(0, 0)], plan))

    if px == 256:
        restored()  # what is done once
    share = held_bytes(*parts, (1, 4, px // 8, px // 8), plan) / count(restored).peak_bytes
    assert 0.97 < share < 1.15


@torch.no_grad()
@pytest.mark.parametrize(("side", "batch_size"), [(64, 1), (192, 4)])
def test_the_estimate_is_near_the_count_for_stable_diffusions_unet(parts, side, batch_size):
    plan, words = replace(PLAN, batch_size=batch_size), torch.empty(1, 77, 1024, device="meta")
    z = torch.empty(
        batch_size, 4, min(side, 72), min(side, 72), device="meta"
    )  # 192: nine even tiles
    predict(parts[0], z, words)  # what is done once
    told = memory._unet_bytes(parts[0], (1, 4, side, side), plan)
    assert 0.95 < told / count(lambda: predict(parts[0], z, words)).peak_bytes < 1.05


MEASURE = r"""
import json, re, sys
from pathlib import Path
import numpy as np
import torch
from pisasr.benchmark.subjects import picture
from pisasr.pipeline import PiSASRPipeline
px = int(sys.argv[1])
pipe = PiSASRPipeline.from_pretrained(torch_dtype=torch.float32)
pipe.set_progress_bar_config(disable=True)
told = pipe.plan((px // 4, px // 4))
pipe(picture(px // 4, px // 4))
peak = re.search(r"VmHWM:\s*(\d+)", Path("/proc/self/status").read_text())[1]  # rusage counts who started it, too
print(json.dumps([told.bytes, 1024 * int(peak), str(told)]))
"""


@pytest.mark.slow
@pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="other systems don't tell a process' memory so"
)
@pytest.mark.parametrize(("px", "tiles"), [(512, ""), (1024, " in 4 tiles")])
def test_the_estimate_is_near_what_the_embedded_model_takes(px, tiles):
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(Path(__file__).parents[1]),
    }
    result = subprocess.run(
        [sys.executable, "-c", MEASURE, str(px)],
        capture_output=True,
        text=True,
        env=environment,
        check=True,
    )
    told, measured, words = json.loads(result.stdout.splitlines()[-1])
    assert 0.8 < told / measured < 1.2, words
    assert words == f"{px * px / 1e6:.1f} MP{tiles}, about {told / GIB:.1f} GiB"


def test_a_forecast_is_a_line():
    assert str(Forecast(16.777, 49, 6 * GIB, False)) == "16.8 MP in 49 tiles, about 6.0 GiB"
    assert str(Forecast(0.262, 1, 14 * GIB, False)) == "0.3 MP, about 14 GiB"


# --- in the pipeline ------------------------------------------------------------------------------


def test_a_plan_is_of_the_picture_as_the_model_sees_it(pipe):
    told = pipe.plan(photo(), **TILES)
    assert (told.megapixels, told.tiles, told.lean) == (80 * 72 / 1e6, 1, False)
    assert told == replace(pipe.plan((40, 36), **TILES), bytes=told.bytes)
    calls = []
    pipe.unet.register_forward_hook(lambda *_: calls.append(1))
    tiled = pipe.plan((40, 36), **{**TILES, "tile_size": 8})
    pipe(photo(), **{**TILES, "tile_size": 8})
    assert tiled.tiles == len(calls) > 1
    assert pipe.plan((400, 360), **TILES).bytes > told.bytes
    with pytest.raises(TypeError, match="plan doesn't know 'tiles'"):
        pipe.plan((40, 36), tiles=3)
    with pytest.raises(ValueError, match="2 came"):
        pipe.plan([photo(), photo()])


def needs(pipe, **options):
    """Bytes that the tiny model's tensors take of the photo."""
    cut = pipe._cut(pipe._check_options("plan", {**TILES, **options}), pipe.model.factor)
    return held_bytes(pipe.unet, pipe.vae, (1, 4, 18, 20), cut)


def test_what_does_not_fit_begins_smaller_at_once_and_says_so(pipe, monkeypatch):
    """The bytes of who asks for such tiles; nothing is tried in vain."""
    monkeypatch.setattr("pisasr.pipeline.SMALLEST_TILE", 1)
    half = {
        "tile_size": 10,
        "tile_overlap": 2,
        "tiling": "even",
        "vae_tile_size": 32,
        "low_memory": True,
    }
    wanted = pipe(photo(), **{**TILES, **half}).images[0]
    monkeypatch.setattr("pisasr.pipeline.free_bytes", lambda device: needs(pipe) - 1)
    assert needs(pipe, **half) < needs(pipe)
    with pytest.warns(
        MemoryShort,
        match=r"0.0 MP, about .* GiB, and 0.0 GiB are free; going on with UNet tiles of 10",
    ):
        came = pipe(photo(), **TILES).images[0]
    assert np.array_equal(np.asarray(came), np.asarray(wanted))
    told = pipe.plan((40, 36), **TILES)
    assert told.lean and told.tiles == count_tiles(18, 20, 10, 2, 1)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("free", [None, 2**50])
def test_where_there_is_room_or_nobody_knows_nothing_changes(pipe, monkeypatch, free):
    wanted = pipe(photo(), **TILES).images[0]
    monkeypatch.setattr("pisasr.pipeline.free_bytes", lambda device: free)
    assert np.array_equal(np.asarray(pipe(photo(), **TILES).images[0]), np.asarray(wanted))
    assert not pipe.plan((40, 36), **TILES).lean


def test_where_nothing_fits_one_step_is_taken(pipe, monkeypatch):
    monkeypatch.setattr("pisasr.pipeline.SMALLEST_TILE", 1)
    monkeypatch.setattr("pisasr.pipeline.free_bytes", lambda device: 0)
    with pytest.warns(MemoryShort, match="UNet tiles of 10 latent"):
        pipe(photo(), **TILES)


def test_what_ran_out_of_memory_is_not_tried_again_for_that_size(pipe, monkeypatch):
    monkeypatch.setattr("pisasr.pipeline.SMALLEST_TILE", 1)
    own, asked = PiSASR.decode, []

    def short(model, z, tile_px, lean):
        asked.append(tile_px)
        if not lean:
            raise torch.OutOfMemoryError("no room")
        return own(model, z, tile_px, lean)

    monkeypatch.setattr(PiSASR, "decode", short)
    with pytest.warns(MemoryShort, match="out of memory; going on"):
        first = pipe(photo(), **TILES).images[0]
    assert asked == [64, 32]
    asked.clear()
    again = pipe(photo(), **TILES).images[0]
    assert asked == [32] and again.size == first.size
    assert pipe.plan((40, 36), **TILES).lean and not pipe.plan((20, 20), **TILES).lean


# --- what is free ---------------------------------------------------------------------------------


def test_free_memory_of_a_cpu_is_what_linux_tells(monkeypatch, tmp_path):
    told = free_bytes(torch.device("cpu"))
    assert told is None or told > 2**20
    file = tmp_path / "meminfo"
    file.write_text("MemTotal:  99 kB\nMemAvailable:      12 kB\n")
    assert memory._told(str(file), "MemAvailable") == 12 * 1024
    assert (
        memory._told(str(file), "Other") is None
        and memory._told(str(tmp_path / "absent"), "MemAvailable") is None
    )
    assert free_bytes(torch.device("meta")) is None


@pytest.mark.parametrize("version", [1, 2])
def test_free_memory_of_a_cpu_ends_where_its_container_does(monkeypatch, tmp_path, version):
    """Whichever of the groups around a process leaves least; what is only cached can be had."""
    root = tmp_path if version == 2 else tmp_path / "memory"
    limit, used = (
        ("memory.max", "memory.current")
        if version == 2
        else ("memory.limit_in_bytes", "memory.usage_in_bytes")
    )
    cache = "inactive_file" if version == 2 else "total_inactive_file"
    for place, most, now, cached in [
        ("", "max", 9, 0),
        ("job", 1000, 700, 50),
        ("job/step", 5000, 600, 0),
    ]:
        (root / place).mkdir(parents=True, exist_ok=True)
        (root / place / limit).write_text(f"{most}\n")
        (root / place / used).write_text(f"{now}\n")
        (root / place / "memory.stat").write_text(f"anon 3\nsome_{cache} 9\n{cache} {cached}\n")
    (tmp_path / "own").write_text(
        "0::/job/step\n" if version == 2 else "3:cpu:/\n4:memory,x:/job/step\n"
    )
    left = memory._left_in_groups(tmp_path, tmp_path / "own")
    assert (
        sorted(left) == [350, 4400] and memory._left_in_groups(tmp_path, tmp_path / "absent") == []
    )
    monkeypatch.setattr(memory, "_left_in_groups", lambda: left)
    monkeypatch.setattr(memory, "_told", lambda *_: 10_000)
    assert free_bytes(torch.device("cpu")) == 350


def test_free_memory_of_a_gpu_counts_what_pytorch_keeps(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (5, 100))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 40)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 10)
    assert free_bytes(torch.device("cuda")) == 35


def test_parts_that_offloading_keeps_elsewhere_are_counted_once(base_folder):
    pipe = PiSASRPipeline.from_pretrained(base_folder)
    before = pipe._needed((1, 4, 18, 20), PLAN)
    unet, pipe.text_encoder = pipe.unet.to("meta"), pipe.text_encoder.to("meta")
    weights = sum(p.nbytes for p in unet.parameters())
    assert (
        pipe._needed((1, 4, 18, 20), PLAN) - before
        == weights
        > sum(p.nbytes for p in pipe.vae.parameters())
    )
