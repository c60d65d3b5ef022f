"""Training: what moves, what doesn't, what a later start finds, and the published losses and
gradients.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from accelerate.state import AcceleratorState
from PIL import Image
from safetensors.torch import load_file
from test_kills import handles, resident

from pisasr.config import ConfigError, DataConfig, RunConfig, StageConfig, TrainConfig, load_config
from pisasr.errors import CheckpointError
from pisasr.evaluation.networks import MetricUnavailable
from pisasr.method.adapters import active, attach, load_into, parameters_of, train_only
from pisasr.method.model import PiSASR, predict_eps, restore
from pisasr.method.text import PromptEncoder
from pisasr.models.bases import load_base
from pisasr.models.weights import convert_release, load_adapter, save_adapter
from pisasr.training import identity, loop, losses, setup, stages
from pisasr.training import state as states
from pisasr.training.csd import ClassifierScoreDistillation
from pisasr.training.guard import TrainingDiverged
from pisasr.training.loop import learning_rate, train
from pisasr.training.setup import Predictor
from pisasr.training.stages import Batch, build_objective, stages_of
from pisasr.training.state import Checkpoints, read_checkpoint

TINY = """
model: {{pretrained_model: {base}, rank_pix: 4, rank_sem: 2}}
data: {{photos: [{photos}], crop_px: 32, workers: 0}}
pix: {{steps: 3, batch_size: 2, lr: 1.0e-3}}
sem: {{steps: 3, batch_size: 2, lr: 1.0e-3, weight_lpips: 0, weight_csd: 1}}
tracking: {{trackers: []}}
run: {{checkpoint_every: 1}}
"""


def starter(folder, base_folder):
    photos = tiny.write_photos(folder / "photos", 3)
    config = folder / "tiny.yaml"
    config.write_text(TINY.format(base=base_folder, photos=photos))

    def start(name, *overrides, allow_change=False):
        AcceleratorState._reset_state(
            reset_partial_state=True
        )  # or the first run's precision would stay
        train(load_config(config, [f"run.output={folder / name}", *overrides]), allow_change)
        return folder / name

    return start


@pytest.fixture
def run(base_folder, tmp_path):
    """run(NAME, OVERRIDE...) trains a few steps on three small photos and returns the output
    folder.
    """
    return starter(tmp_path, base_folder)


@pytest.fixture(scope="module")
def finished(base_folder, tmp_path_factory):
    """The folder of a run of both stages that nobody disturbed; nothing is written there any
    more.
    """
    return starter(tmp_path_factory.mktemp("finished"), base_folder)("whole")


@pytest.fixture
def done(finished, tmp_path):
    """The same run as `run("done")` leaves it."""
    return shutil.copytree(finished, tmp_path / "done")


def adapters_of(folder):
    return [(folder / "adapters" / f"{name}.safetensors").read_bytes() for name in ("pix", "sem")]


def rows(output):
    return [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]


def test_a_moved_window_and_the_lattice_term_take_part(run, monkeypatch):
    seen = []
    monkeypatch.setattr(
        loop,
        "build_perceptual",
        lambda *_: lambda x, y: (seen.append((x, y)), (x - y).square().mean())[1],
    )
    wanted = [
        "sem.steps=2",
        "sem.beyond.shift=8",
        "sem.beyond.weight_lattice=5",
        "sem.weight_lpips=1",
        "pix.steps=1",
    ]
    output = run("moved", *wanted)
    assert {"l2", "lpips", "csd", "lattice"} <= set(rows(output)[-1]) and len(rows(output)) == 3
    assert all(x.shape == y.shape == (2, 3, 24, 24) for x, y in seen) and len(seen) == 2


def write_pairs(folder, draw):
    """Two pairs with a teacher's pictures; draw(side, size, number) gives each."""
    for side, size in (("hq", 40), ("lq", 10), ("teacher", 40)):
        (folder / side).mkdir(parents=True)
        for i in range(2):
            draw(side, size, i).save(folder / side / f"{i}.png")
    return folder


