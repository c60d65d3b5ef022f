"""Any picture reaches the model as a person sees it, at exact sizes, or one line says why not."""

import json
import os
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from pisasr.errors import ImageError
from pisasr.pictures import frames, images
from pisasr.pictures.opening import read_picture
from pisasr.pictures.saving import save_image


def photo(width: int = 24, height: int = 20, mode: str = "RGB") -> Image.Image:
    """A smooth colored picture; nothing in it is symmetric."""
    y, x = np.mgrid[:height, :width]
    levels = np.stack([255 * x / width, 255 * y / height, 128 + 60 * np.sin(x / 5 + y / 7)], -1)
    return Image.fromarray(levels.astype(np.uint8)).convert(mode)


def deep_pixels(channels: int = 3, height: int = 6, width: int = 4) -> np.ndarray:
    shape = (height, width, channels)
    return np.random.default_rng(0).integers(0, 65_536, shape, dtype=np.uint16)


def save(image: Image.Image, path: Path, **options) -> Path:
    image.save(path, **options)
    return path


def mean_difference(a: Image.Image, b: Image.Image) -> float:
    return float(np.abs(np.asarray(a, dtype=float) - np.asarray(b, dtype=float)).mean())


def refusal(path: Path, **options) -> str:
    """The one line that a file is refused with."""
    with pytest.raises(ImageError) as caught:
        images.open_picture(path, **options)
    assert "\n" not in str(caught.value) and str(caught.value)
    return str(caught.value)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_header(width: int, height: int, depth: int = 8, kind: int = 2) -> bytes:
    head = struct.pack(">2I5B", width, height, depth, kind, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head)


def with_chunk(path: Path, kind: bytes, data: bytes) -> Path:
    """The PNG with one more chunk behind its header."""
    content = path.read_bytes()
    path.write_bytes(content[:33] + chunk(kind, data) + content[33:])
    return path


def write_tiff(path: Path, levels: bytes, bits: int, samples: int = 1, **tags: int) -> Path:
    """A little-endian TIFF of 4 x 6 pixels without compression, one strip."""
    shared = {"width": 4, "height": 6, "compression": 1, "photometric": 2 if samples > 1 else 1}
    numbers = {"width": 256, "height": 257, "compression": 259, "photometric": 262, "kind": 339}
    entries = [(numbers[name], 3, 1, value) for name, value in (shared | tags).items()]
    entries += [(277, 3, 1, samples), (278, 3, 1, 6), (279, 4, 1, len(levels))]
    end = 8 + 2 + 12 * (len(entries) + 2) + 4
    depths = (258, 3, 1, bits) if samples == 1 else (258, 3, samples, end)
    block = struct.pack(f"<{samples}H", *[bits] * samples) if samples > 1 else b""
    entries += [depths, (273, 4, 1, end + len(block))]
    directory = b"".join(struct.pack("<HHII", *entry) for entry in sorted(entries))
    head = b"II" + struct.pack("<HIH", 42, 8, len(entries))
    path.write_bytes(head + directory + bytes(4) + block + levels)
    return path


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp", "a.tif", "a.bmp"])
def test_five_formats_are_read_and_a_half_file_of_each_is_refused(tmp_path, name):
    path = save(photo(200, 160), tmp_path / name)
    image = images.open_image(path)
    assert (image.mode, image.size, image.info["notices"]) == ("RGB", (200, 160), [])
    assert mean_difference(image, photo(200, 160)) < 4
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert refusal(path)


@pytest.mark.parametrize(
    ("mode", "name", "expected"),
    [
        ("L", "a.png", "L"),
        ("LA", "a.png", "LA"),
        ("RGBA", "a.png", "RGBA"),
        ("1", "a.png", "L"),
        ("P", "a.png", "RGB"),
        ("CMYK", "a.jpg", "RGB"),
        ("CMYK", "a.tif", "RGB"),
    ],
)
def test_every_mode_keeps_its_colors(tmp_path, mode, name, expected):
    original = photo(mode=mode)
    image = images.open_image(save(original, tmp_path / name))
    wanted = np.asarray(original.convert(expected), float).mean((0, 1))
    assert image.mode == expected
    assert np.abs(np.asarray(image, float).mean((0, 1)) - wanted).max() < 2.5


def test_lab_becomes_srgb(tmp_path):
    profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    lab = ImageCms.applyTransform(photo(), ImageCms.buildTransform(*profiles, "RGB", "LAB"))
    assert mean_difference(images.open_image(save(lab, tmp_path / "a.tif")), photo()) < 3


