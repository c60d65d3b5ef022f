"""What a step costs: counted without data, held against real steps, and the goals at Stable Diffusion's size."""

import lpips
import numpy as np
import pytest
import torch
from pisasr.training.adversary import PatchCritic
from pisasr.training.method import Predictor, restore
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from pisasr.config import ConfigError, TrainConfig
from pisasr.errors import ModelError
from pisasr.method.adapters import active, attach, parameters_of, train_only
from pisasr.method.model import PiSASR, predict
from pisasr.method.text import PromptEncoder
from pisasr.models.bases import load_base
from pisasr.training.csd import ClassifierScoreDistillation
from pisasr.training.estimate import CudaRules, Meter, base_configs, build_model, estimate, render
from pisasr.training.stages import Restored, build_score, stages_of

CROP, BATCH = 64, 3
FLASH = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
FLASH_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
CPU_ATTENTION = {  # what FlopCounterMode does not know by itself
    FLASH: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v),
    FLASH_BACKWARD: lambda grad, q, k, v, *_, **__: sdpa_backward_flop_count(grad, q, k, v),
}


@pytest.fixture
def config(base_folder):
    return make_config(base_folder)


@pytest.fixture(scope="module")
def costs(base_folder):
    return estimate(make_config(base_folder))


def make_config(base_folder):
    """Both stages on the tiny base, with every loss of the paper."""
    config = TrainConfig()
    config.model.pretrained_model, config.data.crop_px = str(base_folder), CROP
    config.perceptual.net = "squeeze"  # the quickest to make
    config.pix.batch_size = config.sem.batch_size = BATCH
    return config


