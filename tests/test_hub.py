"""What leaves the house: published folders that diffusers loads back, and two strengths in one
UNet.
"""

import re
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
import yaml
from diffusers import DiffusionPipeline, ModularPipeline, ModularPipelineBlocks
from PIL import Image
from pisasr.hub.baked import baked, errors_of
from pisasr.method.baking import bake

from pisasr import PiSASRPipeline
from pisasr.commands.main import main
from pisasr.errors import NOTHING_STARTED, OK, WRONG_USAGE, ModelError
from pisasr.hub.loading import AdaptersOnBase
from pisasr.hub.publish import as_part, publish
from pisasr.models.weights import load_adapters

SMALL = {"upscale": 2, "process_size": 16}


def photo(width: int = 12, height: int = 9) -> Image.Image:
    return Image.fromarray((tiny.wave((height, width, 3), 1.0, 80) + 128).to(torch.uint8).numpy())


def equal(a: Image.Image, b: Image.Image) -> bool:
    return a.mode == b.mode and np.array_equal(np.asarray(a), np.asarray(b))


@pytest.fixture
def published(base_folder, pipe, tmp_path) -> str:
    """The tiny model as others get it; its base is found by a path that they have."""
    folder = tmp_path / "published"
    publish(pipe, folder, "cc0-1.0", name=str(folder), base=str(base_folder))
    return str(folder)


# --- published ------------------------------------------------------------------------------------


def test_what_the_card_says_runs_and_gives_our_picture(published, pipe, tmp_path, monkeypatch):
    photo().save(tmp_path / "photo.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name: name)
    card = (
        (Path(published) / "README.md")
        .read_text()
        .replace("upscale=4", "upscale=2, process_size=16")
    )
    examples = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    ours = [pipe(photo(), 1.0, lambda_sem, **SMALL).images[0] for lambda_sem in (1.0, 0.4)]
    assert len(examples) == 3 and not equal(*ours)
    for example in examples:
        made = {}
        exec(example, made)
        assert equal(made["repaired"], ours[0])
    assert equal(made["softer"], ours[1])


def test_diffusers_makes_a_whole_pipeline_in_the_dtype_that_was_asked(published, pipe, tmp_path):
    again = DiffusionPipeline.from_pretrained(
        published, custom_pipeline=published, trust_remote_code=True, dtype=torch.bfloat16
    )
    assert type(again) is PiSASRPipeline and {again.unet.dtype, again.vae.dtype} == {torch.bfloat16}
    again.save_pretrained(tmp_path / "light", adapters_only=True)
    pipe.save_pretrained(
        tmp_path / "whole"
    )  # has a pipeline.py of its own; diffusers runs both in one module
    whole = str(tmp_path / "whole")
    pipes = [
        PiSASRPipeline.from_pretrained(tmp_path / "light"),
        DiffusionPipeline.from_pretrained(whole, custom_pipeline=whole, trust_remote_code=True),
        DiffusionPipeline.from_pretrained(
            published, custom_pipeline=published, trust_remote_code=True
        ),
    ]
    assert all(
        equal(one(photo(), **SMALL).images[0], pipe(photo(), **SMALL).images[0]) for one in pipes
    )


@pytest.mark.parametrize("directly", [True, False])
def test_a_modular_pipeline_takes_the_options_of_ours(published, pipe, directly):
    if directly:  # a copy of what has its name on a hub
        index = Path(published, "modular_model_index.json")
        index.write_text(index.read_text().replace(published, "me/pisa"))
        modular = ModularPipeline.from_pretrained(published, trust_remote_code=True)
    else:
        modular = ModularPipelineBlocks.from_pretrained(
            published, trust_remote_code=True
        ).init_pipeline(published)
    modular.load_components(dtype=torch.float32)
    modular.to("cpu")
    assert modular.default_call_parameters["process_size"] == 512
    options = {
        "lambda_sem": 0.5,
        "color_fix": "wavelet",
        "posterior": "sample",
        "generator": 3,
        "output_type": "np",
    }
    (made,) = modular(image=photo(), **options, **SMALL, output="images")
    assert np.array_equal(made, pipe(photo(), **options, **SMALL).images[0])
    with pytest.raises(ValueError, match="Required input 'image' is missing"):
        modular()


def test_a_published_hub_id_serves_as_model_and_as_adapters(published, pipe, monkeypatch):
    asked = []

    def snapshot(name, allow_patterns, **options):
        asked.append((name, options.get("local_files_only")))
        files = [path.relative_to(published) for path in Path(published).rglob("*.*")]
        assert any(
            file.match(pattern)
            for file in files
            for pattern in allow_patterns
            if pattern.startswith("adapters")
        )
        return published

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    wanted = pipe(photo(), **SMALL).images[0]
    assert equal(PiSASRPipeline.from_pretrained("me/pisa")(photo(), **SMALL).images[0], wanted)
    pipe.load_lora_weights("me/pisa")
    loaded = AdaptersOnBase.from_pretrained(
        "me/pisa", subfolder="adapters", variant=None, revision=None
    )  # of a block
    for one in (pipe, loaded.pipe):
        assert equal(one(photo(), **SMALL).images[0], wanted)
    assert asked == [("me/pisa", True), ("me/pisa", None), ("me/pisa", True)]


def test_the_card_s_head_is_what_the_hub_reads(published, base_folder):
    head = yaml.safe_load((Path(published) / "README.md").read_text().split("---\n")[1])
    assert (head["license"], head["library_name"], head["pipeline_tag"]) == (
        "cc0-1.0",
        "diffusers",
        "image-to-image",
    )
    assert (head["base_model"], head["base_model_relation"]) == (str(base_folder), "adapter")


def test_the_small_model_is_published_with_its_card(tmp_path):
    folder = tmp_path / "small"
    assert main(["publish", str(folder)]) == OK
    assert sorted(str(path.relative_to(folder)) for path in folder.rglob("*.*")) == [
        "README.md", "adapters/pix.safetensors", "adapters/sem.safetensors",
        "block.py", "model_index.json", "modular_config.json", "modular_model_index.json", "pipeline.py",
    ]  # fmt: skip
    card = (folder / "README.md").read_text()
    assert card.count("\n# ") == 1 and "\n### Data" in card and "base_model" not in card
    ours, theirs = (
        load_adapters(PiSASRPipeline.from_pretrained()._reference.base or "pisasr/demo"),
        load_adapters(folder),
    )
    assert all(
        torch.equal(a.tensors[key], b.tensors[key])
        for a, b in zip(ours, theirs, strict=True)
        for key in a.tensors
    )


def test_publishing_refuses_what_others_could_not_use(base_folder, pipe, tmp_path, capsys):
    with pytest.raises(ModelError, match="which others haven't"):
        publish(pipe, tmp_path / "a", "cc0-1.0")
    pipe.save_pretrained(tmp_path / "whole")
    with pytest.raises(ModelError, match="nobody knows the base"):
        publish(PiSASRPipeline.from_pretrained(tmp_path / "whole"), tmp_path / "b", "cc0-1.0")
    with pytest.raises(SystemExit) as caught:
        main(["publish", str(tmp_path / "c"), "--pretrained_model", str(base_folder)])
    assert caught.value.code == WRONG_USAGE and "give --licence" in capsys.readouterr().err
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "README.md").write_text("my own words\n")
    with pytest.raises(ModelError, match="README.md is none of our cards, and would be lost"):
        publish(pipe, tmp_path / "mine", "cc0-1.0", base="a/b")