def test_palettes_and_color_keys_keep_transparency_and_grayness(tmp_path):
    for mode, expected in (("P", "RGBA"), ("RGB", "RGBA"), ("L", "LA")):
        clear = photo(mode=mode).getpixel((0, 0))
        path = save(photo(mode=mode), tmp_path / f"{mode}.png", transparency=clear)
        image = images.open_image(path)
        assert image.mode == expected and image.getchannel("A").getpixel((0, 0)) == 0
    assert images.open_image(save(photo(mode="L").convert("P"), tmp_path / "g.png")).mode == "L"


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path, orientation):
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # what a camera held this way has done
    stored = photo().transpose(Image.Transpose(undo[orientation])) if orientation > 1 else photo()
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = images.open_image(save(stored, tmp_path / "a.png", exif=exif))
    assert image.size == (24, 20) and mean_difference(image, photo()) == 0


@pytest.mark.parametrize("mode", ["L", "CMYK", "RGB", "I;16"])
@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
def test_a_tiff_on_its_side_is_turned(tmp_path, mode, compression):
    deep = Image.fromarray(np.asarray(photo(mode="L")).astype(np.uint16) * 257)
    stored = deep if mode == "I;16" else photo(mode=mode)
    upright = images.open_picture(save(stored, tmp_path / "a.tif")).pixels
    path = save(stored, tmp_path / "b.tif", compression=compression, tiffinfo={274: 6})
    assert np.array_equal(images.open_picture(path).pixels, np.rot90(upright, -1))


