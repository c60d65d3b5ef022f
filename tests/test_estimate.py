"""What a step costs: counted without data, held against real steps, and the goal at Stable
Diffusion's size.
"""

from functools import cache

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from pisasr.config import ConfigError, load_config
from pisasr.errors import ModelError
from pisasr.method.adapters import active, parameters_of, train_only
from pisasr.method.model import PiSASR
from pisasr.training import setup
from pisasr.training.estimate import base_configs, build_model, estimate, print_plan
from pisasr.training.loop import restore_batch
from pisasr.training.setup import Predictor, load_model
from pisasr.training.stages import Batch, build_objective, distillation, stages_of

CROP, COUNT = 64, 3
FLASH = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
FLASH_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
CPU_ATTENTION = {  # what FlopCounterMode does not know by itself
    FLASH: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v),
    FLASH_BACKWARD: lambda grad, q, k, v, *_, **__: sdpa_backward_flop_count(grad, q, k, v),
}


@pytest.fixture(scope="module")
def configure(base_folder, tmp_path_factory):
    """configure(OVERRIDE...) is both stages on the tiny base, with l2 and distillation."""
    file = tmp_path_factory.mktemp("config") / "tiny.yaml"
    file.write_text(
        f"""
model: {{pretrained_model: {base_folder}}}
data: {{photos: [none], crop_px: {CROP}}}
pix: {{batch_size: {COUNT}}}
sem: {{batch_size: {COUNT}, weight_lpips: 0.0}}
run: {{output: none}}
"""
    )
    return lambda *overrides: setup.settle(load_config(file, list(overrides)))


@pytest.fixture(scope="module")
def costs(configure):
    """costs(OVERRIDE...) is the price of each stage; what was asked before is remembered."""
    return cache(lambda *overrides: estimate(configure(*overrides)))


def real_step(config, stage):
    """One step's forward and backward passes on real numbers; its forward operations, and all of
    them.
    """
    model, words, alphas = load_model(config, torch.device("cpu"))
    train_only(model.unet, stage.learns)
    objective = build_objective(
        stage.settings, None, lambda: distillation(model, words, alphas, config.csd)
    )
    x_L, x_H = (
        torch.rand(2, COUNT, 3, CROP, CROP, generator=torch.Generator().manual_seed(0)) * 2 - 1
    )
    batch = Batch(x_L=x_L, x_H=x_H, captions=[""] * COUNT, seeds=[0] * COUNT, cell_px=model.factor)
    (
        words([""]),
        words([config.csd.negative_prompt]),
        words([config.csd.prompt]),
    )  # remembered, so not counted
    with (
        FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as flops,
        active(model.unet, stage.active),
    ):
        restored = restore_batch(batch, stage, model, Predictor(model.unet), words, 1.0)
        total, _ = objective(batch, *restored)
        forward = flops.get_total_flops()
        total.backward()
    return forward, flops.get_total_flops() - forward


CHECKPOINTS = tuple(f"model.gradient_checkpointing{part}=true" for part in ("", "_vae"))


@pytest.mark.parametrize(
    "overrides", [pytest.param((), id="plain", marks=pytest.mark.slow), CHECKPOINTS]
)
def test_operations_are_those_of_a_real_step(configure, costs, overrides):
    config = configure(*overrides)
    for cost, stage in zip(costs(*overrides), stages_of(config), strict=True):
        assert (cost.forward, cost.backward) == real_step(config, stage), stage.name


def test_checkpoints_cost_operations_and_keep_less(costs):
    for before, after in zip(costs(), costs(*CHECKPOINTS), strict=True):
        assert (
            after.kept < before.kept
            and after.backward > before.backward
            and after.forward == before.forward
        )


