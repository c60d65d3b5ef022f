"""Pictures, checkpoints and pickles from outside, mutated, raise only our own errors.

Each test runs a seeded part of what `make slow` runs whole.
"""

import io
import os
import pickle
import random
import runpy
import shutil
import struct
import tarfile
import time
import warnings
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_weights import published

from pisasr import PiSASRPipeline
from pisasr.commands.main import main
from pisasr.errors import CheckpointError, ImageError, ModelError, PisasrError
from pisasr.models.weights import convert_release, load_adapter, load_adapters, save_adapter
from pisasr.pictures.images import open_picture


def amount(short: int, whole: int):
    """A short form for every day, a longer one for `make slow`."""
    return pytest.mark.parametrize("count", [short, pytest.param(whole, marks=pytest.mark.slow)])


def mutate(content: bytes, chance: random.Random, head: int | None = None) -> bytes:
    """A few bytes changed, put in, taken out or cut off, most of them within `head`."""
    data = bytearray(content)
    for _ in range(chance.randint(1, 8)):
        at = chance.randrange(min(len(data), head) if head and chance.random() < 0.8 else len(data))
        way = chance.random()
        if way < 0.5:
            data[at] = chance.randrange(256)
        elif way < 0.7:
            data[at] ^= 1 << chance.randrange(8)
        elif way < 0.8:
            data[at : at + 4] = struct.pack(
                chance.choice("<>") + "I", chance.choice([0, 1, 2**31 - 1, 2**32 - 1, 65_536])
            )
        elif way < 0.9:
            data[at:at] = bytes(chance.randrange(256) for _ in range(chance.randint(1, 9)))
        else:
            del data[at : at + chance.randint(1, 40)]
        if not data:
            return b"\0"
    return bytes(data[: chance.randint(1, len(data))] if chance.random() < 0.2 else data)


def seeds() -> list[bytes]:
    """A small picture in every form that is read."""
    y, x = np.mgrid[:12, :16]
    rgb = Image.fromarray(np.stack([16 * x, 21 * y, 8 * (x + y)], -1).astype(np.uint8))
    deep = Image.fromarray((4000 * x + 5 * y).astype(np.uint16))
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a photo"
    icc = Path(__file__).with_name("golden.py").read_bytes()[:300]  # no profile at all
    forms = [
        *((rgb, form, {}) for form in ("PNG", "JPEG", "WEBP", "TIFF", "BMP")),
        *((rgb.convert(mode), "PNG", {}) for mode in ("1", "L", "LA", "P", "RGBA")),
        *((rgb.convert(mode), "TIFF", {}) for mode in ("CMYK", "LAB", "F")),
        *((rgb, "TIFF", {"compression": name}) for name in ("tiff_lzw", "jpeg")),
        *((deep, form, {}) for form in ("PNG", "TIFF")),
        *((rgb, form, {"exif": exif}) for form in ("JPEG", "PNG", "WEBP", "TIFF")),
        *((rgb, form, {"icc_profile": icc}) for form in ("JPEG", "PNG")),
        (rgb, "PNG", {"save_all": True, "append_images": [rgb.rotate(90)]}),
        (rgb, "JPEG", {"progressive": True}),
        (rgb, "PNG", {"transparency": (0, 0, 0)}),
    ]
    contents = []
    for image, form, options in forms:
        file = io.BytesIO()
        image.save(file, form, **options)
        contents.append(file.getvalue())
    return contents


@amount(150, 2_000)
def test_mutated_pictures_are_read_or_refused_and_nobody_waits(tmp_path, count):
    """Some of those that can be read go through the whole pipeline."""
    chance, path, contents = random.Random(count), tmp_path / "a.png", seeds()
    read, slowest = [], 0.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for number in range(count):
            path.write_bytes(
                mutate(
                    contents[number % len(contents)], chance, 64 if chance.random() < 0.2 else None
                )
            )
            start = time.process_time()
            try:
                picture = open_picture(path, max_pixels=1_000_000)
            except ImageError as error:
                assert str(error) and "\n" not in str(error)
            else:
                assert picture.pixels.shape[-1] == 3 and np.isfinite(picture.pixels).all()
                read.append(picture)
            slowest = max(slowest, time.process_time() - start)
    assert slowest < 5 and count // 10 < len(read) < count // 2


@amount(6, 60)
def test_what_can_be_read_of_mutated_pictures_can_be_repaired(pipe, tmp_path, count):
    chance, path, contents, done, refused = random.Random(1), tmp_path / "a.png", seeds(), 0, 0
    while done < count:
        path.write_bytes(mutate(chance.choice(contents), chance))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                picture = open_picture(path, max_pixels=10_000)
            except ImageError:
                continue
        try:
            (result,) = pipe(picture, upscale=1, process_size=16).images
        except PisasrError as error:
            refused += "\n" not in str(error)
        else:
            assert result.size == picture.size
        done += 1
    assert refused <= count // 10


def refused_or_whole(load, path) -> bool:
    """Whether a file was refused, by the one error; anything else but a whole adapter fails."""
    try:
        found = load(path)
    except CheckpointError as error:
        assert str(error) and "\n" not in str(error)
        return True
    for adapter in found if isinstance(found, tuple) else (found,):
        assert all(tensor.isfinite().all() for tensor in adapter.tensors.values())
    return False