def swapped_primaries() -> bytes:
    """A profile far from sRGB: its red is sRGB's green, and the other way round."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    tags = {bytes(profile[132 + 12 * i : 136 + 12 * i]): 132 + 12 * i for i in range(profile[131])}
    red, green = tags[b"rXYZ"], tags[b"gXYZ"]
    profile[red + 4 : red + 12], profile[green + 4 : green + 12] = (
        profile[green + 4 : green + 12],
        profile[red + 4 : red + 12],
    )
    return bytes(profile)


def test_an_icc_profile_is_converted_to_srgb_whatever_its_name(tmp_path):
    red = Image.new("RGBA", (6, 5), (200, 30, 30, 90))
    path = save(red, tmp_path / "a.png", icc_profile=swapped_primaries())
    r, g, _, alpha = images.open_image(path).getpixel((0, 0))
    assert g > 180 and r < 60 and alpha == 90
    deep = np.zeros((5, 6, 3), np.uint16) + np.array([200, 30, 30], np.uint16) * 257
    save_image(deep, tmp_path / "b.png")
    with_chunk(tmp_path / "b.png", b"iCCP", b"x\0\0" + zlib.compress(swapped_primaries()))
    picture = images.open_picture(tmp_path / "b.png")
    assert picture.pixels.dtype == np.float32
    assert np.abs(picture.pixels[0, 0] * 255 - images.open_picture(path).pixels[0, 0]).max() < 2


def test_an_srgb_profile_changes_nothing_and_a_broken_one_is_noted(tmp_path):
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    renamed = srgb.replace("sRGB".encode("utf-16-be"), "test".encode("utf-16-be"))
    same = images.open_image(save(photo(), tmp_path / "a.png", icc_profile=renamed))
    broken = images.open_image(save(photo(), tmp_path / "b.png", icc_profile=b"rubbish" * 30))
    assert mean_difference(same, photo()) == mean_difference(broken, photo()) == 0
    assert "profile" in broken.info["notices"][0]


@pytest.mark.parametrize("name", ["a.png", "a.webp", "a.tif"])
def test_an_animation_gives_its_first_frame_and_a_notice(tmp_path, name):
    more = {"save_all": True, "append_images": [photo().rotate(180)], "lossless": True}
    image = images.open_image(save(photo(), tmp_path / name, **more))
    assert mean_difference(image, photo()) == 0 and len(image.info["notices"]) == 1


def test_content_decides_and_a_wrong_ending_is_noted(tmp_path):
    path = save(photo(), tmp_path / "a.jpg").rename(tmp_path / "a.png")
    assert "JPEG" in images.open_image(path).info["notices"][0]


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_sixteen_bits_come_back_from_a_png(tmp_path, channels):
    pixels = deep_pixels(channels)
    save_image(pixels, tmp_path / "a.png")
    picture = images.open_picture(tmp_path / "a.png")
    assert np.array_equal(images.to_levels(images.join(picture.pixels, picture), 16), pixels)
    assert picture.notices == [] and picture.is_gray == (channels < 3)
    eight = np.asarray(images.open_image(tmp_path / "a.png")).reshape(pixels.shape)
    assert np.abs(eight - pixels / 257).max() <= 0.51


@pytest.mark.parametrize("samples", [1, 3])
def test_sixteen_bits_come_from_a_tiff(tmp_path, samples):
    pixels = deep_pixels(samples)
    picture = images.open_picture(write_tiff(tmp_path / "a.tif", pixels.tobytes(), 16, samples))
    assert np.array_equal(images.to_levels(picture.pixels[..., :samples], 16), pixels)


def test_deep_pictures_are_upright_and_their_color_key_is_clear(tmp_path):
    pixels = deep_pixels()
    exif = Image.Exif()
    exif[274] = 6  # to be turned by a quarter, clockwise
    save_image(pixels, tmp_path / "a.png")
    turned = with_chunk(tmp_path / "a.png", b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0"))
    levels = images.to_levels(images.open_picture(turned).pixels, 16)
    assert np.array_equal(levels, np.rot90(pixels, -1))
    save_image(pixels, tmp_path / "b.png")
    keyed = with_chunk(tmp_path / "b.png", b"tRNS", pixels[1, 2].astype(">u2").tobytes())
    alpha = images.open_picture(keyed).alpha
    assert alpha[1, 2] == 0 and alpha.sum() == alpha.size - 1


@pytest.mark.parametrize(
    ("bits", "tags"),
    [
        (12, {}),
        (8, {"kind": 2}),
        (32, {"kind": 3}),
        (32, {}),
        (16, {"photometric": 0}),
        (16, {"kind": 2}),
    ],
)
def test_a_tiff_that_would_be_read_wrong_is_refused(tmp_path, bits, tags):
    path = write_tiff(tmp_path / "a.tif", bytes(bits * 24 // 8), bits, **tags)
    assert "save it as PNG" in refusal(path)
    with pytest.raises(ImageError, match="save it as PNG"):
        read_picture(path)


def test_empty_missing_and_odd_files_are_refused(tmp_path):
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("not a picture")
    (tmp_path / "loop.png").symlink_to("loop.png")
    os.mkfifo(tmp_path / "pipe.png")
    for name in ("empty.png", "text.png", "none.png", "pipe.png", "loop.png", ""):
        assert refusal(tmp_path / name)


@pytest.mark.parametrize("side", [12_000, 60_000])
def test_bombs_are_refused_by_their_header(tmp_path, side):
    data = chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    (tmp_path / "bomb.png").write_bytes(png_header(side, side) + data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert "limit" in refusal(tmp_path / "bomb.png")


def test_the_limit_of_pixels_can_be_chosen(tmp_path):
    path = save(photo(), tmp_path / "a.png")
    assert "limit" in refusal(path, max_pixels=479)
    assert images.open_picture(path, max_pixels=480).size == (24, 20)


@pytest.mark.parametrize(
    "start",
    [b"%!PS-Adobe-3.0 EPSF-3.0\n", b"GIF89a\x01\x00\x01\x00", b"\0\0\0\x18ftypavif\0\0\0\0"],
)
def test_other_formats_are_refused_and_no_other_decoder_is_tried(tmp_path, start):
    (tmp_path / "a.png").write_bytes(start)
    assert "not an image" in refusal(tmp_path / "a.png")


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
def test_a_picture_of_any_channels_comes_back(mode):
    original = photo(mode=mode)
    (picture,) = images.pictures_of(original)
    assert picture.is_gray == (mode[0] == "L") and (picture.alpha is None) == (mode[-1] != "A")
    back = images.as_image(images.join(picture.pixels, picture))
    assert back.mode == mode and mean_difference(back, original) == 0


def test_a_picture_of_pils_is_read_as_its_file(tmp_path):
    exif = Image.Exif()
    exif[274] = 6
    jpeg = save(photo(), tmp_path / "a.jpg", exif=exif, icc_profile=swapped_primaries())
    palette = save(photo(mode="P"), tmp_path / "p.png", transparency=3)
    for path in (jpeg, palette):
        wanted, given = images.open_picture(path), Image.open(path)
        for _ in range(2):  # not loaded, and loaded
            (picture,) = images.pictures_of(given)
            assert np.array_equal(picture.pixels, wanted.pixels)
    wanted = images.open_picture(jpeg).pixels
    (copy,) = images.pictures_of(Image.open(jpeg).convert("RGB"))
    assert np.array_equal(np.rot90(copy.pixels, -1), wanted)  # a copy doesn't say how it lies


def test_alpha_is_enlarged_with_the_picture():
    original = photo(mode="RGBA")
    (picture,) = images.pictures_of(original)
    joined = images.as_image(images.join(np.asarray(photo(96, 80)), picture))
    wanted = original.getchannel("A").resize((96, 80), Image.Resampling.BICUBIC)
    assert joined.mode == "RGBA" and np.array_equal(joined.getchannel("A"), wanted)


def test_what_is_no_picture_is_refused_by_type():
    for odd in ("a.png", 3, np.zeros((2, 2), np.int64)):
        with pytest.raises(TypeError):
            images.pictures_of(odd)
    for odd in (np.zeros((2, 2, 5), np.uint8), np.full((2, 2), 2.0), Image.new("F", (2, 2))):
        with pytest.raises(ValueError):
            images.pictures_of(odd)


def test_ranges_round_trip_and_round():
    levels = torch.arange(256).float().view(1, 1, 1, 256).expand(1, 3, 1, 256)
    assert torch.equal(images.to_tensor(images.to_image(levels / 255)) * 255, levels)
    assert images.to_image(torch.full((3, 1, 1), 0.9999)).getpixel((0, 0)) == (255, 255, 255)
    x = torch.tensor([-3.0, -1.0, 0.0, 1.0, 7.0])
    assert torch.equal(images.to_unit(x), torch.tensor([0, 0, 0.5, 1, 1]))


SIDES = st.integers(1, 5000)


@settings(max_examples=200, deadline=None)
@given(SIDES, SIDES, st.floats(1, 9), st.integers(1, 1024), st.integers(1, 64))
def test_plans_are_sound_for_every_size(width, height, upscale, process_size, multiple):
    frame = frames.plan_frame(width, height, upscale, process_size, multiple)
    assert frame.output == (round(upscale * width), round(upscale * height))
    assert all(side % multiple == 0 for side in frame.padded)
    for padded, content, output in zip(frame.padded, frame.content, frame.output, strict=True):
        assert padded >= content >= output
        assert padded - content < frames.MIN_SIDE + multiple
    if frame.enlarged == frame.source:
        assert frame.content == frame.output
    else:
        assert max(frame.content) <= frames.MAX_SIDE


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from([1, 1.5, 2, 2.7, 3, 4]))
def test_a_picture_comes_back_at_exactly_its_size(width, height, upscale):
    frame = frames.plan_frame(width, height, upscale, process_size=48)
    prepared = frames.prepare(np.asarray(photo(width, height)), frame)
    x = images.to_signed(images.from_levels(images.to_batch([frames.pad(prepared, frame)])))
    assert x.shape == (1, 3, *frame.padded[::-1])
    (result,) = images.from_batch(images.to_unit(frames.crop(x, frame)), 8)
    assert np.array_equal(result, prepared)  # padding comes off without a trace
    size = round(upscale * height), round(upscale * width), 3
    assert frames.finish(result, frame).shape == size


def test_small_pictures_reach_the_published_short_side():
    for width in range(1, 128):  # int(128 / width * width), as published, is 127 for some of these
        frame = frames.plan_frame(width, 200, 4, 512)
        assert frame.enlarged[0] == 128 or max(frame.content) > frames.MAX_SIDE - 4 * 128
    assert frames.plan_frame(13, 17, 4, 128).enlarged == (32, 41)


@pytest.mark.parametrize("size", [(4000, 2), (2, 4000), (1000, 3)])
def test_strips_are_padded_rather_than_blown_up(size):
    frame = frames.plan_frame(*size)
    assert frame.output == (size[0] * 4, size[1] * 4)
    assert max(frame.content) <= max(frames.MAX_SIDE, *frame.output)
    assert min(frame.padded) == frames.MIN_SIDE


def test_padding_mirrors_and_repeats_a_single_row():
    frame = frames.Frame((3, 1), (3, 1), (3, 1), (8, 4), (3, 1))
    row = np.array([[[10] * 3, [20] * 3, [30] * 3]], np.uint8)
    assert frames.pad(row, frame)[..., 0].tolist() == [[10, 20, 30, 20, 10, 20, 30, 20]] * 4


def test_sizes_that_cannot_be_are_refused():
    for wanted in ((0, 5), (100, 100, 1e9), (1, 1, 1e300)):
        with pytest.raises(ValueError):
            frames.plan_frame(*wanted)


def test_preparation_is_the_published_one(parity):
    """Where published sizes are multiples of 8, the prepared picture is theirs to the byte."""
    compared = 0
    for case in json.loads((parity / "index.json").read_text())["eval_cases"]:
        image = images.open_image(parity / case["input"])
        options = case["options"]
        frame = frames.plan_frame(*image.size, options["upscale"], options["process_size"])
        expected = Image.open(parity / case["prepared_input"])
        if frame.content == expected.size:
            prepared = frames.prepare(np.asarray(image.convert("RGB")), frame)
            assert np.array_equal(prepared, np.asarray(expected))
            compared += 1
    assert compared >= 10
