"""Adapters change what they should, and are borrowed without a trace."""

import pytest
import torch
from tiny import CROSS, wave

from pisasr.errors import CheckpointError, ModelError
from pisasr.method import adapters
from pisasr.method.model import predict_eps

Z, EMBEDS = wave((1, 4, 6, 8), 3.0), wave((1, 77, CROSS), 4.0)


@pytest.fixture
def dressed(unet, pix, sem):
    """The tiny UNet with both adapters live and nothing active."""
    for adapter in (pix, sem):
        adapters.attach(unet, adapter.name, adapter.rank, adapter.alpha)
        adapters.load_into(unet, adapter.name, adapter.tensors)
    return unet


def flags(unet):
    return {name: parameter.requires_grad for name, parameter in unet.named_parameters()}


def test_every_convolution_and_projection_is_a_target_and_nothing_of_time_or_norm(unet):
    targets = adapters.target_modules(unet)
    assert {
        "conv_in",
        "conv_out",
        "mid_block.resnets.0.conv1",
        "up_blocks.0.upsamplers.0.conv",
    } <= set(targets)
    assert any(t.endswith("attn2.to_k") for t in targets) and any(
        t.endswith("ff.net.0.proj") for t in targets
    )
    assert not [t for t in targets if "time" in t or "norm" in t]


def test_targets_are_the_same_on_a_unet_that_carries_adapters(unet):
    bare = adapters.target_modules(unet)
    adapters.attach(unet, "pix", 2, 8)
    assert adapters.target_modules(unet) == bare
    assert len(adapters.parameters_of(unet, "pix")) == 2 * len(bare)


def test_fresh_adapters_change_nothing(unet):
    before = predict_eps(unet, Z, EMBEDS)
    adapters.attach(unet, "pix", 4, 8)
    adapters.attach(unet, "sem", 2, 8)
    with torch.no_grad(), adapters.active(unet, ["pix", "sem"]):
        assert torch.equal(predict_eps(unet, Z, EMBEDS), before)


def test_fresh_adapters_start_as_published(unet):
    adapters.attach(unet, "pix", 4, 8)
    parameters = adapters.parameters_of(unet, "pix")
    A = torch.cat([p.flatten() for key, p in parameters.items() if ".lora_A." in key])
    assert A.std().item() == pytest.approx(1 / 4, rel=0.05)
    assert not any(p.any() for key, p in parameters.items() if ".lora_B." in key)


def test_attach_leaves_the_active_set_and_the_flags_of_others(unet):
    adapters.attach(unet, "pix", 4, 8)
    adapters.train_only(unet, "pix")
    with adapters.active(unet, ["pix"]):
        before = flags(unet)
        adapters.attach(unet, "sem", 2, 8)
        after = flags(unet)
        assert {name: after[name] for name in before} == before
        assert adapters.active_names(unet) == ["pix"]
    with pytest.raises(ModelError, match="already has an adapter 'sem'"):
        adapters.attach(unet, "sem", 2, 8)


def test_active_restores_adapters_and_flags_also_after_an_exception(dressed):
    adapters.train_only(dressed, "sem")
    before = flags(dressed)
    with pytest.raises(RuntimeError, match="on purpose"), adapters.active(dressed, ["pix", "sem"]):
        assert flags(dressed) == before
        with adapters.active(dressed, []):
            assert flags(dressed) == before
        assert adapters.active_names(dressed) == ["pix", "sem"]
        raise RuntimeError("on purpose")
    assert flags(dressed) == before
    assert adapters.active_names(dressed) == []


@torch.no_grad()
def test_each_set_gives_what_its_merged_weights_give(unet, pix, sem):
    base = predict_eps(unet, Z, EMBEDS)
    merged_sets = {
        names: adapters.merged(unet, [{"pix": pix, "sem": sem}[n] for n in names])
        for names in (("pix",), ("sem",), ("pix", "sem"))
    }
    assert torch.equal(predict_eps(unet, Z, EMBEDS), base)
    for adapter in (pix, sem):
        adapters.attach(unet, adapter.name, adapter.rank, adapter.alpha)
        adapters.load_into(unet, adapter.name, adapter.tensors)
    for names, other in merged_sets.items():
        with adapters.active(unet, names):
            live = predict_eps(unet, Z, EMBEDS)
        torch.testing.assert_close(live, predict_eps(other, Z, EMBEDS), atol=1e-5, rtol=0)
        assert (live - base).abs().max() > 0.1
    assert torch.equal(predict_eps(unet, Z, EMBEDS), base)