def test_a_teacher_takes_part_and_is_asked_for_before_anything_is_loaded(run, tmp_path):
    with pytest.raises(
        ConfigError,
        match="sem.beyond.weight_teacher, or lpips_to=teacher, wants a teacher's pictures",
    ):
        run("untaught", "sem.beyond.weight_teacher=1")
    folder = write_pairs(
        tmp_path / "pairs", lambda side, size, i: Image.new("RGB", (size, size), (40 * i, 90, 120))
    )
    row = rows(
        run("taught", f"data.photos=[{folder}]", "sem.beyond.weight_teacher=2", "sem.weight_csd=0")
    )[-1]
    assert (
        row["total"] == pytest.approx(row["l2"] + 2 * row["teacher"], rel=1e-5)
        and row["teacher"] > 0
    )


def test_sharpening_reaches_the_teachers_pictures(run, finished, tmp_path):
    def halves(side, size, i):
        pixels = np.full((size, size, 3), 90, np.uint8)
        pixels[:, size // 2 :] = 160
        return Image.fromarray(pixels)

    folder = write_pairs(tmp_path / "pairs", halves)
    pix = finished / "adapters" / "pix.safetensors"
    given = (f"data.photos=[{folder}]", "pix.steps=0", f"sem.init_from={pix}")
    taught = (*given, "sem.beyond.weight_teacher=1", "sem.steps=1", "sem.weight_csd=0")
    plain, sharp = (
        rows(run(name, *taught, f"sem.beyond.sharpen={amount}"))[-1]["teacher"]
        for name, amount in (("p", 0), ("s", 3))
    )
    assert sharp > 1.01 * plain


def test_targets_are_made_in_float32_whatever_the_precision(run, tmp_path):
    """Sharpening is a convolution, which autocast would round to bf16: up to 0.4 grey levels."""
    targets = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            loop, "sharpen", lambda x, *_: (targets.append(torch.is_autocast_enabled("cpu")), x)[1]
        )
        run("a", "pix.steps=1", "sem.steps=0", "pix.beyond.sharpen=1", "run.mixed_precision=bf16")
    assert targets == [False]


def test_both_stages_leave_their_adapters_and_a_row_per_step(finished):
    found = rows(finished)
    assert [(row["stage"], row["step"]) for row in found] == [
        (s, i) for s in ("pix", "sem") for i in (1, 2, 3)
    ]
    assert {"l2", "csd", "total", "grad_norm"} <= found[-1].keys()
    assert "csd" not in found[0], "a loss without weight is not computed"
    for name in ("pix", "sem"):
        tensors = load_file(finished / "adapters" / f"{name}.safetensors")
        assert any(
            key.endswith("lora_B.weight") and tensor.any() for key, tensor in tensors.items()
        )


def test_a_cut_run_ends_with_the_same_bytes_and_leaves_the_pixel_adapter_to_the_byte(
    run, finished, monkeypatch
):
    seen = {}
    original, save = loop.report, loop.State.save

    def stop_in_the_middle(stage, step, *rest):
        original(stage, step, *rest)
        if (stage.name, step) == ("sem", 3):
            raise KeyboardInterrupt

    def spy(self, store, step):
        seen[self.stage, step] = {
            name: p.detach().clone() for name, p in parameters_of(self.unet, "pix").items()
        }
        save(self, store, step)

    monkeypatch.setattr(loop.State, "save", spy)
    with monkeypatch.context() as middle:
        middle.setattr(loop, "report", stop_in_the_middle)
        with pytest.raises(KeyboardInterrupt):
            run("cut")
    assert adapters_of(run("cut")) == adapters_of(finished)
    for key, tensor in seen["pix", 3].items():
        assert torch.equal(tensor, seen["sem", 2][key]) and torch.equal(
            tensor, seen["sem", 3][key]
        ), key
    assert not all(
        torch.equal(tensor, seen["pix", 1][key]) for key, tensor in seen["pix", 3].items()
    ), "it moved before"


def poison(monkeypatch, stage, steps):
    """Make the loss of some steps nan, in value and gradient."""
    seed, scored, now = loop.seed_step, stages.Objective.__call__, []

    def remember(number, at, step, process):
        now[:] = [at, step]
        seed(number, at, step, process)

    def score(self, *given):
        total, values = scored(self, *given)
        wrong = now[0] == stage and now[1] in steps
        return (
            (total * float("nan"), {**values, "total": values["total"] * float("nan")})
            if wrong
            else (total, values)
        )

    monkeypatch.setattr(loop, "seed_step", remember)
    monkeypatch.setattr(stages.Objective, "__call__", score)


