"""Captions: any classifier or captioner, each row once, whatever was interrupted."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pisasr.data import captions
from pisasr.data.captions import fill_captions, load_captioner
from pisasr.data.sources import read_manifest, write_rows
from pisasr.errors import PisasrError

SCRIPT = Path(__file__).parents[1] / "scripts" / "prepare_data.py"


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """A ViT with four labels and no training."""
    import torch
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    folder = tmp_path_factory.mktemp("vit")
    names = dict(enumerate(["cat, house cat", "field", "road", "sea"]))
    small = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
    }
    torch.manual_seed(0)
    config = ViTConfig(image_size=32, patch_size=16, id2label=names, **small)
    ViTForImageClassification(config).save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return str(folder)


def write_words(folder):
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = [
        "[PAD]",
        "[CLS]",
        "[SEP]",
        "[UNK]",
        "a",
        "photo",
        "of",
        "field",
        "sea",
        "road",
        "cat",
        "house",
    ]
    tokenizer = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    names = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]"}
    from transformers import PreTrainedTokenizerFast

    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)
    return len(words)


@pytest.fixture(scope="module")
def encoder_decoder(tmp_path_factory):
    """A ViT that a GPT-2 describes, without a processor of its own; no training."""
    import torch
    from transformers import GPT2Config, ViTConfig, ViTImageProcessor
    from transformers import VisionEncoderDecoderConfig as Config
    from transformers import VisionEncoderDecoderModel as Model

    folder = tmp_path_factory.mktemp("ved")
    words = write_words(folder)
    torch.manual_seed(0)
    eye = ViTConfig(image_size=32, patch_size=16, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                    intermediate_size=16)  # fmt: skip
    mouth = GPT2Config(
        vocab_size=words,
        n_embd=16,
        n_layer=1,
        n_head=2,
        n_positions=80,
        bos_token_id=1,
        eos_token_id=2,
    )
    config = Config.from_encoder_decoder_configs(
        eye, mouth, decoder_start_token_id=1, pad_token_id=0, eos_token_id=2
    )
    Model(config).save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def blip(tmp_path_factory):
    """A BLIP without training."""
    import torch
    from transformers import (
        AutoTokenizer,
        BlipConfig,
        BlipForConditionalGeneration,
        BlipImageProcessor,
        BlipProcessor,
    )

    folder = tmp_path_factory.mktemp("blip")
    words = write_words(folder)
    small = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
    }
    torch.manual_seed(0)
    config = BlipConfig(
        text_config={**small, "encoder_hidden_size": 16, "vocab_size": words, "bos_token_id": 1, "sep_token_id": 2,
                     "eos_token_id": 2, "pad_token_id": 0},
        vision_config={**small, "image_size": 32, "patch_size": 16},
    )  # fmt: skip
    model = BlipForConditionalGeneration(config)
    model.text_decoder.cls.predictions.decoder.bias.data[
        :4
    ] = -100  # no special tokens: it always has a word
    model.save_pretrained(folder)
    eye = BlipImageProcessor(size={"height": 32, "width": 32})
    BlipProcessor(eye, AutoTokenizer.from_pretrained(folder)).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def talker(tmp_path_factory):
    """A LLaVA without training: it is asked in a conversation, and answers after it."""
    import torch
    from transformers import (
        AutoTokenizer,
        CLIPImageProcessor,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
    )

    folder = tmp_path_factory.mktemp("llava")
    words = write_words(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    small = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
    }
    torch.manual_seed(0)
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**small, image_size=32, patch_size=16, projection_dim=16),
        text_config=LlamaConfig(
            **small, vocab_size=words + 1, bos_token_id=1, eos_token_id=2, pad_token_id=0
        ),
        image_token_index=words,
    )
    model = LlavaForConditionalGeneration(config)
    model.lm_head.weight.data[:4] = 0  # no special tokens: it always has a word
    model.save_pretrained(folder)
    template = "{% for part in messages[0].content %}{{ '<image> road' if part.type == 'image' else part.text }} "
    LlavaProcessor(
        CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}),
        tokenizer,
        patch_size=16,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template + "{% endfor %}",
    ).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def manifest(tmp_path):
    """Five photos, of which the second has a caption and the fourth is gone."""
    for i in range(5):
        pixels = np.random.default_rng(i).integers(0, 256, (40, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    (tmp_path / "3.png").unlink()
    rows = [
        {"path": f"{i}.png", "score": i / 10, "caption": "a well" if i == 1 else None}
        for i in range(5)
    ]
    write_rows(tmp_path / "manifest.jsonl", rows)
    return tmp_path / "manifest.jsonl"


@pytest.mark.parametrize("kind", ["classifier", "encoder_decoder", "blip", "talker"])
def test_any_kind_of_model_fills_the_empty_captions(kind, manifest, request):
    filled, failed = fill_captions(manifest, request.getfixturevalue(kind), batch_size=2)
    rows = read_manifest(manifest)
    assert filled == 3 and failed == {"3.png": "no such file"}
    assert [bool(row["caption"]) for row in rows] == [True, True, True, False, True]
    assert rows[1] == {"path": "1.png", "score": 0.1, "caption": "a well"}
    assert [row["score"] for row in rows] == [0, 0.1, 0.2, 0.3, 0.4], "nothing else changes"
    assert not list(manifest.parent.glob("captions-*")), "what was merged is gone"


def test_a_classifiers_caption_is_its_likely_labels(classifier):
    import torch

    captions_ = load_captioner(classifier, torch.device("cpu"))(
        [Image.new("RGB", (40, 40), c) for c in ("red", "blue")]
    )
    for caption in captions_:
        assert caption and set(caption.split(", ")) <= {"cat", "field", "road", "sea"}


@pytest.mark.parametrize("kind", ["blip", "talker"])
def test_a_prompt_is_not_part_of_the_answer(kind, request):
    import torch

    model = request.getfixturevalue(kind)
    plain, asked = (
        load_captioner(model, torch.device("cpu"), prompt)([Image.new("RGB", (40, 40), "red")])[0]
        for prompt in (None, "a photo of")
    )
    assert plain and asked and not asked.startswith("a photo of") and "road a photo" not in asked


def test_an_interrupted_captioning_goes_on(manifest, classifier, monkeypatch):
    calls = []

    def load(*_):
        def describe(pictures):
            calls.append(len(pictures))
            if len(calls) == 2:
                raise KeyboardInterrupt
            return [f"picture {len(calls)}"] * len(pictures)

        return describe

    monkeypatch.setattr(captions, "load_captioner", load)
    with pytest.raises(KeyboardInterrupt):
        fill_captions(manifest, "m", batch_size=1)
    with (manifest.parent / "captions-0.jsonl").open("a") as file:
        file.write('{"path": "2.png", "capt')  # killed while writing
    filled, failed = fill_captions(manifest, "m", batch_size=1)
    assert [row["caption"] for row in read_manifest(manifest)] == [
        "picture 1",
        "a well",
        "picture 3",
        None,
        "picture 4",
    ]
    assert filled == 3 and list(failed) == ["3.png"] and calls == [1, 1, 1, 1]


def test_a_model_without_words_is_told(manifest, monkeypatch):
    monkeypatch.setattr(
        captions, "load_captioner", lambda *_: lambda pictures: [" "] * len(pictures)
    )
    filled, failed = fill_captions(manifest, "m")
    assert (
        filled == 0
        and failed["0.png"] == "the model said nothing"
        and read_manifest(manifest)[0]["caption"] is None
    )


def test_captions_of_another_model_are_not_taken_up(manifest, monkeypatch):
    (manifest.parent / "captions-0.jsonl").write_text(
        '{"path": "0.png", "caption": "old", "model": "other"}\n'
    )
    monkeypatch.setattr(
        captions, "load_captioner", lambda *_: lambda pictures: ["new"] * len(pictures)
    )
    fill_captions(manifest, "m")
    assert read_manifest(manifest)[0]["caption"] == "new"


def test_what_is_no_such_model_is_told_in_one_line(manifest, tmp_path):
    (tmp_path / "nothing").mkdir()
    with pytest.raises(PisasrError, match="nothing: no captioning or image-classification model"):
        fill_captions(manifest, str(tmp_path / "nothing"))
    with pytest.raises(PisasrError, match="make it with --input first"):
        fill_captions(tmp_path / "nothing" / "manifest.jsonl", "m")


@pytest.mark.slow
def test_two_processes_caption_together_what_one_would(manifest, classifier):
    """Each process has a part of its own; the main one merges."""
    alone = manifest.with_name("alone.jsonl")
    write_rows(alone, read_manifest(manifest))
    fill_captions(alone, classifier)
    command = ["--caption", classifier, "--output", str(manifest.parent), "--batch_size", "1"]
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--nproc_per_node=2",
            str(SCRIPT),
            *command,
        ],
        capture_output=True,
        text=True,
    )
    assert read_manifest(manifest) == read_manifest(alone), done.stderr
    assert "3 captions written" in done.stdout and done.stdout.count("captions written") == 1
    assert json.loads(manifest.read_text().splitlines()[0])["caption"]
