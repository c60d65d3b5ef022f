"""Validation: the right pictures, the right scores, and a training that can't tell whether it was
watched.
"""

import datetime
import json
import math
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from PIL import Image

from pisasr.config import (
    ConfigError,
    DataConfig,
    RunConfig,
    StageConfig,
    TrainConfig,
    ValidationConfig,
    load_config,
)
from pisasr.errors import PisasrError
from pisasr.evaluation.metrics import psnr
from pisasr.method.adapters import (
    active,
    active_names,
    attach,
    load_into,
    parameters_of,
    train_only,
)
from pisasr.method.model import PiSASR, predict_eps
from pisasr.method.residual import remove_residual
from pisasr.method.text import PromptEncoder
from pisasr.models.bases import load_others
from pisasr.pictures.images import to_tensor
from pisasr.pipeline import PiSASRPipeline
from pisasr.training import validation
from pisasr.training.stages import stages_of
from pisasr.training.validation import (
    Validator,
    make_pairs,
    middle,
    read_pairs,
    restore_picture,
    spread,
)

STAGES = stages_of(
    TrainConfig(
        data=DataConfig(photos=[]),
        run=RunConfig(output=""),
        pix=StageConfig(steps=1),
        sem=StageConfig(steps=1),
    )
)
PIX, SEM = STAGES


def signed(image):
    """[1, 3, H, W] in [-1, 1]."""
    return to_tensor(image) * 2 - 1


def picture(seed, width=48, height=40):
    """Smooth shapes with some noise: neither flat nor all noise."""
    y, x = np.mgrid[:height, :width]
    noise = np.random.default_rng(seed).integers(0, 40, (height, width, 3))
    waves = [90 + 60 * np.sin(x / (3 + seed + c)) * np.cos(y / (4 + c)) for c in range(3)]
    return Image.fromarray((np.stack(waves, -1) + noise).clip(0, 255).astype(np.uint8))


@pytest.fixture
def folder(tmp_path):
    """Three pairs, LQ a quarter of HQ's sides."""
    for name in ("lq", "hq"):
        (tmp_path / "val" / name).mkdir(parents=True)
    for i in range(3):
        hq = picture(i)
        hq.save(tmp_path / "val" / "hq" / f"{i}.png")
        hq.resize((12, 10), Image.Resampling.BICUBIC).save(tmp_path / "val" / "lq" / f"{i}.png")
    return tmp_path / "val"


def make_model(base_folder):
    """The tiny base with both adapters live and filled."""
    unet = tiny.make_unet()
    for name, rank in (("pix", 4), ("sem", 2)):
        adapter = tiny.make_adapter(tiny.make_unet(), name, rank)
        attach(unet, name, rank, adapter.alpha)
        load_into(unet, name, adapter.tensors)
    base = load_others(base_folder)
    return PiSASR(unet, base["vae"], PromptEncoder(base["tokenizer"], base["text_encoder"]))


@pytest.fixture
def model(base_folder):
    return make_model(base_folder)


def make_config(output, **settings):
    settings.setdefault("photos", [] if "pairs" in settings else ["photos"])
    return TrainConfig(
        data=DataConfig(photos=[]),
        validation=ValidationConfig(every=1, **settings),
        run=RunConfig(output=str(output)),
    )


def build(folder, output, **settings):
    return Validator.build(make_config(output, pairs=[str(folder)], **settings))


# --- what it measures -----------------------------------------------------------------------------


def test_it_restores_what_inference_restores(model, base_folder):
    """The pipeline with the same adapters merged, without colour correction, on a size that is no
    multiple of 8.
    """
    lq = picture(1, 45, 38)
    pairs = [(1.0, 0.0), (1.0, 1.0), (0.5, 1.2)]
    pipe = PiSASRPipeline.from_pretrained(base_folder)
    wanted = pipe.sweep(lq, pairs, upscale=1, process_size=1, color_fix="none")
    with torch.no_grad():
        found = restore_picture(model, lq, pairs)
    for one, other in zip(found, wanted, strict=True):
        assert one.size == lq.size
        difference = np.abs(np.asarray(one, int) - np.asarray(other, int))
        assert (
            difference.max() <= 1 and difference.mean() < 0.01
        )  # merged weights round differently