def test_a_step_that_is_not_finite_is_not_taken(run, monkeypatch):
    before = {}
    original = loop.take_step

    def spy(optimizer, scaler, taken):
        learning = optimizer.param_groups[0]["params"]
        held = [p.detach().clone() for p in learning]
        original(optimizer, scaler, taken)
        before[len(before) + 1] = all(
            torch.equal(p, h) for p, h in zip(learning, held, strict=True)
        )

    monkeypatch.setattr(loop, "take_step", spy)
    poison(monkeypatch, "pix", {2})
    output = run("a", "sem.steps=0")
    assert before == {1: False, 2: True, 3: False}
    assert [row.get("skipped", False) for row in rows(output)] == [False, True, False]
    assert rows(output)[1]["total"] is None
    skipped = [json.loads(line) for line in (output / "skipped.jsonl").read_text().splitlines()]
    assert [(row["stage"], row["step"], len(row["photos"])) for row in skipped] == [("pix", 2, 2)]
    assert all(Path(photo).is_file() for photo in skipped[0]["photos"])
    assert all(
        tensor.isfinite().all()
        for tensor in load_file(output / "adapters" / "pix.safetensors").values()
    )


def test_too_many_of_them_end_the_run_with_a_whole_checkpoint(run, monkeypatch, tmp_path):
    poison(monkeypatch, "pix", {2, 3, 4, 5})
    with pytest.raises(
        TrainingDiverged, match="3 steps in a row.*checkpoint pix-0000000. is whole"
    ):
        run("a", "pix.steps=9", "run.max_bad_steps=3")
    kept = Checkpoints(tmp_path / "a" / "checkpoints", 2).newest("pix")
    assert (
        all(t.isfinite().all() for t in kept.tensors.values())
        and not (tmp_path / "a/adapters/pix.safetensors").exists()
    )


def test_no_checkpoint_is_taken_in_a_bad_streak(run, monkeypatch, tmp_path):
    """Or the weights that led into it would push out those that did not."""
    poison(monkeypatch, "pix", {4, 5, 6})
    with pytest.raises(TrainingDiverged, match="pix-00000003 is whole"):
        run("a", "pix.steps=9", "run.max_bad_steps=3", "run.keep_checkpoints=1")
    assert [place.name for place in (tmp_path / "a" / "checkpoints").iterdir()] == ["pix-00000003"]


def test_a_full_disk_ends_no_training(run, finished, monkeypatch, caplog):

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(states, "write_whole", full)
    output = run("full")
    assert "pix step 1 could not be saved" in caplog.text and "No space left" in caplog.text
    assert adapters_of(output) == adapters_of(finished)


def test_bf16_keeps_adapters_and_norms_in_float32(run, finished, monkeypatch):
    held, vae_dtypes = {}, set()
    original = loop.restore_batch

    def spy(batch, stage, model, *rest):
        held.update({name: parameter.dtype for name, parameter in model.unet.named_parameters()})
        vae_dtypes.update(parameter.dtype for parameter in model.vae.parameters())
        return original(batch, stage, model, *rest)

    monkeypatch.setattr(loop, "restore_batch", spy)
    output = run("bf16", "run.mixed_precision=bf16")
    assert vae_dtypes == {torch.bfloat16}
    full = {name for name, dtype in held.items() if dtype == torch.float32}
    assert all("lora_" in name or "norm" in name for name in full) and any(
        "lora_" in name for name in full
    )
    assert {held[name] for name in held if name not in full} == {torch.bfloat16}
    for one, other in zip(rows(output), rows(finished), strict=True):
        assert one["l2"] == pytest.approx(other["l2"], rel=0.02)


