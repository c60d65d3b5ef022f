"""Training: what moves, what doesn't, what a later start finds, the published gradients."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import torch
from accelerate.state import AcceleratorState
from PIL import Image
from safetensors.torch import load_file

from pisasr.commands.main import main
from pisasr.errors import CheckpointError, UsageError
from pisasr.method.adapters import active, attach, load_into, parameters_of, train_only
from pisasr.method.model import PiSASR, predict_eps, restore
from pisasr.method.text import PromptEncoder
from pisasr.models.bases import load_base
from pisasr.models.rrdbnet import RRDBNet
from pisasr.models.rrdbnet_files import save_base
from pisasr.models.weights import convert_release, load_adapter, save_adapter
from pisasr.training import loop
from pisasr.training.config import (
    ConfigError,
    DataConfig,
    RunConfig,
    StageConfig,
    TrainConfig,
    load_config,
)
from pisasr.training.critic import CHANNELS
from pisasr.training.csd import ClassifierScoreDistillation
from pisasr.training.loop import TrainingDiverged, learning_rate, train
from pisasr.training.losses import Batch, Scorers, score
from pisasr.training.setup import Predictor
from pisasr.training.stages import stages_of

TINY = """
model: {{pretrained_model: {base}, rank_pix: 4, rank_sem: 4}}
data: {{photos: [{photos}], crop_px: 32, workers: 0}}
pix: {{steps: 2, batch_size: 2, lr: 1.0e-3}}
sem: {{steps: 3, batch_size: 2, lr: 1.0e-3, weight_lpips: 0, weight_csd: 1}}
run: {{checkpoint_every: 2, trackers: [], mixed_precision: no}}
"""
ONE_STEP = ("pix.steps=1", "sem.steps=0")


def starter(folder, base_folder):
    photos = tiny.write_photos(folder / "photos", 3)
    config = folder / "tiny.yaml"
    config.write_text(TINY.format(base=base_folder, photos=photos))

    def start(name, *overrides, allow_change=False):
        # Or the first run's precision would stay.
        AcceleratorState._reset_state(reset_partial_state=True)
        train(load_config(config, [f"run.output={folder / name}", *overrides]), allow_change)
        return folder / name

    return start


@pytest.fixture
def run(base_folder, tmp_path):
    """run(NAME, OVERRIDE...) trains a few steps on three photos; returns the output folder."""
    return starter(tmp_path, base_folder)


@pytest.fixture(scope="module")
def finished(base_folder, tmp_path_factory):
    """The output of an undisturbed run of both stages; read-only."""
    return starter(tmp_path_factory.mktemp("finished"), base_folder)("whole")


@pytest.fixture
def done(finished, tmp_path):
    """The same run as `run("done")` would leave it."""
    output = shutil.copytree(finished, tmp_path / "done")
    config = (output / "config.yaml").read_text()
    photos = str(finished.parent / "photos")
    (output / "config.yaml").write_text(config.replace(photos, str(tmp_path / "photos")))
    return output


@pytest.fixture(scope="module")
def pix_file(finished):
    return finished / "adapters" / "pix.safetensors"


def rows(output):
    return [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]


def results(output):
    files = ("adapters/pix.safetensors", "adapters/sem.safetensors", "log.jsonl")
    return [(output / file).read_bytes() for file in files]


def test_both_stages_leave_their_adapters_and_a_row_per_step(finished):
    found = rows(finished)
    steps = [("pix", 1), ("pix", 2), ("sem", 1), ("sem", 2), ("sem", 3)]
    assert [(row["stage"], row["step"]) for row in found] == steps
    assert {"l2", "csd", "total", "grad_norm"} <= found[-1].keys()
    assert "csd" not in found[0], "a loss without weight is not computed"
    for name in ("pix", "sem"):
        tensors = load_file(finished / "adapters" / f"{name}.safetensors")
        assert any(t.any() for key, t in tensors.items() if "lora_B" in key)
    assert load_config(finished / "config.yaml").run.output == str(finished)


def test_the_semantic_stage_leaves_the_pixel_adapter_to_the_byte(run, finished, pix_file):
    output = run("b", "pix.steps=0", "sem.steps=1", f"sem.pix_adapter={pix_file}")
    assert (output / "adapters" / "pix.safetensors").read_bytes() == pix_file.read_bytes()
    assert rows(output) == rows(finished)[2:3], "another run's adapter is as good as one's own"


def test_the_semantic_stage_may_begin_as_the_pixel_adapters_negative(run, finished, pix_file):
    """Then strengths (1, 1) are the bare base, which pix began with."""
    given = ("pix.steps=0", "sem.steps=1", "sem.weight_csd=0", f"sem.pix_adapter={pix_file}")
    still = run("still", *given, "sem.start_from=-pix", "sem.lr=0", "sem.weight_decay=0")
    assert rows(still)[0]["l2"] == pytest.approx(rows(finished)[0]["l2"], rel=1e-4)
    pix, sem = (load_adapter(f).tensors for f in (pix_file, still / "adapters/sem.safetensors"))
    for key, tensor in pix.items():
        assert torch.equal(sem[key], -tensor if "lora_B" in key else tensor)
    with pytest.raises(ConfigError, match="rank"):
        run("ranks", *given, "sem.start_from=-pix", "model.rank_sem=2")


def test_a_stage_goes_on_from_an_adapter(run, finished, pix_file):
    """With nothing left to move it, it ends where it started."""
    sem_file = finished / "adapters" / "sem.safetensors"
    given = (f"sem.pix_adapter={pix_file}", f"sem.start_from={sem_file}", "pix.steps=0")
    output = run("b", *given, "sem.lr=0.0", "sem.steps=1")
    assert (output / "adapters" / "sem.safetensors").read_bytes() == sem_file.read_bytes()


def test_a_perceptual_loss_may_take_part_in_both_stages(run, monkeypatch):
    class Distance(torch.nn.Module):
        def forward(self, x, y):
            assert min(x.min(), y.min()) >= 0 and max(x.max(), y.max()) <= 1
            return (x - y).abs().mean((1, 2, 3))

    monkeypatch.setattr(loop, "load_lpips", lambda net, device: Distance())
    weights = ("pix.weight_lpips=2", "sem.weight_lpips=1", "sem.weight_csd=0")
    for row, weight in zip(
        rows(run("a", "pix.steps=1", "sem.steps=1", *weights)), (2, 1), strict=True
    ):
        assert row["total"] == pytest.approx(row["l2"] + weight * row["lpips"], rel=1e-5)


def test_a_critic_is_taught_beside_the_adapter_and_goes_on_with_it(run, monkeypatch):
    class Seen(torch.nn.Conv2d):
        def features(self, x):
            return [self(x)]

    def load(net, device):
        torch.manual_seed(0)
        return Seen(3, 8, 3).requires_grad_(False)

    monkeypatch.setattr(loop, "load_lpips", load)
    monkeypatch.setitem(CHANNELS, "vgg", (8,))
    weights = ("pix.steps=0", "sem.steps=2", "sem.weight_critic=0.5", "sem.weight_csd=0")
    given = (*weights, f"sem.pix_adapter={run('pix', *ONE_STEP) / 'adapters/pix.safetensors'}")
    whole = run("whole", *given)
    assert rows(whole)[0]["critic"] == pytest.approx(0.69, abs=0.1)
    run("parts", *given, "sem.steps=1")
    parts = run("parts", *given, allow_change=True)
    assert rows(parts) == rows(whole)
    ends = [(each / "adapters/sem.safetensors").read_bytes() for each in (parts, whole)]
    assert ends[0] == ends[1]


def test_a_base_without_words_and_noise_levels_learns_but_is_not_distilled(run, tmp_path):
    save_base(RRDBNet(blocks=1, features=8, growth=4), tmp_path / "rrdb", torch.float32)
    base = f"model.pretrained_model={tmp_path / 'rrdb'}"
    with pytest.raises(ConfigError, match="sem.weight_csd must be 0: RRDBNet"):
        run("distilled", base)
    with pytest.raises(ConfigError, match="sem.base_target_ratio needs a base that restores"):
        run("taught", "sem.base_target_ratio=1")
    given = (base, "pix.steps=2", "sem.steps=1", "sem.weight_csd=0", "sem.start_from=-pix")
    given += ("sem.base_target_ratio=1",)
    found = rows(run("a", *given, "run.mixed_precision=bf16"))
    assert [(row["stage"], row["step"]) for row in found] == [("pix", 1), ("pix", 2), ("sem", 1)]
    assert all(row["grad_norm"] > 0 for row in found)


def test_workers_change_nothing(run, finished):
    assert rows(run("helped", *ONE_STEP, "data.workers=2")) == rows(finished)[:1]


def test_accumulation_equals_one_batch(run, finished):
    parts = run("parts", *ONE_STEP, "run.accumulation=2")
    assert rows(parts)[0]["total"] == pytest.approx(rows(finished)[0]["total"], rel=1e-5)
    assert rows(parts)[0]["grad_norm"] == pytest.approx(rows(finished)[0]["grad_norm"], rel=1e-3)


def test_bf16_keeps_adapters_and_norms_in_float32(run, finished, monkeypatch):
    held, vae_dtypes = {}, set()
    original = loop.restore_batch

    def spy(batch, stage, base, *rest):
        held.update({name: p.dtype for name, p in base.model.unet.named_parameters()})
        vae_dtypes.update(p.dtype for p in base.model.vae.parameters())
        return original(batch, stage, base, *rest)

    monkeypatch.setattr(loop, "restore_batch", spy)
    output = run("bf16", *ONE_STEP, "run.mixed_precision=bf16")
    assert vae_dtypes == {torch.bfloat16}
    full = {name for name, dtype in held.items() if dtype == torch.float32}
    assert all("lora_" in name or "norm" in name for name in full)
    assert {held[name] for name in held if name not in full} == {torch.bfloat16}
    assert rows(output)[0]["l2"] == pytest.approx(rows(finished)[0]["l2"], rel=0.02)


def test_the_launchers_precision_counts_where_the_run_has_none(run, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    launched = run("launched", *ONE_STEP, "run.mixed_precision=null")
    assert load_config(launched / "config.yaml").run.mixed_precision == "bf16"


def poison(monkeypatch, steps):
    """Make the loss of some steps nan, in value and gradient."""
    scored, count = loop.score, []

    def score(*given):
        total, values = scored(*given)
        count.append(1)
        if len(count) not in steps:
            return total, values
        return total * float("nan"), {**values, "total": values["total"] * float("nan")}

    monkeypatch.setattr(loop, "score", score)


def test_a_step_that_is_not_finite_is_not_taken(run, monkeypatch):
    poison(monkeypatch, {1})
    output = run("a", *ONE_STEP)
    assert [(row["skipped"], row["total"]) for row in rows(output)] == [(True, None)]
    tensors = load_adapter(output / "adapters" / "pix.safetensors").tensors
    assert not any(tensor.any() for key, tensor in tensors.items() if "lora_B" in key)


def test_too_many_of_them_end_the_run_and_the_last_good_checkpoint_stays(
    run, monkeypatch, tmp_path
):
    monkeypatch.setattr(loop, "MAX_BAD_STEPS", 3)
    poison(monkeypatch, {2, 3, 4, 5})
    with pytest.raises(TrainingDiverged, match="pix step 4: 3 steps in a row"):
        run("a", "pix.steps=9", "run.checkpoint_every=1", "run.keep_checkpoints=1")
    assert [file.name for file in (tmp_path / "a" / "checkpoints").iterdir()] == ["pix-00000001"]


def cut(config, output, line, number):
    """Train in a process of its own and send it a signal once log.jsonl has so many lines."""
    log = output / "log.jsonl"
    if not (child := os.fork()):
        AcceleratorState._reset_state(reset_partial_state=True)
        with open(os.devnull, "w") as quiet:
            os.dup2(quiet.fileno(), 1), os.dup2(quiet.fileno(), 2)
        os._exit(main(["train", "--config", str(config), f"run.output={output}"]))
    end = time.monotonic() + 60
    while time.monotonic() < end and not (log.is_file() and log.read_bytes().count(b"\n") >= line):
        time.sleep(0.002)
    os.kill(child, number)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_a_killed_run_ends_with_the_same_bytes(run, finished, tmp_path):
    config, output = tmp_path / "tiny.yaml", tmp_path / "cut"
    assert cut(config, output, 4, signal.SIGKILL) == -signal.SIGKILL
    assert len(rows(output)) < 5
    with (output / "log.jsonl").open("ab") as journal:
        journal.write(b'{"stage": "sem", "st')  # as a full disk or a power cut would leave it
    assert results(run("cut")) == results(finished)


@pytest.mark.slow
def test_a_run_that_is_told_to_stop_saves_its_step_and_continues(run, finished, tmp_path):
    config, output = tmp_path / "tiny.yaml", tmp_path / "cut"
    assert cut(config, output, 1, signal.SIGTERM) == 128 + signal.SIGTERM
    last = rows(output)[-1]
    assert (output / "checkpoints" / f"{last['stage']}-{last['step']:08d}").is_file()
    assert results(run("cut")) == results(finished)


@pytest.mark.slow
def test_a_run_killed_at_any_moment_ends_with_the_same_bytes(run, finished, tmp_path):
    config, output = tmp_path / "tiny.yaml", tmp_path / "cut"
    for line in (0, 0, 1, 2, 2, 3, 3, 4):
        cut(config, output, line, signal.SIGKILL)
    assert results(run("cut")) == results(finished)


def test_a_finished_run_is_left_alone(run, done, finished):
    before = {path: path.stat().st_mtime_ns for path in done.rglob("*")}
    run("done")
    assert before == {path: path.stat().st_mtime_ns for path in done.rglob("*")}


def test_other_settings_are_refused_by_name_unless_allowed(run, done):
    with pytest.raises(ConfigError, match=r"pix.lr: 0.001 -> 0.5; pix.batch_size|pix.batch_size"):
        run("done", "pix.lr=0.5", "pix.batch_size=4")
    run("done", "run.checkpoint_every=1", "validation.count=2")  # no trained byte depends on these
    run("done", "pix.lr=0.5", "pix.steps=3", "sem.steps=0", allow_change=True)
    assert [(row["stage"], row["step"]) for row in rows(done)] == [("pix", i) for i in (1, 2, 3)]
    settings = (done / "config.yaml").read_text()
    older = "".join(line for line in settings.splitlines(True) if "max_grad_norm" not in line)
    (done / "config.yaml").write_text(older)  # of a version that lacked a key: its default counts
    run("done", "pix.lr=0.5", "pix.steps=3", "sem.steps=0")
    (done / "config.yaml").write_text("[")
    with pytest.raises(ConfigError, match="config.yaml is broken"):
        run("done")


def test_the_semantic_stage_wants_a_pixel_adapter(run):
    with pytest.raises(CheckpointError, match="train that stage first"):
        run("a", "pix.steps=0")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.alpha=16.0"], "16.0"),
        (["model.rank_pix=8"], "expected .*8"),
        (["sem.pix_adapter={folder}/sem.safetensors"], "got .*'sem'"),
        (["sem.pix_adapter=nowhere"], "no pix adapter at nowhere"),
        (["sem.start_from={folder}/pix.safetensors"], "got .*'pix'"),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused_before_a_model_is_loaded(
    run, pix_file, monkeypatch, overrides, message
):
    monkeypatch.setattr(loop, "load_model", lambda *_: pytest.fail("a model was loaded"))
    words = [f"sem.pix_adapter={pix_file}", *(o.format(folder=pix_file.parent) for o in overrides)]
    with pytest.raises(CheckpointError, match=message):
        run("b", *words)


def test_an_adapter_of_another_base_is_refused(run, pix_file, tmp_path):
    pix = load_adapter(pix_file)
    other = tmp_path / "other.safetensors"
    save_adapter(other, replace(pix, base={**pix.base, "cross_attention_dim": 1024}))
    with pytest.raises(CheckpointError, match="trained on another base"):
        run("b", "pix.steps=0", f"sem.pix_adapter={other}")


def test_photos_none_of_which_can_be_used_end_the_run_in_one_line(run, tmp_path):
    for path in (tmp_path / "photos").glob("[12].png"):
        path.write_text("no picture")
    Image.new("RGB", (8, 8)).save(tmp_path / "photos" / "0.png")
    with pytest.raises(UsageError, match="none of 3 photos can be used") as caught:
        run("b", *ONE_STEP)
    assert "\n" not in str(caught.value)


def test_the_command_prints_the_settings_and_the_number_of_photos(run, tmp_path, capsys):
    config, output = str(tmp_path / "tiny.yaml"), f"run.output={tmp_path / 'dry'}"
    assert main(["train", "--config", config, "--dry_run", output, "pix.steps=77"]) == 0
    printed = capsys.readouterr().out
    assert "steps: 77" in printed and "3 photos" in printed and not (tmp_path / "dry").exists()


def launch(tmp_path, processes, *overrides):
    output = tmp_path / f"of_{processes}"
    script = Path(__file__).parents[1] / "scripts" / "train.py"
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={processes}"]
    command += [str(script), "--config", str(tmp_path / "tiny.yaml"), f"run.output={output}"]
    quiet = {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "MKL_CBWR": "COMPATIBLE"}
    subprocess.run([*command, *overrides], env={**os.environ, **quiet}, check=True)
    return output


@pytest.mark.slow
def test_two_processes_equal_one(run, tmp_path, pix_file):
    """One step of each stage from the same weights, by torchrun on gloo.

    Gradients are compared (Adam's first moment is a tenth of them after a step): Adam divides by
    their size, also where they are zero but for rounding, and weights drift apart from there.
    MKL_CBWR, because MKL else takes other kernels for another batch size.
    """
    overrides = ["pix.steps=1", "sem.steps=1", f"sem.pix_adapter={pix_file}"]
    alone, together = (launch(tmp_path, count, *overrides) for count in (1, 2))
    assert len(rows(together)) == 2, "only one of them writes"
    for one, other in zip(rows(alone), rows(together), strict=True):
        for name in one.keys() - {"stage", "step"}:
            assert one[name] == pytest.approx(other[name], rel=1e-6), name
    for name in ("pix", "sem"):
        files = [folder / "checkpoints" / f"{name}-00000001" for folder in (alone, together)]
        one, other = (torch.load(file)["optimizer"]["state"].values() for file in files)
        for a, b in zip(one, other, strict=True):
            assert (10 * (a["exp_avg"] - b["exp_avg"])).abs().max() <= 1e-6
        assert any((10 * a["exp_avg"]).abs().max() > 1e-2 for a in one)


def test_learning_rate_warms_up_stays_and_falls():
    settings = StageConfig(steps=10, lr=1.0, warmup_steps=2, lr_schedule="cosine")
    rates = [learning_rate(settings, step) for step in range(1, 11)]
    assert rates[:2] == [0.5, 1.0] and rates[-1] == pytest.approx(0)
    assert rates[1:] == sorted(rates[1:], reverse=True)
    assert learning_rate(StageConfig(steps=10, lr=2.0), 7) == 2.0


class Difference(torch.nn.Module):
    """The goldens' stand-in for LPIPS: mean |x_pred - x_H| of pictures in [-1, 1]."""

    def forward(self, x, y):
        return 2 * (x - y).abs().mean((1, 2, 3))


@pytest.mark.parametrize("number", range(3))
def test_losses_and_gradients_are_the_published_ones(parity, number):
    index = json.loads((parity / "index.json").read_text())["training"]
    case, tensors = index["cases"][number], load_file(parity / "tensors" / "training.safetensors")
    base = load_base(parity / "pipeline")
    unet = base["unet"]
    for adapter in convert_release(parity / "pisa_sr.pkl"):
        attach(unet, adapter.name, adapter.rank, adapter.alpha)
        load_into(unet, adapter.name, adapter.tensors)
    both = stages_of(TrainConfig(data=DataConfig(photos=[]), run=RunConfig(output="")))
    stage = both[case["stage"] - 1]
    train_only(unet, stage.name)

    prompts = PromptEncoder(base["tokenizer"], base["text_encoder"])
    model = PiSASR(unet, base["vae"], prompts)
    distill = ClassifierScoreDistillation(base["scheduler"].alphas_cumprod)

    def teacher(z_t, t, embeds):
        with active(unet, ()):
            return predict_eps(unet, z_t, embeds, t)

    def csd(batch, z_H):
        pos, neg = prompts(index["prompts"]), prompts([index["neg_prompt"]] * 2)
        return distill(z_H, teacher, pos, neg, tensors["csd_timesteps"], tensors["csd_noise"])

    weights = case["lambda"]
    settings = StageConfig(
        weight_l2=weights["l2"], weight_lpips=weights["perceptual"], weight_csd=weights["csd"]
    )
    embeds = prompts([""] * 2 if case["prompt"] == "null" else index["prompts"])
    noise = tensors["vae_noise"] * (case["vae_sampling"] == "noise")
    network = Predictor(unet)
    with active(unet, stage.active):
        predictors = stage.predictors(lambda z_L: network(z_L, embeds))
        x_H, z_H = next(restore(model, tensors["lr"], predictors, [stage.lambdas], noise=noise))
        x_pred = x_H.clamp(-1, 1)
        batch = Batch(x_L=tensors["lr"], x_H=tensors["hr"], captions=[], seeds=[])
        total, values = score(settings, Scorers(Difference(), csd), batch, x_pred, z_H)
        total.backward()

    name = case["case"]
    assert (z_H - tensors[f"{name}.z_H"]).abs().max() <= 1e-4
    assert (x_pred - tensors[f"{name}.x_pred"]).abs().max() <= 1e-4
    expected = {"l2": case["l2"], "lpips": case["perceptual_standin_l1"], "csd": case["csd"]}
    assert values.keys() == {*settings.weights, "total"}
    for term in settings.weights:
        assert values[term].item() == pytest.approx(expected[term], rel=1e-5), term
    assert total.item() == pytest.approx(case["total"], rel=1e-5)
    parameters = parameters_of(unet, stage.name)
    norm = torch.stack([p.grad.norm() for p in parameters.values()]).norm().item()
    assert norm == pytest.approx(case["grad_norm_all"], rel=1e-3)
    goldens = {key: value for key, value in tensors.items() if key.startswith(f"{name}.grad.")}
    assert len(goldens) == 10
    for key, golden in goldens.items():
        module, side = key.removeprefix(f"{name}.grad.").split(".lora_")
        grad = parameters[f"{module}.lora_{side[0]}.weight"].grad
        assert (grad - golden).norm() <= 1e-3 * golden.norm(), key
    other = {"pix": "sem", "sem": "pix"}[stage.name]
    assert all(p.grad is None for p in parameters_of(unet, other).values())