def test_the_rows_hold_the_means_of_each_strength(model, folder, tmp_path):
    validator = build(folder, tmp_path / "out")
    found = validator.run(model, SEM, 7, perceptual=lambda x, y: (x - y).abs().mean())
    metrics, columns = ("lpips_vgg", "psnr"), ("lq", "pix1_sem0", "pix1_sem1")
    assert list(found.scores) == [f"{metric}/{column}" for metric in metrics for column in columns]
    lqs, hqs = (
        [np.asarray(getattr(pair, side)) for pair in validator.pairs] for side in ("lq", "hq")
    )
    assert found.scores["psnr/lq"] == pytest.approx(
        np.mean([psnr(*pair) for pair in zip(lqs, hqs, strict=True)])
    )
    with torch.no_grad():
        restored = [
            np.asarray(restore_picture(model, pair.lq, [(1.0, 1.0)])[0]) for pair in validator.pairs
        ]
    wanted = np.mean([psnr(*pair) for pair in zip(restored, hqs, strict=True)])
    assert found.scores["psnr/pix1_sem1"] == pytest.approx(wanted)
    in_signed_units = np.mean(
        [np.abs(a / 127.5 - b / 127.5).mean() for a, b in zip(lqs, hqs, strict=True)]
    )
    assert found.scores["lpips_vgg/lq"] == pytest.approx(in_signed_units, rel=1e-5)
    rows = [
        json.loads(line)
        for line in (tmp_path / "out" / "validation.jsonl").read_text().splitlines()
    ]
    assert rows == [{"stage": "sem", "step": 7, **found.scores}]


def test_the_sheet_has_a_row_a_picture_and_a_column_a_strength(model, folder, tmp_path):
    validator = build(folder, tmp_path / "out")
    sheets = {}
    for stage in (PIX, SEM):
        found = validator.run(model, stage, 3)
        with Image.open(tmp_path / "out" / "validation" / f"{stage.name}-3.png") as image:
            assert np.array_equal(np.asarray(image), np.asarray(found.sheet))
            sheets[stage.name] = image.size
    cell = (sheets["sem"][0] - sheets["pix"][0]) // 1
    assert cell > 200 and sheets["pix"][0] // cell == 4 and sheets["pix"][1] > 3 * 200
    assert sorted(path.name for path in (tmp_path / "out" / "validation").iterdir()) == [
        "pix-3.png",
        "sem-3.png",
    ]


@pytest.mark.parametrize(
    ("lambdas", "passes"),
    [
        ([], 2),
        ([[1, 0]], 1),
        ([[1, 1]], 1),
        ([[0, 0]], 0),
        ([[1, 0], [0.5, 1], [1, 1], [2, 0.3]], 2),
    ],
)
def test_all_strengths_cost_two_passes_a_picture_at_most(model, folder, tmp_path, lambdas, passes):
    seen = []
    model.unet.register_forward_pre_hook(lambda *_: seen.append(active_names(model.unet)))
    validator = build(
        folder, tmp_path / "out", lambdas=[[float(v) for v in pair] for pair in lambdas], count=1
    )
    found = validator.run(model, SEM, 1)
    assert len(seen) == passes
    if passes == 2:
        assert seen == [["pix"], ["pix", "sem"]]
    assert len(found.scores) % (1 + (len(lambdas) or 2)) == 0


def test_a_model_that_answers_nan_gets_null_and_a_sheet(model, folder, tmp_path):
    parameters_of(model.unet, "pix")["conv_in.lora_B.weight"].data.fill_(math.nan)
    found = build(folder, tmp_path / "out", count=1).run(model, PIX, 1)
    assert math.isnan(found.scores["psnr/pix1_sem0"]) and math.isfinite(found.scores["psnr/lq"])
    row = json.loads((tmp_path / "out" / "validation.jsonl").read_text())
    assert row["psnr/pix1_sem0"] is None and found.sheet is not None


# --- what it leaves alone -------------------------------------------------------------------------


def learn(model, watch=None):
    """Two steps of SEM that draw from the global generator, with gradient left over between them.
    What is left.
    """
    torch.manual_seed(5)
    train_only(model.unet, "sem")
    parameters = parameters_of(model.unet, "sem")
    optimizer = torch.optim.AdamW(parameters.values(), lr=1e-2)
    model.unet.train()
    model.vae.encoder.train()
    x_L, x_H = signed(picture(0)), signed(picture(1))
    with active(model.unet, ("pix", "sem")):
        for step in (1, 2):
            embeds = model.prompt_encoder(["" if step == 2 else "a cat"])
            z_L = model.encode(x_L, torch.randn(model.latent_shape(x_L))).detach()
            x_pred = model.decode(remove_residual(z_L, predict_eps(model.unet, z_L, embeds)))
            torch.nn.functional.mse_loss(x_pred, x_H).backward()
            optimizer.step()
            if watch:
                watch(step)
        return {
            "weights": {name: p.detach().clone() for name, p in model.unet.named_parameters()},
            "gradients": {name: p.grad for name, p in parameters.items()},
            "flags": {name: p.requires_grad for name, p in model.unet.named_parameters()},
            "modes": [
                module.training for part in (model.unet, model.vae) for module in part.modules()
            ],
            "adapters": active_names(model.unet),
            "chance": torch.get_rng_state(),
        }