def real_step(config, stage):
    """One step's forward and backward passes on real numbers, as a function; what it needs is made before."""
    base = load_base(config.model.pretrained_model)
    unet, vae = base["unet"].to(memory_format=torch.channels_last), base["vae"]
    for name, rank in (("pix", config.model.rank_pix), ("sem", config.model.rank_sem)):
        attach(unet, name, rank, config.model.alpha)
    train_only(unet, stage.learns)
    for parameter in parameters_of(unet, stage.learns).values():
        parameter.grad = torch.zeros_like(parameter)
    if config.model.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
        vae.enable_gradient_checkpointing()
    model, words = PiSASR(unet, vae), PromptEncoder(base["tokenizer"], base["text_encoder"])([""] * BATCH)
    metric = lpips.LPIPS(net="squeeze", pnet_rand=True, pretrained=False, verbose=False).requires_grad_(False).eval()
    distill = ClassifierScoreDistillation(base["scheduler"].alphas_cumprod)
    t = torch.full((BATCH,), 300)

    def teacher(z_t, t, embeds):
        with active(unet, ()):
            return predict(unet, z_t, embeds, t)

    def csd(restored):
        return distill(restored.z_H, teacher, words, words, t, torch.randn_like(restored.z_H))

    score = build_score(stage.settings, lambda: lambda *x: metric(*x).mean(), lambda: csd)

    def step():
        x_L, x_H = torch.rand(2, BATCH, 3, CROP, CROP) * 2 - 1
        noise = torch.randn(BATCH, vae.config.latent_channels, CROP // model.factor, CROP // model.factor)
        with active(unet, stage.active):
            x_pred, z_H = restore(model, Predictor(unet), x_L, words, noise)
            total, _ = score(Restored(x_pred, x_H, x_L, z_H, captions=[""] * BATCH, seeds=[0] * BATCH))
            total.backward()

    return step


def peak_of(step):
    """The most bytes at once by what torch's CPU allocator gave and took."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        step()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    return np.cumsum([event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]).max()


@pytest.mark.filterwarnings("ignore:The parameter 'pretrained'", "ignore:Arguments other than a weight enum")
@pytest.mark.parametrize("checkpointing", [False, True])
def test_operations_and_bytes_are_those_of_a_real_step(config, checkpointing):
    """Operations to the last one; bytes in float32, of which a library's own scratch memory is a part."""
    config.model.gradient_checkpointing = config.model.gradient_checkpointing_vae = checkpointing
    for cost, stage in zip(estimate(config), stages_of(config), strict=True):
        step = real_step(config, stage)
        assert cost.activations == pytest.approx(peak_of(step), rel=0.02), stage.name
        with FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as counter:
            step()
        assert cost.flops_per_step == counter.get_total_flops(), stage.name


def test_checkpoints_cost_operations_and_save_memory(config, costs):
    config.sem.steps = 0
    before = costs[0]
    for key in ("gradient_checkpointing", "gradient_checkpointing_vae"):
        setattr(config.model, key, True)
        (after,) = estimate(config)
        assert after.activations < before.activations, key
        assert after.flops["backward"] > before.flops["backward"], key
        assert {**after.flops, "backward": 0} == {**before.flops, "backward": 0}, key
        before = after


def test_a_critic_is_counted_as_what_learns_and_nothing_frozen(config, costs):
    config.sem.weight_gan = 0.1
    without, with_critic = costs[1], estimate(config)[1]
    weights = sum(p.numel() for p in PatchCritic().parameters())
    assert with_critic.trainable == without.trainable + weights
    assert with_critic.learning == without.learning + 16 * weights  # float32: itself, gradient, two moments
    vectors = sum(b.nbytes for b in PatchCritic().buffers())
    assert with_critic.frozen == without.frozen + vectors
    assert with_critic.flops["critic"] > 0 and "critic" not in without.flops


def test_the_rules_are_those_of_cudas_autocast(config, monkeypatch):
    """Every function of a step that CUDA's autocast has a rule for is on a list; cat promotes by itself."""
    seen = set()
    rules = CudaRules.__torch_function__

    def spy(self, func, types, args=(), kwargs=None):
        seen.add(func.__name__.strip("_"))
        return rules(self, func, types, args, kwargs)

    monkeypatch.setattr(CudaRules, "__torch_function__", spy)
    config.pix.steps, config.run.mixed_precision = 0, "bf16"
    estimate(config)
    names = torch._C._dispatch_get_registrations_for_dispatch_key("AutocastCUDA")
    known = {name.removeprefix("aten::").split(".")[0] for name in names}
    lists = CudaRules.LOW | CudaRules.FULL
    assert {"conv2d", "linear", "group_norm"} <= seen & known - {"cat", "stack"} <= lists <= known


def test_low_precision_halves_frozen_weights_and_leaves_the_adapter(config, costs):
    config.sem.steps, full = 0, costs[0]
    config.run.mixed_precision = "bf16"
    (low,) = estimate(config)
    assert 0.5 <= low.frozen / full.frozen < 0.6
    assert low.learning == full.learning == 16 * low.trainable
    assert low.activations < full.activations and low.flops == full.flops


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_vae_computes_in_its_own_dtype(vae, dtype):
    model = PiSASR(None, vae.to(dtype))
    x = torch.rand(1, 3, 32, 32) * 2 - 1
    z = model.encode(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model.encode(x), z)
        assert torch.equal(model.decode(z), model.decode(z.clone()))
        inside = model.decode(z)
    assert torch.equal(inside, model.decode(z))


def test_a_batch_is_shared_by_processes_and_accumulation(config):
    config.sem.steps, config.pix.batch_size, config.run.accumulation = 0, 12, 2
    (cost,) = estimate(config, processes=2)
    assert (cost.batch_size, cost.accumulation) == (3, 2)
    assert cost.flops_per_step == pytest.approx(6 * cost.flops_per_image)
    with pytest.raises(ConfigError, match="pix.batch_size=12 does not divide among 5 processes"):
        estimate(config, processes=5)


def test_a_stage_pays_for_its_own_losses_only(costs):
    pix, sem = costs
    assert "perceptual" not in pix.flops and "distillation" not in pix.flops
    # The teacher looks twice at every image, without the adapters that the UNet's own pass has.
    assert 1.5 < sem.flops["distillation"] / sem.flops["UNet"] < 2


def test_a_moved_window_leads_back_through_the_encoder(config, costs):
    config.pix.steps, config.sem.shift = 0, 8
    (moved,) = estimate(config)
    assert moved.flops["backward"] > costs[1].flops["backward"]
    assert moved.flops["encode"] == costs[1].flops["encode"]


def test_the_embedded_default_has_a_price(config):
    config.model.pretrained_model, config.sem.steps = None, 0
    (cost,) = estimate(config)
    assert cost.memory > cost.activations > 0
    config.model.gradient_checkpointing_vae = True
    with pytest.raises(ConfigError, match="LappedAutoencoder has no blocks for it"):
        estimate(config)


def test_stable_diffusion_is_known_without_its_files():
    with torch.device("meta"):
        model, text_encoder = build_model(TrainConfig(), base_configs("sd-2.1-base"), torch.float32)
    adapters = sum(p.numel() for name in ("pix", "sem") for p in parameters_of(model.unet, name).values())
    assert sum(p.numel() for p in model.unet.parameters()) - adapters == 865_910_724
    assert sum(p.numel() for p in model.vae.parameters()) == 83_653_863
    assert sum(p.numel() for p in text_encoder.parameters()) == 340_387_840
    with pytest.raises(ModelError, match="not in the cache"):
        base_configs("nobody/has-this-model")


def test_what_is_printed_is_what_was_counted(costs):
    cost = costs[0]
    text = render([cost])
    assert f"{cost.trainable:,} trainable" in text and f"{cost.flops_per_image / 1e12:.3f}" in text
    assert f"{cost.memory / 2**30:.2f}" in text and "perceptual" not in text


def test_a_storage_counts_once_and_until_it_is_let_go():
    with Meter() as meter:
        x = torch.empty(256, device="meta")
        views = [x[:9], x.view(16, 16)]
        assert meter.now == 1024
        y = x + 1
        del x
        assert meter.now == 2048 == meter.peak
        del views
        assert meter.now == 1024
    assert y.shape == (256,)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_the_goals_at_full_size(precision):
    """The paper's batch of 4 at 512 px. The published stage 1 computes perception and distillation too, and weighs
    them with 0: the same graph as with any weight."""
    config = TrainConfig()
    config.run.mixed_precision = precision
    config.pix.batch_size = config.sem.batch_size = 4
    ours, _ = estimate(config)
    config.pix.weight_lpips, config.pix.weight_csd, config.sem.steps = 2.0, 1.0, 0
    (published,) = estimate(config)
    print(f"stage 1: {ours.flops_per_image / 1e12:.3f} of {published.flops_per_image / 1e12:.3f} TFLOP an image")
    assert ours.flops_per_image <= 0.80 * published.flops_per_image
    config.pix.steps, config.sem.steps = 0, 1
    config.model.gradient_checkpointing = config.model.gradient_checkpointing_vae = True
    (sem,) = estimate(config)
    print(render([sem]))
    assert sem.activations < 8 * 2**30