@pytest.mark.soak
def test_two_thousand_steps_take_the_memory_of_a_hundred(run, monkeypatch, did):
    """In both stages, and no file is left open."""
    seen, original = {"pix": [], "sem": []}, loop.report

    def spy(stage, *rest):
        original(stage, *rest)
        seen[stage.name].append((resident(), handles()))

    monkeypatch.setattr(loop, "report", spy)
    run("long", "pix.steps=1000", "sem.steps=1000", "run.checkpoint_every=100")
    grown = {}
    for name, column in seen.items():
        memory, files = (np.array(each) for each in zip(*column, strict=True))
        grown[name] = memory[-50:].mean() / memory[100:150].mean() - 1
        assert len(column) == 1000 and files[-50:].min() <= files[100:150].max()
    assert max(grown.values()) < 0.05
    did(
        f"2,000 steps: {grown['pix']:+.1%} and {grown['sem']:+.1%} memory after the first hundred, no file left open"
    )


def test_workers_change_nothing(run, finished):
    assert rows(run("helped", "sem.steps=0", "data.workers=2")) == rows(finished)[:3]


def test_the_launchers_precision_is_obeyed_and_a_contradiction_is_an_error(run, monkeypatch):
    one = ("pix.steps=1", "sem.steps=0")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")  # which the launcher says of itself, too
    own = run("own", *one, "run.mixed_precision=bf16", "tracking.trackers=tensorboard")
    assert (own / "tracking").is_dir()
    assert (
        setup.settle(load_config(own.parent / "tiny.yaml", ["run.output=a"])).run.mixed_precision
        == "no"
    )
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    launched = run("launched", *one)
    for folder in (own, launched):
        assert "mixed_precision: bf16" in (folder / "config.yaml").read_text()
    assert rows(launched) == rows(own)
    with pytest.raises(ConfigError, match="run.mixed_precision is fp16, the launcher says bf16"):
        run("torn", "run.mixed_precision=fp16")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp8")
    with pytest.raises(
        ConfigError, match="the launcher says mixed precision fp8; wanted one of no, fp16, bf16"
    ):
        run("eight")


def test_accumulation_equals_one_batch(run, finished):
    parts = run("parts", "sem.steps=0", "run.accumulation=2")
    for one, other in zip(rows(finished)[:3], rows(parts), strict=True):
        assert one["total"] == pytest.approx(other["total"], rel=1e-5)
        assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-3)


@pytest.mark.slow
def test_two_processes_equal_one(run, tmp_path):
    """One step of each stage from the same weights. accelerate's own launcher silently starts one
    process on a CPU.

    Gradients are compared (Adam's first moment is a tenth of them after a step): Adam divides by
    their size, also where they are zero but for rounding, and weights drift apart from there.
    MKL_CBWR, because MKL else takes other kernels for another batch size, which moves the norm by
    1.5e-6 on a CPU with AVX-512.
    """
    pix = run("before", "sem.steps=0") / "adapters" / "pix.safetensors"
    overrides = ["pix.steps=1", "sem.steps=1", f"sem.init_from={pix}", "run.accumulation=1"]
    script = Path(__file__).parents[1] / "scripts" / "train.py"

    def launch(processes):
        output = tmp_path / f"of_{processes}"
        launcher = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            f"--nproc_per_node={processes}",
            str(script),
        ]
        subprocess.run(
            [
                *launcher,
                "--config",
                str(tmp_path / "tiny.yaml"),
                f"run.output={output}",
                *overrides,
            ],
            env={
                **os.environ,
                "ACCELERATE_USE_CPU": "true",
                "OMP_NUM_THREADS": "1",
                "MKL_CBWR": "COMPATIBLE",
            },
            check=True,
        )
        return output

    alone, together = launch(1), launch(2)
    assert json.loads((together / "run.json").read_text())["processes"] == 2
    assert len(rows(together)) == 2  # only one of them writes
    for one, other in zip(rows(alone), rows(together), strict=True):
        for name in one.keys() - {"stage", "step"}:
            assert one[name] == pytest.approx(other[name], rel=1e-6), name
    for name in ("pix", "sem"):
        kept = [
            read_checkpoint(folder / "checkpoints" / f"{name}-00000001").tensors
            for folder in (alone, together)
        ]
        gradients = [
            {k: 10 * t for k, t in each.items() if k.startswith("optimizer.exp_avg.")}
            for each in kept
        ]
        assert (
            max((one - gradients[1][key]).abs().max() for key, one in gradients[0].items()) <= 1e-6
        )
        assert any(one.abs().max() > 1e-2 for one in gradients[0].values())