@pytest.fixture
def few(pix, sem):
    """Adapters of two layers, so that their files are mostly what can be got wrong."""
    keep = ("conv_in.", "down_blocks.0.attentions.0.proj_in.")
    return [
        replace(a, tensors={k: t for k, t in a.tensors.items() if k.startswith(keep)})
        for a in (pix, sem)
    ]


@amount(80, 1_000)
def test_mutated_safetensors_raise_one_error(tmp_path, few, count):
    save_adapter(tmp_path / "pix.safetensors", few[0])
    whole, chance, path = (
        (tmp_path / "pix.safetensors").read_bytes(),
        random.Random(3),
        tmp_path / "a.safetensors",
    )
    head = 8 + int.from_bytes(whole[:8], "little")
    refused = 0
    for _ in range(count):
        path.write_bytes(mutate(whole, chance, head))
        refused += refused_or_whole(load_adapter, path)
    assert refused > 0.95 * count


@amount(80, 1_000)
def test_mutated_pickles_raise_one_error(tmp_path, few, count):
    contents = []
    for legacy in (False, True):
        torch.save(
            published(*few), tmp_path / "whole.pkl", _use_new_zipfile_serialization=not legacy
        )
        contents.append((tmp_path / "whole.pkl").read_bytes())
    chance, path, refused = random.Random(4), tmp_path / "a.pkl", 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for number in range(count):
            path.write_bytes(mutate(contents[number % 2], chance, 4000))
            refused += refused_or_whole(convert_release, path)
    assert refused > 0.5 * count


class Runs:
    """Unpickled by a careless reader, it calls something."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


class SetState:
    """A state that a careless reader sets by running code: the class itself is not to be had where
    it is read.
    """

    def __init__(self, marker):
        self.marker = marker

    def __setstate__(self, state):
        Path(state["marker"]).touch()


def touch(marker: Path) -> str:
    return f"__import__('pathlib').Path({str(marker)!r}).touch()"


def nested(form: str):
    """The payload's pickle inside an archive of this form, under every name that a reader might
    look for.
    """

    def write(content, path):
        names = ("archive/data.pkl", "data.pkl", "pickle", "sys_info", "storages", "tensors")
        if form == "zip":
            with zipfile.ZipFile(path, "w") as archive:
                for name in (*names, "archive/version"):
                    archive.writestr(name, pickle.dumps(content, 2))
        else:
            with tarfile.open(path, "w") as archive:
                for name in names:
                    member = tarfile.TarInfo(name)
                    member.size = len(pickle.dumps(content, 2))
                    archive.addfile(member, io.BytesIO(pickle.dumps(content, 2)))

    return write


PAYLOADS = {
    "os.system": lambda marker: Runs(os.system, f"touch {marker}"),
    "eval": lambda marker: Runs(eval, touch(marker)),
    "exec": lambda marker: Runs(exec, touch(marker)),
    "runpy": lambda marker: Runs(runpy.run_path, str(marker.with_name("payload.py"))),
    "open": lambda marker: Runs(open, str(marker), "w"),
    "Path.touch": lambda marker: Runs(Path.touch, Path(marker)),
    "a state": SetState,
    "torch.load": lambda marker: Runs(torch.load, str(marker)),
    "compile": lambda marker: [Runs(exec, Runs(compile, touch(marker), "x", "exec"))],
    "a key": lambda marker: {Runs(os.system, f"touch {marker}"): 1},
}
WRITERS = {
    "torch": torch.save,
    "legacy": lambda content, path: torch.save(content, path, _use_new_zipfile_serialization=False),
    "plain": lambda content, path: path.write_bytes(pickle.dumps(content, 2)),
    "protocol 4": lambda content, path: path.write_bytes(pickle.dumps(content, 4)),
    "zip": nested("zip"),
    "tar": nested("tar"),
}


@pytest.mark.parametrize("payload", PAYLOADS)
def test_no_payload_runs_wherever_a_pickle_can_be_given(
    tmp_path, base_folder, few, payload, capsys
):
    """As the published checkpoint, as --adapters of infer, as a safetensors file, as weights of a
    model, as a trunk.
    """
    marker = tmp_path / "ran"
    (tmp_path / "payload.py").write_text(touch(marker))
    for way, write in WRITERS.items():
        bad = {**published(*few), "lora_rank_unet_pix": PAYLOADS[payload](marker)}
        path, folder = tmp_path / "pisa_sr.pkl", tmp_path / f"named-{way}"
        write(bad, path)
        folder.mkdir()
        shutil.copy(path, folder / "pix.safetensors")
        for load, place in [
            (convert_release, path),
            (load_adapters, path),
            (load_adapters, folder),
        ]:
            with pytest.raises(CheckpointError) as refusal:
                load(place)
            assert "\n" not in str(refusal.value) and not marker.exists(), (way, place)
        assert main(["convert", str(path), str(tmp_path / "out")]) == 1 and not marker.exists(), way
    base = tmp_path / "base"
    shutil.copytree(base_folder, base)
    (weights,) = (base / "unet").glob("*.safetensors")
    WRITERS["torch"](PAYLOADS[payload](marker), weights.with_name("diffusion_pytorch_model.bin"))
    weights.unlink()
    with pytest.raises(ModelError, match="pickles are not read"):
        PiSASRPipeline.from_pretrained(base)
    assert not marker.exists() and "Traceback" not in capsys.readouterr().err