def test_training_is_bit_equal_with_and_without_it(model, folder, tmp_path, base_folder):
    alone = learn(model)
    for name, rank in (("pix", 4), ("sem", 2)):
        load_into(model.unet, name, tiny.make_adapter(tiny.make_unet(), name, rank).tensors)
    model.unet.zero_grad(set_to_none=True)
    model.prompt_encoder = PromptEncoder(
        model.prompt_encoder.tokenizer, model.prompt_encoder.text_encoder
    )
    validator = build(folder, tmp_path / "out")
    chances = []

    def watch(step):
        chances.append((torch.get_rng_state(), np.random.get_state()[1].copy()))
        assert validator.run(model, SEM, step).scores
        chances.append((torch.get_rng_state(), np.random.get_state()[1].copy()))

    watched = learn(model, watch)
    assert all(
        np.array_equal(a, b)
        for before, after in (chances[:2], chances[2:])
        for a, b in zip(before, after, strict=True)
    )
    assert len((tmp_path / "out" / "validation.jsonl").read_text().splitlines()) == 2
    for key in ("weights", "gradients"):
        assert alone[key].keys() == watched[key].keys()
        assert all(torch.equal(alone[key][name], watched[key][name]) for name in alone[key]), key
    assert alone["flags"] == watched["flags"] and alone["modes"] == watched["modes"]
    assert alone["adapters"] == watched["adapters"] == ["pix", "sem"]
    assert torch.equal(alone["chance"], watched["chance"])


def test_it_judges_the_model_that_will_be_used_without_dropout_or_gradients(
    model, folder, tmp_path
):
    quiet = build(folder, tmp_path / "quiet").run(model, SEM, 1)
    for module in model.unet.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    model.unet.train()
    z_L = model.encode(signed(picture(0)))
    with active(model.unet, ("pix", "sem")):
        drawn = [predict_eps(model.unet, z_L, model.prompt_encoder("")) for _ in range(2)]
    assert not torch.equal(*drawn), "dropout is at work in training"
    seen = []
    model.unet.register_forward_hook(lambda *call: seen.append(call[2].sample.requires_grad))
    train_only(model.unet, "sem")
    found = build(folder, tmp_path / "train").run(model, SEM, 1)
    assert found.scores == quiet.scores and seen == [False] * 6


class Predictor(torch.nn.Module):
    """What DDP wraps."""

    def __init__(self, unet):
        super().__init__()
        self.unet = unet

    def forward(self, z, embeds):
        return predict_eps(self.unet, z, embeds)