@pytest.mark.slow
def test_a_dead_process_ends_the_others(run, tmp_path):
    script = tmp_path / "dies.py"
    script.write_text(
        f"""
import os, sys
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
from pisasr.commands.main import main
from pisasr.training import loop
original = loop.seed_step
def seed(number, stage, step, process):
    assert os.environ["WORLD_SIZE"] == "2"
    if step == 2 and process == 1:
        os.kill(os.getpid(), 9)
    original(number, stage, step, process)
loop.seed_step = seed
sys.exit(main(["train", *sys.argv[1:]]))
"""
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", str(script)]
    command += ["--config", str(tmp_path / "tiny.yaml"), f"run.output={tmp_path / 'dead'}"]
    env = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode not in (0, None) and "exitcode  : -9" in done.stderr
    assert [row["step"] for row in rows(tmp_path / "dead")] == [1]


def test_another_data_set_batch_or_setting_is_refused_unless_allowed(run, done, tmp_path):
    with pytest.raises(ConfigError, match="pix.lr: 0.001 -> 0.5"):
        run("done", "pix.lr=0.5")
    Image.new("RGB", (50, 50)).save(tmp_path / "photos" / "new.png")
    with pytest.raises(
        ConfigError,
        match=r"pix.batch_size: 2 -> 4.*photos: 3 photos, \w+ -> 4 photos, \w+.*--allow_change",
    ):
        run("done", "pix.batch_size=4")
    run("done", "pix.batch_size=4", "pix.steps=4", "sem.steps=0", allow_change=True)
    assert [(row["stage"], row["step"]) for row in rows(done)] == [("pix", i) for i in (1, 2, 3, 4)]


def test_the_semantic_stage_wants_a_pixel_adapter(run):
    with pytest.raises(CheckpointError, match="train that stage first"):
        run("a", "pix.steps=0")


def test_the_semantic_stage_starts_from_any_pixel_adapter_which_comes_along(run, finished):
    """The semantic adapter is nothing without it."""
    output = run(
        "b",
        "pix.steps=0",
        "sem.steps=1",
        f"sem.init_from={finished / 'adapters' / 'pix.safetensors'}",
    )
    assert (output / "adapters" / "sem.safetensors").is_file()
    assert adapters_of(output)[0] == adapters_of(finished)[0]


def test_the_semantic_stage_goes_on_from_a_semantic_adapter(run, finished):
    """With nothing left to move it, the second phase ends where the first one did."""
    first = finished / "adapters"
    second = run("b", "pix.steps=0", f"sem.init_from={first / 'pix.safetensors'}", "sem.lr=0.0", "sem.steps=1",
                 f"sem.start_from={first / 'sem.safetensors'}") / "adapters"  # fmt: skip
    before, after = (load_adapter(folder / "sem.safetensors").tensors for folder in (first, second))
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert any(tensor.any() for key, tensor in before.items() if "lora_B" in key)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.alpha=16.0"], "alpha 8.0, wanted 16.0"),
        (["model.rank_pix=8"], "rank 4, wanted 8"),
        (["sem.init_from={folder}/sem.safetensors"], "kind sem, wanted pix"),
        (["sem.init_from=nowhere"], "no pix adapter at nowhere"),
        (["sem.start_from={folder}/pix.safetensors"], "kind pix, wanted sem"),
    ],
)
def test_a_stage_stands_only_on_what_the_configuration_describes(
    run, finished, monkeypatch, overrides, message
):
    folder = finished / "adapters"
    monkeypatch.setattr(setup, "load_base", lambda _: pytest.fail("a model was loaded"))
    words = [
        f"sem.init_from={folder / 'pix.safetensors'}",
        *(o.format(folder=folder) for o in overrides),
    ]
    with pytest.raises(CheckpointError, match=message):
        run("b", "pix.steps=5", *words)


def test_a_stage_whose_ground_was_changed_is_void(run, done):
    pix = done / "adapters" / "pix.safetensors"
    save_adapter(
        pix,
        replace(
            load_adapter(pix), tensors={k: t + 1 for k, t in load_adapter(pix).tensors.items()}
        ),
    )
    with pytest.raises(CheckpointError, match="sem was trained upon another pix adapter"):
        run("done")