@pytest.mark.parametrize("command", ["export", "publish"])
@pytest.mark.parametrize("whole", [True, False])
def test_what_a_model_is_made_of_is_not_written_over(base_folder, tmp_path, capsys, command, whole):
    shutil.copytree(base_folder, folder := tmp_path / "mine")
    before = {path: path.read_bytes() for path in folder.rglob("*.*")}
    given = [] if whole else ["--adapters", str(folder / "adapters")]
    given += ["--pretrained_model", str(folder if whole else base_folder)]
    words = (
        ["--output", str(folder)]
        if command == "export"
        else [str(folder), "--licence", "mit", "--base", "a/b"]
    )
    assert main([command, *words, *given]) == WRONG_USAGE
    assert "holds what this is made of" in capsys.readouterr().err
    assert before == {path: path.read_bytes() for path in folder.rglob("*.*")}


def test_a_card_becomes_a_part_of_another():
    card = (
        "---\nlicense: x\n---\n# Title\n\n## Data\nin [a file](../x.md), [a page](https://x.org)\n"
    )
    assert as_part(card) == "## Title\n\n### Data\nin a file, [a page](https://x.org)\n"


# --- baked ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("pair", [(1, 1), (1, 0), (0.5, 0.5), (-2, 0), (0, 0)])
def test_powers_of_two_are_baked_to_the_bit(pipe, pair):
    made = baked(pipe, *pair)
    assert made.unet is made.unet_pix
    (came,), (meant,) = (
        made(photo(), output_type="np", **SMALL),
        pipe(photo(), *pair, output_type="np", **SMALL),
    )
    assert np.array_equal(came[0], meant[0])