def test_low_precision_halves_what_is_frozen_and_leaves_the_adapter(costs):
    (full, _), (low,) = costs(), costs("sem.steps=0", "run.mixed_precision=bf16")
    assert 0.5 <= low.frozen / full.frozen < 0.6 and low.kept == full.kept // 2
    assert low.learning == full.learning == 16 * low.trainable
    assert (low.forward, low.backward) == (full.forward, full.backward)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_vae_computes_in_its_own_dtype(vae, dtype):
    model = PiSASR(None, vae.to(dtype))
    x = torch.rand(1, 3, 32, 32) * 2 - 1
    z = model.encode(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model.encode(x), z)
        inside = model.decode(z)
    assert torch.equal(inside, model.decode(z))


def test_a_batch_is_shared_by_processes_and_accumulation_and_its_price_is_printed(
    configure, costs, capsys
):
    (cost,) = costs("sem.steps=0", "run.mixed_precision=bf16")
    shared = ("pix.batch_size=12", "sem.batch_size=12", "run.accumulation=2")
    config = configure("sem.steps=0", "run.mixed_precision=bf16", *shared)
    print_plan(config, processes=2)
    told = capsys.readouterr().out
    assert "pix: 6 images of 64 px a step and process (2 x 3), precision bf16" in told
    assert (
        f"{cost.trainable:,} trainable" in told
        and f"{(cost.forward + cost.backward) / COUNT / 1e12:.3f}" in told
    )
    assert "mixed_precision: bf16" in told and f"{cost.kept / 2**30:.3f}" in told
    with pytest.raises(ConfigError, match="pix.batch_size=12 does not divide among 5 processes"):
        estimate(config, processes=5)


def test_a_stage_pays_for_its_own_losses_only(costs):
    pix, sem = costs()
    (plain,) = costs("pix.steps=0", "sem.weight_csd=0")
    (moved,) = costs("pix.steps=0", "sem.beyond.shift=8")
    (seen,) = costs("pix.steps=0", "sem.weight_lpips=1", "perceptual.net=squeeze")
    assert pix.forward < plain.forward, "two adapters are on"
    assert plain.forward < sem.forward, "distillation looks twice at every image"
    assert moved.backward > sem.backward, "a moved window leads back through the encoder"
    assert seen.forward > sem.forward and seen.backward > sem.backward and seen.frozen > sem.frozen


def test_the_embedded_vae_has_no_blocks_to_checkpoint(configure):
    with pytest.raises(ConfigError, match="LappedAutoencoder has no blocks for it"):
        estimate(configure("model.pretrained_model=null", "model.gradient_checkpointing_vae=true"))


@pytest.mark.slow
def test_the_embedded_default_has_a_price(configure):
    (cost,) = estimate(configure("model.pretrained_model=null", "sem.steps=0"))
    assert cost.kept > 0 and cost.forward > 0


def test_stable_diffusion_is_known_without_its_files(configure):
    model, text_encoder = build_model(configure(), base_configs("sd-2.1-base"))
    adapters = sum(
        p.numel() for name in ("pix", "sem") for p in parameters_of(model.unet, name).values()
    )
    assert sum(p.numel() for p in model.unet.parameters()) - adapters == 865_910_724
    assert sum(p.numel() for p in model.vae.parameters()) == 83_653_863
    assert sum(p.numel() for p in text_encoder.parameters()) == 340_387_840
    with pytest.raises(ModelError, match="not in the cache"):
        base_configs("nobody/has-this-model")


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_the_goal_at_full_size(configure, precision):
    """The paper's batch of 4 at 512 px. The published stage 1 computes perception and distillation
    too, and weighs them with 0: the same graph as with any weight."""
    given = [
        "model.pretrained_model=sd-2.1-base",
        "data.crop_px=512",
        "pix.batch_size=4",
        "sem.steps=0",
    ]
    given.append(f"run.mixed_precision={precision}")
    (ours,) = estimate(configure(*given))
    (published,) = estimate(configure(*given, "pix.weight_lpips=2", "pix.weight_csd=1"))
    ours, published = (
        (cost.forward + cost.backward) / cost.batch_size for cost in (ours, published)
    )
    print(f"stage 1: {ours / 1e12:.3f} of {published / 1e12:.3f} TFLOP an image")
    assert ours <= 0.80 * published