def test_a_checkpoint_remembers_the_ground_as_it_was_loaded(run, monkeypatch, tmp_path):
    """A file that is exchanged while SEM learns is not what SEM stands on."""
    original = loop.take_step
    pix = tmp_path / "a" / "adapters" / "pix.safetensors"

    def exchange(*step):
        original(*step)
        if pix.is_file():
            tensors = {key: tensor + 1 for key, tensor in load_adapter(pix).tensors.items()}
            save_adapter(pix, replace(load_adapter(pix), tensors=tensors))

    monkeypatch.setattr(loop, "take_step", exchange)
    steps = ("pix.steps=1", "sem.steps=1")
    run("a", *steps)
    with pytest.raises(CheckpointError, match="sem was trained upon another pix adapter"):
        run("a", *steps)


def test_an_adapter_of_another_base_is_refused(run, finished, tmp_path):
    pix = load_adapter(finished / "adapters" / "pix.safetensors")
    save_adapter(
        tmp_path / "other.safetensors", replace(pix, base={**pix.base, "cross_attention_dim": 1024})
    )
    with pytest.raises(CheckpointError, match="trained on another base"):
        run("b", "pix.steps=0", f"sem.init_from={tmp_path / 'other.safetensors'}")


def test_two_runs_do_not_share_a_folder(run, monkeypatch, tmp_path):
    monkeypatch.setattr(identity, "PATIENCE_S", 0.5)
    heard, told = os.pipe()
    if not (other := os.fork()):
        held = identity.lock(tmp_path / "a")
        os.write(told, b"held" if held else b"")
        signal.pause()
    try:
        assert os.read(heard, 4) == b"held"
        with pytest.raises(ConfigError, match="another process trains into"):
            run("a")
    finally:
        os.kill(other, signal.SIGKILL)
        os.waitpid(other, 0)
    run("a", "pix.steps=1", "sem.steps=0")


def test_an_output_that_is_a_file_is_one_line(run, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(
        ConfigError, match="run.output=.*file can't be written into .*; choose another"
    ):
        run("file")


def test_a_changed_caption_is_another_data_set(run, done, tmp_path):
    (tmp_path / "photos" / "0.txt").write_text("a field")
    with pytest.raises(ConfigError, match="photos: 3 photos"):
        run("done")


def test_a_finished_run_keeps_saying_what_it_was(run, done, finished):
    run("done", "pix.lr=0.5", allow_change=True)
    for name in ("config.yaml", "run.json", "log.jsonl"):
        assert (done / name).read_bytes() == (finished / name).read_bytes()


def test_a_broken_run_file_is_named(run, done):
    (done / "run.json").write_text("")
    with pytest.raises(ConfigError, match=r"run.json is broken.*delete it"):
        run("done")


def test_a_backbone_that_cannot_be_had_is_told_before_the_first_step(run, monkeypatch, tmp_path):
    def absent(*_):
        raise MetricUnavailable("LPIPS (vgg) has no trunk")

    monkeypatch.setattr(losses, "load_lpips", absent)
    with pytest.raises(MetricUnavailable, match="no trunk"):
        run("a", "sem.weight_lpips=1")
    assert not (tmp_path / "a" / "log.jsonl").exists()


@pytest.mark.slow
@pytest.mark.skipif(
    sys.platform != "linux", reason="only Linux tells a process that its parent is gone"
)
def test_a_killed_launcher_lets_the_step_be_saved(run, tmp_path):
    """accelerate's launcher of one process passes no signal on."""
    script = Path(__file__).parents[1] / "scripts" / "train.py"
    command = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        str(script),
        "--config",
        str(tmp_path / "tiny.yaml"),
    ]
    command += [f"run.output={tmp_path / 'a'}", "pix.steps=100000", "run.checkpoint_every=100000"]
    with subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}) as launcher:
        wait_until(lambda: (tmp_path / "a" / "log.jsonl").is_file())
        launcher.terminate()
    wait_until(lambda: list((tmp_path / "a" / "checkpoints").glob("pix-*")))
    taken = len(rows(tmp_path / "a"))
    time.sleep(2)
    assert len(rows(tmp_path / "a")) == taken, "it trains on"


def wait_until(there, seconds=60):
    end = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < end
        time.sleep(0.1)