def learn_together(rank, base_folder, folder, output, watched):
    """Three steps on each of two processes, the first of which validates after every one."""
    store = torch.distributed.FileStore(str(output / "store"), 2)
    torch.distributed.init_process_group(
        "gloo", store=store, rank=rank, world_size=2, timeout=datetime.timedelta(seconds=30)
    )
    torch.set_num_threads(1)
    model = make_model(base_folder)
    train_only(model.unet, "sem")
    parameters = parameters_of(model.unet, "sem")
    network = torch.nn.parallel.DistributedDataParallel(Predictor(model.unet))
    optimizer = torch.optim.AdamW(parameters.values(), lr=1e-2)
    validator = build(folder, output, count=2)
    with active(model.unet, ("pix", "sem")):
        for step in (1, 2, 3):
            optimizer.zero_grad(set_to_none=True)
            z_L = model.encode(signed(picture(10 * step + rank))).detach()
            x_pred = model.decode(remove_residual(z_L, network(z_L, model.prompt_encoder(""))))
            torch.nn.functional.mse_loss(x_pred, signed(picture(step))).backward()
            optimizer.step()
            if watched and rank == 0:
                assert validator.run(model, SEM, step).scores
    torch.save({name: p.detach() for name, p in parameters.items()}, output / f"{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_the_first_of_two_processes_validates_and_neither_notices(base_folder, folder, tmp_path):
    ended = []
    for name in ("watched", "alone"):
        output = tmp_path / name
        output.mkdir()
        torch.multiprocessing.spawn(
            learn_together, (base_folder, folder, output, name == "watched"), nprocs=2
        )
        ended += [torch.load(output / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    assert len((tmp_path / "watched" / "validation.jsonl").read_text().splitlines()) == 3
    fresh = parameters_of(make_model(base_folder).unet, "sem")
    assert any(not torch.equal(ended[0][key], fresh[key]) for key in fresh), "it learned"
    assert all(torch.equal(ended[0][key], other[key]) for other in ended[1:] for key in fresh)


def test_an_exception_leaves_modes_and_adapters_as_they_were(model, folder, tmp_path, monkeypatch):
    model.unet.train()
    monkeypatch.setattr(model, "decode", lambda *_, **__: 1 / 0)
    with active(model.unet, ("pix",)), pytest.raises(ZeroDivisionError):
        build(folder, tmp_path / "out").run(model, SEM, 1)
        assert active_names(model.unet) == ["pix"]
    assert all(module.training for module in model.unet.modules()) and torch.is_grad_enabled()


def test_no_memory_costs_one_validation_and_no_disk_its_sheet(
    model, folder, tmp_path, monkeypatch, caplog
):
    def refuse(error):
        def raising(*_, **__):
            raise error

        return raising

    validator = build(folder, tmp_path / "out")
    with monkeypatch.context() as full:
        full.setattr(validation, "save_image", refuse(OSError(28, "No space left on device")))
        assert validator.run(model, PIX, 4).scores
    with monkeypatch.context() as small:
        small.setattr(
            model, "encode", refuse(torch.OutOfMemoryError("CUDA out of memory.\nTried ..."))
        )
        assert validator.run(model, PIX, 5) == ({}, None)
    assert [record.message for record in caplog.records if record.levelname == "WARNING"] == [
        "validation at pix step 4 is not whole ([Errno 28] No space left on device); training goes on",
        "validation at pix step 5 is not whole (CUDA out of memory.); training goes on",
    ]
    assert len((tmp_path / "out" / "validation.jsonl").read_text().splitlines()) == 1


def test_the_same_model_gives_the_same_row_and_bytes_again(model, folder, tmp_path):
    kept = []
    for name in ("a", "b"):
        build(folder, tmp_path / name).run(model, SEM, 1)
        kept.append([path.read_bytes() for path in sorted((tmp_path / name).rglob("*.*"))])
    assert len(kept[0]) == 2 and kept[0] == kept[1]


# --- which pictures -------------------------------------------------------------------------------


def test_pairs_belong_together_by_name(folder):
    (folder / "lq" / "1.png").rename(folder / "lq" / "1x4.png")
    pairs = read_pairs(ValidationConfig(pairs=[str(folder / "lq"), str(folder / "hq")]))
    assert [pair.name for pair in pairs] == ["0", "1", "2"]
    for i, pair in enumerate(pairs):
        assert np.array_equal(np.asarray(pair.hq), np.asarray(picture(i)))
        small = picture(i).resize((12, 10), Image.Resampling.BICUBIC)
        assert np.array_equal(
            np.asarray(pair.lq), np.asarray(small.resize((48, 40), Image.Resampling.BICUBIC))
        )


@pytest.mark.parametrize("scale", [1, 3, 4])
def test_both_are_cropped_at_the_same_place(tmp_path, scale):
    """A picture whose pixels say where they are: LQ and HQ agree after cropping, whatever the
    sizes.
    """
    y, x = np.mgrid[:33, :47]
    lq = np.stack([x * 5, y * 5, x + y], -1).astype(np.uint8)
    for name, pixels in (("lq", lq), ("hq", lq.repeat(scale, 0).repeat(scale, 1))):
        (tmp_path / name).mkdir()
        Image.fromarray(pixels).save(tmp_path / name / "a.png")
    (pair,) = read_pairs(ValidationConfig(pairs=[str(tmp_path)], crop_px=50))
    side = 50 // scale * scale
    assert pair.hq.size == pair.lq.size == (min(side, 47 * scale), min(side, 33 * scale))
    inside = np.s_[2 * scale : -2 * scale, 2 * scale : -2 * scale]
    assert np.abs(np.asarray(pair.lq, int)[inside] - np.asarray(pair.hq, int)[inside]).max() <= 4


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda f: (f / "lq" / "1.png").unlink(),
            r"has 2 pictures, .*hq has 3; without a partner: 1\.png\.$",
        ),
        (
            lambda f: picture(0, 12, 11).save(f / "lq" / "1.png"),
            "1.png is 48x40, .*1.png is 12x11; wanted the same",
        ),
        (lambda f: (f / "hq" / "2.png").write_bytes(b"no picture"), "2.png cannot be read"),
        (lambda f: (f / "hq").rename(f / "gt"), "hq is not a folder"),
        (lambda f: [path.unlink() for path in (f / "lq").iterdir()], "lq holds no picture"),
    ],
)
def test_what_does_not_match_is_refused_in_one_line(folder, tmp_path, damage, message):
    damage(folder)
    with pytest.raises(PisasrError, match=message) as refused:
        build(folder, tmp_path / "out")
    assert "\n" not in str(refused.value) and str(refused.value).startswith("validation.pairs: ")
    assert not (tmp_path / "out").exists()


