"""JPEG as tensor arithmetic: Pillow's pixels, and values of our own where Pillow brings another libjpeg."""

import io
from pathlib import Path
from zlib import crc32

import numpy as np
import pytest
import torch
from PIL import Image, features
from torch import Tensor

from pisasr.data import jpeg

EXAMPLES = sorted((Path(__file__).parents[1] / "pisasr" / "demo" / "examples").glob("*.png"))
QUALITIES = [1, 10, 20, 30, 40, 49, 50, 51, 60, 70, 75, 80, 90, 95, 99, 100]
needs_turbo = pytest.mark.skipif(
    not features.check_feature("libjpeg_turbo"), reason="Pillow has another libjpeg than libjpeg-turbo"
)


def waves(height: int = 37, width: int = 51) -> Tensor:
    """A coloured pattern by whole numbers alone: the same on every machine, [1, 3, height, width] in 0..255."""
    y, x = torch.arange(height)[:, None], torch.arange(width)
    planes = [(3 * x * x + 7 * y) % 256, (5 * x + y * y // 3) % 256, (x * y + 40) % 256]
    return torch.stack(planes)[None].float()


def load(path: Path) -> Tensor:
    with Image.open(path) as image:
        return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)[None].float()


def through_pillow(levels: Tensor, quality: int) -> Tensor:
    file = io.BytesIO()
    Image.fromarray(levels[0].permute(1, 2, 0).byte().numpy()).save(file, "JPEG", quality=quality, subsampling="4:2:0")
    with Image.open(file) as image:
        return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float()


@needs_turbo
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_photos_come_out_as_pillow_writes_and_reads_them(path):
    """To the last level, at every quality, odd sizes and borders inside a block included."""
    levels = load(path)
    sizes = [(64, 48), (75, 83), (61, 100), (17, 33), (40, 9)]
    for i, quality in enumerate(QUALITIES):
        h, w = sizes[i % len(sizes)]
        top, left = 7 * i % (levels.shape[2] - h + 1), 11 * i % (levels.shape[3] - w + 1)
        crop = levels[..., top : top + h, left : left + w].contiguous()
        assert torch.equal(jpeg.compress(crop, [quality]), through_pillow(crop, quality)), (quality, h, w)


@needs_turbo
def test_the_smallest_and_the_thinnest_pictures_too():
    for h in (1, 2, 3, 8, 9, 17):
        for w in (1, 2, 3, 4, 5, 6, 7, 8, 9, 15, 16, 17, 18):
            levels = waves(h, w)
            assert torch.equal(jpeg.compress(levels, [80]), through_pillow(levels, 80)), (h, w)


@needs_turbo
@pytest.mark.parametrize("quality", [1, 50, 100])
def test_noise_and_hard_contrasts_too(quality):
    noise = torch.randint(0, 256, (1, 3, 67, 91), generator=torch.Generator().manual_seed(0)).float()
    for levels in (noise, (noise > 127) * 255.0):
        assert torch.equal(jpeg.compress(levels, [quality]), through_pillow(levels, quality))


def test_a_batch_is_its_pictures_each_at_its_own_quality():
    batch = torch.cat([waves(), waves().flip(1), 255 - waves()])
    alone = torch.cat([jpeg.compress(x[None], [q]) for x, q in zip(batch, (5, 60, 99), strict=True)])
    assert torch.equal(jpeg.compress(batch, [5, 60, 99]), alone)
    assert not torch.equal(jpeg.compress(batch, [60, 60, 60]), alone)


def test_what_was_compressed_is_left_as_it_was():
    levels = waves()
    jpeg.compress(levels, [10])
    assert torch.equal(levels, waves())


def test_nothing_is_left_on_the_cpu():
    """A device without numbers refuses to meet tensors of another one, as a GPU would."""
    levels = torch.empty(2, 3, 37, 51, device="meta")
    assert jpeg.compress(levels, [50, 90]).device.type == "meta"


def test_stored_values():
    """Checksums of pixels that equalled Pillow's: whole numbers, so no machine has another."""
    got = {quality: crc32(jpeg.compress(waves(), [quality]).byte().numpy().tobytes()) for quality in STORED}
    assert got == STORED


@pytest.mark.parametrize(
    ("levels", "quality", "message"),
    [
        (waves()[0], [50], r"float32 \[B, 3, h, w\]; got torch.float32 \[3, 37, 51\]"),
        (waves().byte(), [50], "got torch.uint8"),
        (waves(), [50, 60], r"wanted 1 qualities.*got \[50, 60\]"),
        (waves(), [0], r"from 1 to 100; got \[0\]"),
    ],
)
def test_what_is_no_picture_is_refused_in_one_line(levels, quality, message):
    with pytest.raises(ValueError, match=message) as caught:
        jpeg.compress(levels, quality)
    assert "\n" not in str(caught.value)


STORED = {5: 3480846746, 50: 2849176600, 75: 2763379537, 95: 463024273, 100: 2937959058}