@pytest.mark.parametrize("pair", [(0.7, 0.7), (1.3, 0)])
def test_equal_strengths_and_lambda_sem_0_are_baked_to_rounding(pipe, pair, tmp_path):
    before = {name: weight.clone() for name, weight in pipe.unet.state_dict().items()}
    made = baked(pipe, *pair)
    made.save_pretrained(tmp_path)
    assert not (tmp_path / "unet_pix").exists() and made.unet_pix is made.unet
    folder = str(tmp_path)
    for again in (
        PiSASRPipeline.from_pretrained(folder),
        DiffusionPipeline.from_pretrained(folder, custom_pipeline=folder, trust_remote_code=True),
    ):
        (error,) = errors_of(again, pipe, [photo()], *pair, **SMALL)
        assert error.most <= 255e-6
    (far,) = errors_of(made, pipe, [photo()], 1.0, 1.0, **SMALL)
    assert far.most > 0.1
    assert all(torch.equal(before[name], weight) for name, weight in pipe.unet.state_dict().items())


def test_a_baked_model_says_its_strengths_and_refuses_others(pipe, tmp_path):
    baked(pipe, 0.7, 0.7).save_pretrained(tmp_path)
    folder = str(tmp_path)
    for made in (
        PiSASRPipeline.from_pretrained(folder),
        DiffusionPipeline.from_pretrained(folder, custom_pipeline=folder, trust_remote_code=True),
    ):
        assert made.identity == "merged, lambda_pix=0.7, lambda_sem=0.7"
        looked, places = made.look(photo(), **SMALL), np.eye(9, 12, dtype=np.float32)
        for ask in (
            partial(made, photo(), 0.7, 0.7, **SMALL),
            partial(made.sweep, photo(), [(1.0, 1.0), (1.0, 0.0)], **SMALL),
            partial(made.mix, looked, 1.0, places),
        ):
            with pytest.raises(
                ValueError, match="has lambda_pix=0.7, lambda_sem=0.7 in its one UNet"
            ):
                ask()
        (error,) = errors_of(made, pipe, [photo()], 0.7, 0.7, **SMALL)
        assert error.most <= 255e-6
        with pytest.raises(ModelError, match="in one UNet already"):
            baked(made, 1.0, 1.0)
    assert pipe.config.get("baked") is None and pipe.identity != made.identity


def test_other_strengths_are_near_to_first_order(base_folder, tmp_path):
    """A semantic adapter half as strong: the error falls to a quarter, up to what comes after the
    second order.
    """
    z, embeds = tiny.wave((1, 4, 8, 8), 1.0), tiny.wave((1, 7, tiny.CROSS), 2.0)
    pipe = PiSASRPipeline.from_pretrained(base_folder)
    errors = []
    for share in (2**-4, 2**-5):
        unet = bake(pipe.unet_pix, pipe.unet, 1.0, share)  # any UNet near the pixel one
        made = bake(pipe.unet_pix, unet, 1.2, 0.6)
        pix, pisa, came = (
            network.double()(z.double(), 1, embeds.double()).sample
            for network in (bake(pipe.unet_pix, unet, 1, 0), unet, made)
        )
        errors.append((came - (1.2 * pix + 0.6 * (pisa - pix))).norm().item())
    assert 3 < errors[0] / errors[1] < 5


def test_export_says_what_is_exact_and_measures_what_is_not(
    base_folder, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr("pisasr.hub.baked.errors_of", partial(errors_of, **SMALL))
    photo().save(tmp_path / "photo.png")
    model = ["--pretrained_model", str(base_folder), "--output", str(tmp_path / "out")]
    assert main(["export", *model, "--lambda_pix", "0.7", "--lambda_sem", "0.7"]) == OK
    assert "exact to rounding" in capsys.readouterr().out
    assert main(["export", *model, "--lambda_sem", "0.5"]) == WRONG_USAGE
    assert "--approximate makes one that is near" in capsys.readouterr().err
    near = [
        "--lambda_sem",
        "0.5",
        "--approximate",
        "--input",
        str(tmp_path / "photo.png"),
        "--dtype",
        "fp16",
    ]
    assert main(["export", *model, *near]) == OK
    assert re.search(r"photo.png: off by \d+\.\d\d of 255 levels", capsys.readouterr().out)
    assert (
        PiSASRPipeline.from_pretrained(tmp_path / "out", torch_dtype="auto")
        .unet.conv_out.bias.isfinite()
        .all()
    )
    assert main(["export", *model, "--lambda_pix", "0", "--approximate"]) == NOTHING_STARTED
    assert "can't be baked" in capsys.readouterr().err