def test_photos_are_degraded_by_their_names_alone(tmp_path):
    """Another seed of the run, another order, another number of photos: the same pair."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    for i in range(4):
        picture(i, 90, 70).save(tmp_path / "a" / f"{i}.png")
    picture(2, 90, 70).save(tmp_path / "b" / "2.png")
    settings = {"crop_px": 64, "count": 4}
    recipe = TrainConfig(data=DataConfig(photos=[]), run=RunConfig(output="")).degradation
    among = make_pairs(ValidationConfig(photos=[str(tmp_path / "a")], **settings), recipe)
    alone = make_pairs(ValidationConfig(photos=[str(tmp_path / "b")], **settings), recipe)
    assert [pair.name for pair in among] == ["0", "1", "2", "3"]
    for side in ("lq", "hq"):
        assert np.array_equal(
            np.asarray(getattr(among[2], side)), np.asarray(getattr(alone[0], side))
        )
    assert alone[0].hq.size == alone[0].lq.size == (64, 64)
    assert psnr(np.asarray(alone[0].lq), np.asarray(alone[0].hq)) < 40, "it was degraded"
    (tmp_path / "b" / "2.png").write_bytes(b"no picture")
    with pytest.raises(PisasrError, match=r"validation.photos: .*2\.png: "):
        make_pairs(ValidationConfig(photos=[str(tmp_path / "b")], **settings), recipe)
    with pytest.raises(PisasrError, match=r"^validation.photos: .*c does not exist"):
        make_pairs(ValidationConfig(photos=[str(tmp_path / "c")], **settings), recipe)


def test_a_few_of_many_are_spread_over_all():
    assert spread(range(100), 4) == [0, 25, 50, 75] and spread("abc", 8) == ["a", "b", "c"]


@pytest.mark.parametrize("size", [(8, 8), (9, 30), (64, 5)])
def test_the_middle_is_inside_and_on_the_grid(size):
    marked = Image.fromarray(
        np.arange(size[0] * size[1]).reshape(size[1], size[0]).astype(np.int32)
    )
    part = middle(marked, 6, step=2)
    assert part.size == (min(6, size[0]), min(6, size[1]))
    first = int(np.asarray(part)[0, 0])
    assert first % size[0] % 2 == 0 and first // size[0] % 2 == 0


# --- settings -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["validation.every=5"], "neither came"),
        (["validation.every=5", "validation.pairs=[a]", "validation.photos=[b]"], "both came"),
        (["validation.pairs=[a,b,c]"], "validation.pairs is .*at most 2 items"),
        (
            ["validation.lambdas=[[1,0],[1]]"],
            r"validation.lambdas.1 is \[1\]; wanted at least 2 items",
        ),
        (
            ["validation.lambdas=[[1,nan]]"],
            "validation.lambdas.0.1 is 'nan'; wanted a finite number",
        ),
        (["validation.count=0"], "validation.count is 0"),
        (["validation.every=-1"], "validation.every is -1"),
    ],
)
def test_settings_that_mean_nothing_are_refused(overrides, message):
    file = Path(__file__).parents[1] / "configs" / "pisasr.yaml"
    with pytest.raises(ConfigError, match=message):
        load_config(file, ["data.photos=[photos]", "run.output=runs/a", *overrides])


def test_without_every_nothing_is_read(tmp_path):
    config = TrainConfig(data=DataConfig(photos=[]), run=RunConfig(output=str(tmp_path)))
    assert config.validation.every == 0 and Validator.build(config) is None
    assert [stage.name for stage in stages_of(config)] == ["pix", "sem"]