def test_learning_rate_warms_up_stays_and_falls():
    settings = StageConfig(steps=10, lr=1.0, warmup_steps=2, lr_schedule="cosine")
    rates = [learning_rate(settings, step) for step in range(1, 11)]
    assert rates[:2] == [0.5, 1.0] and rates[-1] == pytest.approx(0)
    assert rates[1:] == sorted(rates[1:], reverse=True)
    assert learning_rate(StageConfig(steps=10, lr=2.0), 7) == 2.0


BOTH = stages_of(TrainConfig(data=DataConfig(photos=[]), run=RunConfig(output="")))


@pytest.mark.parametrize("number", range(3))
def test_losses_and_gradients_are_the_published_ones(parity, number):
    """Goldens whose perceptual term is mean |x_pred - x_H|, for want of VGG's weights."""
    index = json.loads((parity / "index.json").read_text())["training"]
    case, tensors = index["cases"][number], load_file(parity / "tensors" / "training.safetensors")
    base = load_base(parity / "pipeline")
    unet = base["unet"]
    for adapter in convert_release(parity / "pisa_sr.pkl"):
        attach(unet, adapter.name, adapter.rank, adapter.alpha)
        load_into(unet, adapter.name, adapter.tensors)
    learns = {1: "pix", 2: "sem"}[case["stage"]]
    train_only(unet, learns)

    words = PromptEncoder(base["tokenizer"], base["text_encoder"])
    model = PiSASR(unet, base["vae"], words)
    distill = ClassifierScoreDistillation(base["scheduler"].alphas_cumprod)

    def teacher(z_t, t, embeds):
        with active(unet, ()):
            return predict_eps(unet, z_t, embeds, t)

    def csd(batch, x_pred, z_H):
        pos, neg = words(index["prompts"]), words([index["neg_prompt"]] * 2)
        return distill(z_H, teacher, pos, neg, tensors["csd_timesteps"], tensors["csd_noise"])

    weights = case["lambda"]
    settings = StageConfig(
        weight_l2=weights["l2"], weight_lpips=weights["perceptual"], weight_csd=weights["csd"]
    )
    objective = build_objective(
        settings, lambda x_pred, x_H: (x_pred - x_H).abs().mean(), lambda: csd
    )
    stage = next(stage for stage in BOTH if stage.learns == learns)
    heard = words([""] * 2 if case["prompt"] == "null" else index["prompts"])
    noise = tensors["vae_noise"] * (case["vae_sampling"] == "noise")
    network = Predictor(unet)
    with active(unet, stage.active):
        predictors = stage.predictors(lambda z_L: network(z_L, heard))
        x_H, z_H = next(restore(model, tensors["lr"], predictors, [stage.lambdas], noise=noise))
        x_pred = x_H.clamp(-1, 1)
        total, values = objective(Batch(x_L=tensors["lr"], x_H=tensors["hr"]), x_pred, z_H)
        total.backward()

    name = case["case"]
    assert (z_H - tensors[f"{name}.z_H"]).abs().max() <= 1e-4
    assert (x_pred - tensors[f"{name}.x_pred"]).abs().max() <= 1e-4
    expected = {"l2": case["l2"], "lpips": case["perceptual_standin_l1"], "csd": case["csd"]}
    assert values.keys() == {*settings.losses, "total"}
    for term in settings.losses:
        assert values[term].item() == pytest.approx(expected[term], rel=1e-5), term
    assert total.item() == pytest.approx(case["total"], rel=1e-5)
    parameters = parameters_of(unet, learns)
    norm = torch.stack([p.grad.norm() for p in parameters.values()]).norm().item()
    assert norm == pytest.approx(case["grad_norm_all"], rel=1e-3)
    goldens = {key: value for key, value in tensors.items() if key.startswith(f"{name}.grad.")}
    assert len(goldens) == 10
    for key, golden in goldens.items():
        module, side = key.removeprefix(f"{name}.grad.").split(".lora_")
        grad = parameters[f"{module}.lora_{side[0]}.weight"].grad
        assert (grad - golden).norm() <= 1e-3 * golden.norm(), key
    other = {"pix": "sem", "sem": "pix"}[learns]
    assert all(p.grad is None for p in parameters_of(unet, other).values())