def test_convolutions_that_use_merged_forward_give_the_same_eps_and_gradients(dressed):
    adapters.train_only(dressed, "sem")
    learning = list(adapters.parameters_of(dressed, "sem").values())
    with adapters.active(dressed, ["pix", "sem"]):
        before = predict_eps(dressed, Z, EMBEDS)
        gradients = torch.autograd.grad(before.square().mean(), learning)
        adapters.use_merged_forward(dressed)
        after = predict_eps(dressed, Z, EMBEDS)
        again = torch.autograd.grad(after.square().mean(), learning)
    assert not torch.equal(before, after)  # another way to the same numbers
    torch.testing.assert_close(after, before, atol=1e-5, rtol=0)
    torch.testing.assert_close(again, gradients, atol=1e-4, rtol=1e-3)


def test_only_the_named_adapter_learns(dressed):
    adapters.train_only(dressed, "sem")
    with adapters.active(dressed, ["pix", "sem"]):
        loss = predict_eps(dressed, Z, EMBEDS).square().mean()
        with torch.no_grad(), adapters.active(dressed, []):  # a teacher in between, as in CSD
            predict_eps(dressed, Z, EMBEDS)
        loss.backward()
    learned = {name for name, parameter in dressed.named_parameters() if parameter.grad is not None}
    assert learned == {name for name, _ in dressed.named_parameters() if ".sem." in name}


def test_merging_by_hand_for_a_convolution_and_a_projection(unet, pix):
    whole = adapters.merged(unet, [pix])
    A, B = (pix.tensors[f"conv_in.lora_{side}.weight"] for side in "AB")
    delta = torch.einsum("or,rikl->oikl", B[:, :, 0, 0], A) * 8 / 4
    torch.testing.assert_close(whole.conv_in.weight, unet.conv_in.weight + delta, atol=1e-6, rtol=0)
    name = "down_blocks.0.attentions.0.proj_in"
    A, B = (pix.tensors[f"{name}.lora_{side}.weight"] for side in "AB")
    wanted = unet.get_parameter(f"{name}.weight") + 2 * B @ A
    torch.testing.assert_close(whole.get_parameter(f"{name}.weight"), wanted, atol=1e-6, rtol=0)
    assert torch.equal(whole.time_embedding.linear_1.weight, unet.time_embedding.linear_1.weight)


def test_merging_is_done_in_float32_and_cast_once(unet, pix, sem):
    half = adapters.merged(unet, [pix, sem], torch.bfloat16)
    whole = adapters.merged(unet, [pix, sem]).to(torch.bfloat16)
    in_place = adapters.merge_in_place(unet, [pix, sem], torch.bfloat16)
    for a, b, c in zip(half.parameters(), whole.parameters(), in_place.parameters(), strict=True):
        assert a.dtype == torch.bfloat16 and torch.equal(a, b) and torch.equal(a, c)


def test_adapters_stay_float32_on_a_half_precision_base(unet):
    unet.to(torch.bfloat16)
    adapters.attach(unet, "pix", 4, 8)
    assert {p.dtype for p in adapters.parameters_of(unet, "pix").values()} == {torch.float32}
    with adapters.active(unet, ["pix"]):
        assert predict_eps(unet, Z, EMBEDS).dtype == torch.float32


def test_an_adapter_that_does_not_fit_is_refused_whole(unet, pix, dressed):
    before = {key: p.clone() for key, p in adapters.parameters_of(dressed, "pix").items()}
    lacking = dict(list(pix.tensors.items())[1:])
    narrow = {**pix.tensors, "conv_out.lora_A.weight": torch.zeros(4, 3, 3, 3)}
    for tensors, reason in (
        (lacking, "1 tensors missing"),
        (narrow, r"is \[4, 3, 3, 3\], wanted \[4, 16, 3, 3\]"),
    ):
        with pytest.raises(CheckpointError, match=reason):
            adapters.load_into(dressed, "pix", tensors)
    assert all(
        torch.equal(before[key], p) for key, p in adapters.parameters_of(dressed, "pix").items()
    )
    with pytest.raises(ModelError, match="this one carries adapters"):
        adapters.merged(dressed, [pix])


def test_unknown_names_are_refused_before_anything_moves(dressed):
    with pytest.raises(ModelError, match=r"no adapter 'sam' on this UNet, it has \['pix', 'sem'\]"):
        with adapters.active(dressed, ["pix", "sam"]):
            pass
    assert adapters.active_names(dressed) == []
