"""diffusers' ways of saving memory, exercised on a CPU through their hooks: the same pictures, and
who moves when.
"""

import numpy as np
import pytest
import tiny
import torch
from accelerate import cpu_offload, cpu_offload_with_hook
from diffusers.hooks.group_offloading import ModuleGroup

from pisasr import PiSASRPipeline
from pisasr.models.rrdbnet import PixelAutoencoder
from pisasr.models.weights import save_adapter

OPTIONS = {"upscale": 2, "process_size": 16, "lambda_sem": 0.5, "output_type": "np"}
CUTS = {"whole": {}, "tiled": {"tile_size": 6, "tile_overlap": 2, "vae_tile_size": 16}}
PARTS = ("text_encoder", "unet_pix", "unet", "vae")


@pytest.fixture(scope="module", params=["sd", "pixels"])
def folder(request, tmp_path_factory):
    """A tiny model in Stable Diffusion's layout, or with the embedded default's autoencoder."""
    place, channels = tmp_path_factory.mktemp(request.param), 4
    vae = None
    if request.param == "pixels":
        vae, channels = PixelAutoencoder(), 48
    tiny.write_base(place, vae, channels)
    for name in ("pix", "sem"):
        save_adapter(
            place / "adapters" / f"{name}.safetensors",
            tiny.make_adapter(tiny.make_unet(channels), name, 2),
        )
    return place


@pytest.fixture
def pipe(folder):
    return PiSASRPipeline.from_pretrained(folder)


@pytest.fixture(scope="module")
def picture():
    return tiny.photo(20, 14)


def model_offload(pipe):
    """What enable_model_cpu_offload does, which refuses to run where there is no accelerator."""
    pipe._all_hooks, hook = [], None
    for name in pipe.model_cpu_offload_seq.split("->"):
        _, hook = cpu_offload_with_hook(
            getattr(pipe, name), torch.device("cpu"), prev_module_hook=hook
        )
        pipe._all_hooks.append(hook)
    pipe.maybe_free_model_hooks = lambda: [hook.offload() for hook in pipe._all_hooks]


def sequential_offload(pipe):
    for name in PARTS:
        cpu_offload(
            getattr(pipe, name),
            torch.device("cpu"),
            offload_buffers=bool(getattr(pipe, name)._parameters),
        )


class Ledger:
    """Stands where group offloading moves weights: on a CPU there is nowhere to go, so weights away
    are nan.
    """

    def __init__(self, monkeypatch):
        self.kept: dict[int, list] = {}
        monkeypatch.setattr(ModuleGroup, "onload_", lambda group: self.onload(group))
        monkeypatch.setattr(ModuleGroup, "offload_", lambda group: self.offload(group))

    @staticmethod
    def tensors(group):
        return [p for module in group.modules for p in module.parameters()] + list(group.parameters)

    def offload(self, group):
        if id(group) not in self.kept:
            self.kept[id(group)] = [p.data for p in self.tensors(group)]
            for parameter in self.tensors(group):
                parameter.data = torch.full_like(parameter.data, torch.nan)

    def onload(self, group):
        for parameter, data in zip(self.tensors(group), self.kept.pop(id(group), ()), strict=False):
            parameter.data = data


@pytest.mark.parametrize("cut", CUTS)
def test_model_offload_moves_each_part_once_a_picture(pipe, picture, cut, monkeypatch):
    (wanted,) = pipe(picture, **OPTIONS, **CUTS[cut]).images
    pipe._prompt_encoder = None  # else it remembers the words of before
    model_offload(pipe)
    moved = []
    for name, hook in zip(pipe.model_cpu_offload_seq.split("->"), pipe._all_hooks, strict=True):
        came = hook.hook.pre_forward
        away = {"now": True}

        def pre_forward(module, *args, name=name, came=came, away=away, **kwargs):
            if away["now"]:
                moved.append(name)
                away["now"] = False
            return came(module, *args, **kwargs)

        monkeypatch.setattr(hook.hook, "pre_forward", pre_forward)
        monkeypatch.setattr(hook, "offload", lambda away=away: away.update(now=True))
    (result,) = pipe(picture, **OPTIONS, **CUTS[cut]).images
    np.testing.assert_allclose(result, wanted, atol=1e-5)
    assert sorted(moved) == sorted(set(moved)) and {"unet_pix", "unet", "vae"} <= set(moved)


def places(pipe):
    """Where weights are; a lone number, all that rearranged pixels have, may stay."""
    weights = (p for name in PARTS for p in getattr(pipe, name).parameters() if p.ndim)
    return {p.device.type for p in weights}


@pytest.mark.parametrize("cut", CUTS)
def test_sequential_offload_gives_the_same_picture_and_leaves_nothing_behind(pipe, picture, cut):
    (wanted,) = pipe(picture, **OPTIONS, **CUTS[cut]).images
    pipe._prompt_encoder = None
    sequential_offload(pipe)
    assert places(pipe) == {"meta"}
    (result,) = pipe(picture, **OPTIONS, **CUTS[cut]).images
    np.testing.assert_allclose(result, wanted, atol=1e-5)
    assert places(pipe) == {"meta"}


@pytest.mark.parametrize("level", ["block_level", "leaf_level"])
@pytest.mark.parametrize("cut", CUTS)
def test_group_offload_brings_every_layer_before_it_computes(
    pipe, picture, cut, level, monkeypatch
):
    (wanted,) = pipe(picture, **OPTIONS, **CUTS[cut]).images
    pipe._prompt_encoder = None
    Ledger(monkeypatch)
    cpu = torch.device("cpu")
    pipe.enable_group_offload(
        onload_device=cpu, offload_device=cpu, offload_type=level, num_blocks_per_group=1
    )
    assert all(p.isnan().all() for p in pipe.vae.parameters())
    (result,) = pipe(picture, **OPTIONS, **CUTS[cut]).images  # nan in a weight would be an error
    np.testing.assert_allclose(result, wanted, atol=1e-5)


@pytest.mark.parametrize("cut", ["whole", "tiled"])
def test_weights_stored_small_are_cast_for_their_layer_alone(pipe, picture, cut):
    (wanted,) = pipe(picture, **OPTIONS, **CUTS[cut]).images
    for name in ("unet", "unet_pix", "vae"):
        getattr(pipe, name).enable_layerwise_casting(
            storage_dtype=torch.float16, compute_dtype=torch.float32
        )
    (result,) = pipe(picture, **OPTIONS, **CUTS[cut]).images
    np.testing.assert_allclose(result, wanted, atol=0.02)


def test_predict_and_decode_give_their_parts_back(pipe, picture, monkeypatch):
    options = {
        name: value for name, value in OPTIONS.items() if name not in ("lambda_sem", "output_type")
    }
    (wanted,) = pipe(picture, **OPTIONS).images
    pipe._prompt_encoder = None
    model_offload(pipe)
    here = set()
    for name, hook in zip(pipe.model_cpu_offload_seq.split("->"), pipe._all_hooks, strict=True):
        getattr(pipe, name).register_forward_pre_hook(lambda *_, name=name: here.add(name))
        monkeypatch.setattr(hook, "offload", lambda name=name: here.discard(name))
    prediction = pipe.predict(picture, **options)
    assert not here
    np.testing.assert_allclose(
        pipe.decode(prediction, lambda_sem=0.5, output_type="np"), wanted, atol=1e-5
    )
    assert not here
