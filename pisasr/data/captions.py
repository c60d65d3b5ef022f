"""Before training: captions for a manifest, written once, by whatever model of transformers looks
at pictures.
"""

from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tqdm import trange

from pisasr.data.sources import read_manifest, write_rows
from pisasr.errors import ImageError, ModelError, PisasrError, explain
from pisasr.files import Journal
from pisasr.pictures.images import open_image, split

MAX_WORDS = 64  # new tokens of a caption
MAX_TAGS, MIN_SHARE = 5, 0.1  # of a classifier: at most so many labels, each at least so likely

Describe = Callable[[list[Image.Image]], list[str]]


def fill_captions(
    manifest: Path, model: str, batch_size: int = 8, prompt: str | None = None
) -> tuple[int, dict[str, str]]:
    """Caption the rows that have no caption. Returns how many were filled, and {path: reason} of
    what can't be read.

    Under `accelerate launch` every process captions its part. Each batch is written down at once, a
    file a process beside the manifest; at the end the main process merges them, and all return the
    same. A later call goes on where one was interrupted, also with another number of processes.
    """
    try:
        from accelerate import PartialState
    except ModuleNotFoundError:
        raise PisasrError("--caption needs accelerate; pip install 'pisasr[train]'.") from None
    # Processes without a GPU find each other only when told that there is none; who is done waits
    # for the slowest.
    state = PartialState(cpu=not torch.accelerator.is_available(), timeout=timedelta(days=7))
    if not manifest.is_file():
        raise PisasrError(f"{manifest} does not exist; make it with --input first.")
    rows = read_manifest(manifest)
    known = _read_shards(manifest.parent, model)
    todo = [row["path"] for row in rows if not row.get("caption") and row["path"] not in known]
    state.wait_for_everyone()  # nobody writes before everybody has read: the parts have to fit
    journal = Journal(_shard(manifest.parent, state.process_index))
    with state.split_between_processes(todo) as part:
        if part:
            describe = load_captioner(model, state.device, prompt)
        for start in trange(
            0, len(part), batch_size, unit="batch", delay=2, disable=not state.is_main_process
        ):
            for row in _caption_batch(part[start : start + batch_size], manifest.parent, describe):
                journal.append({**row, "model": model})
    state.wait_for_everyone()
    captions = _read_shards(manifest.parent, model, with_failed=True)
    state.wait_for_everyone()  # nobody deletes before everybody has read
    empty = [row for row in rows if not row.get("caption")]
    if state.is_main_process:
        for row in empty:
            row["caption"] = captions.get(row["path"], {}).get("caption")
        write_rows(manifest, rows)
        for shard in manifest.parent.glob(_shard(manifest.parent, "*").name):
            shard.unlink()
    mine = [captions[row["path"]] for row in empty if row["path"] in captions]
    failed = {row["path"]: row["failed"] for row in mine if "failed" in row}
    return len(mine) - len(failed), failed


def is_main_process() -> bool:
    """Whether this one of the processes that `fill_captions` ran in is to speak for all."""
    from accelerate import PartialState

    return PartialState().is_main_process


def _shard(folder: Path, rank: int | str) -> Path:
    return folder / f"captions-{rank}.jsonl"


def _read_shards(folder: Path, model: str, with_failed: bool = False) -> dict[str, dict]:
    rows = [
        row
        for shard in sorted(folder.glob(_shard(folder, "*").name))
        for row in Journal(shard).rows()
    ]
    return {
        row["path"]: row
        for row in rows
        if row.get("model") == model and (with_failed or row.get("caption"))
    }


def _caption_batch(paths: list[str], folder: Path, describe: Describe) -> Iterator[dict]:
    pictures = {}
    for path in paths:
        try:
            pictures[path] = split(open_image(folder / path))[0]
        except ImageError as error:
            yield {"path": path, "failed": explain(error)}
    if pictures:
        for path, caption in zip(pictures, describe(list(pictures.values())), strict=True):
            caption = " ".join(caption.split())
            yield (
                {"path": path, "caption": caption}
                if caption
                else {"path": path, "failed": "the model said nothing"}
            )


# --- models ---------------------------------------------------------------------------------------


def load_captioner(model: str, device: torch.device, prompt: str | None = None) -> Describe:
    """A function from RGB pictures to captions. `model` is a folder or hub id of a classifier or a
    captioning model.

    A classifier's caption is its likeliest labels. ModelError for what transformers can't load as
    either.
    """
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(model)
        is_classifier = any("ForImageClassification" in name for name in config.architectures or ())
        return (
            _load_tagger(model, device) if is_classifier else _load_generator(model, device, prompt)
        )
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ModelError(
            f"--caption {model}: no captioning or image-classification model ({explain(error)})."
        ) from None


def _load_tagger(model: str, device: torch.device) -> Describe:
    from transformers import pipeline

    classify = pipeline("image-classification", model=model, device=device, top_k=MAX_TAGS)

    def describe(pictures: list[Image.Image]) -> list[str]:
        return [", ".join(_name(tag) for tag in tags if tag["score"] >= min(MIN_SHARE, tags[0]["score"]))
                for tags in classify(pictures, batch_size=len(pictures))]  # fmt: skip

    return describe


def _name(tag: dict[str, Any]) -> str:
    """ImageNet's labels are lists of synonyms."""
    return tag["label"].split(",")[0].strip()


def _load_generator(model: str, device: torch.device, prompt: str | None) -> Describe:
    from transformers import (
        AutoImageProcessor,
        AutoModelForImageTextToText,
        AutoProcessor,
        AutoTokenizer,
    )

    network: Any = AutoModelForImageTextToText.from_pretrained(model, dtype="auto")
    network.to(device).eval()
    processor = AutoProcessor.from_pretrained(model)
    if hasattr(processor, "tokenizer"):
        tokenizer = processor.tokenizer
    else:  # an encoder and a decoder that were put together have no processor of their own
        processor, tokenizer = (
            AutoImageProcessor.from_pretrained(model),
            AutoTokenizer.from_pretrained(model),
        )
    text = _ask(processor, prompt)

    @torch.inference_mode()
    def describe(pictures: list[Image.Image]) -> list[str]:
        asked = {} if text is None else {"text": [text] * len(pictures)}
        inputs = processor(images=pictures, return_tensors="pt", **asked).to(device, network.dtype)
        answers = network.generate(**inputs, max_new_tokens=MAX_WORDS, do_sample=False)
        if "input_ids" in inputs:  # most models repeat the question
            length = inputs["input_ids"].shape[1]
            answers = [
                a[length:] if torch.equal(a[:length], q) else a
                for a, q in zip(answers, inputs["input_ids"], strict=True)
            ]
        return tokenizer.batch_decode(answers, skip_special_tokens=True)

    return describe


def _ask(processor: Any, prompt: str | None) -> str | None:
    """The prompt as the model wants it: a model that talks is asked in its own form, others as they
    are.
    """
    if not getattr(processor, "chat_template", None):
        return prompt
    words = {"type": "text", "text": prompt or "Describe this photo in one sentence."}
    message = {"role": "user", "content": [{"type": "image"}, words]}
    return processor.apply_chat_template([message], add_generation_prompt=True)
