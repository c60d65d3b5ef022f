"""Promises of pictures.images: what a person sees is what the model gets, at exact sizes, or one
line why not.
"""

import os
import random
import struct
import threading
import time
import warnings
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from pisasr.errors import ImageError
from pisasr.pictures import images, saving
from pisasr.pictures.opening import read_picture


def photo(width: int = 24, height: int = 20, mode: str = "RGB") -> Image.Image:
    """A smooth coloured picture; nothing in it is symmetric."""
    y, x = np.mgrid[:height, :width]
    levels = np.stack([255 * x / width, 255 * y / height, 128 + 60 * np.sin(x / 5 + y / 7)], -1)
    return Image.fromarray(levels.astype(np.uint8)).convert(mode)


def save(image: Image.Image, path: Path, **options) -> Path:
    image.save(path, **options)
    return path


def mean_difference(a: Image.Image, b: Image.Image) -> float:
    return float(np.abs(np.asarray(a, dtype=float) - np.asarray(b, dtype=float)).mean())


def refusal(path: Path, **options) -> str:
    """The one line that a file is refused with."""
    with pytest.raises(ImageError) as caught:
        images.open_image(path, **options)
    assert "\n" not in str(caught.value) and str(caught.value)
    return str(caught.value)


# --- reading --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp", "a.tif", "a.bmp"])
def test_reads_the_five_formats(tmp_path, name):
    image = images.open_image(save(photo(), tmp_path / name))
    assert (image.mode, image.size) == ("RGB", (24, 20))
    assert mean_difference(image, photo()) < 4
    assert image.info["notices"] == []


@pytest.mark.parametrize(
    ("mode", "name", "expected"),
    [
        ("L", "a.png", "L"),
        ("LA", "a.png", "LA"),
        ("RGB", "a.png", "RGB"),
        ("RGBA", "a.png", "RGBA"),
        ("1", "a.png", "L"),
        ("P", "a.png", "RGB"),
        ("CMYK", "a.jpg", "RGB"),
        ("CMYK", "a.tif", "RGB"),
        ("YCbCr", "a.tif", "RGB"),
    ],
)
def test_every_mode_keeps_its_colours(tmp_path, mode, name, expected):
    original = photo(mode=mode)
    image = images.open_image(save(original, tmp_path / name))
    assert image.mode == expected
    wanted = original.convert(expected)
    assert (
        np.abs(np.asarray(image, float).mean((0, 1)) - np.asarray(wanted, float).mean((0, 1))).max()
        < 2.5
    )


def test_lab_becomes_srgb(tmp_path):
    transform = ImageCms.buildTransform(
        ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB"
    )
    lab = ImageCms.applyTransform(photo(), transform)
    assert mean_difference(images.open_image(save(lab, tmp_path / "a.tif")), photo()) < 3


def test_palettes_keep_transparency_and_greyness(tmp_path):
    clear = photo(mode="P")
    clear.info["transparency"] = clear.getpixel((0, 0))
    image = images.open_image(
        save(clear, tmp_path / "clear.png", transparency=clear.getpixel((0, 0)))
    )
    assert image.mode == "RGBA" and image.getpixel((0, 0))[3] == 0
    assert images.open_image(save(photo(mode="L").convert("P"), tmp_path / "grey.png")).mode == "L"


def test_colour_key_becomes_alpha(tmp_path):
    rgb = images.open_image(
        save(photo(), tmp_path / "a.png", transparency=photo().getpixel((0, 0)))
    )
    grey = images.open_image(
        save(photo(mode="L"), tmp_path / "b.png", transparency=photo(mode="L").getpixel((0, 0)))
    )
    assert (rgb.mode, grey.mode) == ("RGBA", "LA")
    assert rgb.getchannel("A").getpixel((0, 0)) == 0


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_png_says_which_level_is_clear(tmp_path, depth, channels):
    if channels == 3 and depth < 8:
        return  # there are none
    white = 2**depth - 1
    levels = np.zeros((2, 8, channels), np.uint16)
    levels[0], levels[1, 3] = (
        white,
        white - 1 if depth > 8 else 0,
    )  # a neighbour in the last bit is not clear
    bits = (levels[..., None] >> np.arange(depth - 1, -1, -1)) & 1
    rows = b"".join(b"\0" + np.packbits(row.astype(np.uint8)).tobytes() for row in bits)
    key = chunk(b"tRNS", struct.pack(">H", white) * channels)
    head = png_header(8, 2, depth=depth, kind=0 if channels == 1 else 2) + key
    path = tmp_path / "a.png"
    path.write_bytes(head + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))
    for picture in (images.open_picture(path), *images.pictures_of(images.open_image(path))):
        opaque = (picture.alpha > 0).tolist()
        assert opaque[0] == [False] * 8 and picture.is_grey == (channels == 1)
        assert opaque[1] == [True] * 8 or (
            depth == 16 and channels == 3 and picture.alpha.dtype == np.uint8
        )
    deep = images.open_picture(path)
    assert deep.notices == [] and deep.pixels.dtype == (np.float32 if depth == 16 else np.uint8)


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_sixteen_bit_grey_is_scaled_not_clipped(tmp_path, name):
    levels = np.linspace(0, 65_535, 24 * 20).reshape(20, 24).astype(np.uint16)
    image = images.open_image(save(Image.fromarray(levels), tmp_path / name))
    assert image.mode == "L"
    assert np.abs(np.asarray(image, float) - levels / 257).max() <= 0.5


@pytest.mark.parametrize("white", [1.0, 255.0, 65_535.0])
def test_float_tiff_is_scaled_by_its_range(tmp_path, white):
    levels = (np.linspace(0.1, 1.0, 24 * 20) * white).reshape(20, 24).astype(np.float32)
    image = images.open_image(save(Image.fromarray(levels), tmp_path / "a.tif"))
    assert image.mode == "L"
    assert np.abs(np.asarray(image, float) - levels / white * 255).max() <= 0.51
    assert "white" in image.info["notices"][0]


def test_integer_tiff_is_scaled_by_its_range(tmp_path):
    levels = np.linspace(0, 40_000, 24 * 20).reshape(20, 24).astype(np.int32)
    image = images.open_image(save(Image.fromarray(levels), tmp_path / "a.tif"))
    assert np.abs(np.asarray(image, float) - levels / 257).max() <= 0.5


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
@pytest.mark.parametrize("brightest", [1.0001, 256.0, 70_000.0])
def test_a_little_above_white_is_clipped_and_not_the_white_of_a_black_picture(
    tmp_path, dtype, brightest
):
    if dtype is np.int32 and brightest < 2:
        return
    white = {1.0001: 1, 256: 255, 70_000: 65_535}[brightest]
    levels = np.linspace(0, white, 24 * 20).reshape(20, 24).astype(dtype)
    levels[3, 4] = brightest
    image = images.open_image(save(Image.fromarray(levels), tmp_path / "a.tif"))
    assert np.abs(np.asarray(image, float) - (levels / white).clip(0, 1) * 255).max() <= 0.51
    assert f"brighter ones, up to {brightest:g}, clipped" in image.info["notices"][0]
    assert np.array_equal(images.open_picture(tmp_path / "a.tif").pixels[3, 4], [1, 1, 1])


@pytest.mark.parametrize("brightest", [3.7, 4095.0])
def test_what_ends_far_below_a_usual_white_is_its_own(tmp_path, brightest):
    """Floats of light; twelve bits of a sensor."""
    levels = np.linspace(-0.1, brightest, 24 * 20).reshape(20, 24).astype(np.float32)
    image = images.open_image(save(Image.fromarray(levels), tmp_path / "a.tif"))
    assert np.abs(np.asarray(image, float) - (levels / levels.max()).clip(0, 1) * 255).max() <= 0.51
    assert image.info["notices"] == [
        f"float pixels, {brightest:g} taken as white, negative ones taken as black"
    ]


def png_with_gamma(path: Path, gamma: float, depth: int, *more: bytes) -> Path:
    """A ramp of 256 greys, as levels of 8 or 16 bits, of a PNG that says how they were coded."""
    levels = np.arange(256, dtype=np.uint16) * (257 if depth == 16 else 1)
    row = b"\0" + levels.astype(">u2" if depth == 16 else np.uint8).tobytes()
    told = chunk(b"gAMA", struct.pack(">I", round(gamma * 100_000)))
    head = png_header(256, 1, depth=depth, kind=0) + told + b"".join(more)
    path.write_bytes(head + chunk(b"IDAT", zlib.compress(row)) + chunk(b"IEND", b""))
    return path


@pytest.mark.parametrize("depth", [8, 16])
def test_a_pngs_gamma_is_brought_to_srgb(tmp_path, depth):
    path = png_with_gamma(tmp_path / "a.png", 1.0, depth)
    wanted = (np.arange(256) / 255) ** (1 / 2.2)
    image, picture = images.open_image(path), images.open_picture(path)
    assert np.abs(np.asarray(image, float)[0] / 255 - wanted).max() <= 0.51 / 255
    levels = picture.pixels[0, :, 0] / (1 if depth == 16 else 255)
    assert np.abs(levels - wanted).max() <= (1e-6 if depth == 16 else 0.51 / 255)
    assert image.info["notices"] == picture.notices == ["gamma 1, brought to sRGB"]


def test_srgbs_own_gamma_a_better_word_and_nonsense_change_nothing(tmp_path):
    for gamma, more, notices in [
        (0.45455, (), []),
        (1.0, (chunk(b"sRGB", b"\0"),), []),
        (1e-5, (), ["its gamma of 1e-05 cannot be used, colours taken as sRGB"]),
    ]:
        image = images.open_image(png_with_gamma(tmp_path / "a.png", gamma, 8, *more))
        assert (
            np.array_equal(np.asarray(image)[0], np.arange(256))
            and image.info["notices"] == notices
        )


def test_float_tiff_with_nan_is_refused(tmp_path):
    levels = np.full((4, 4), np.nan, np.float32)
    assert "nan" in refusal(save(Image.fromarray(levels), tmp_path / "a.tif"))


def test_sixteen_bit_colour_is_read_with_a_notice(tmp_path):
    path = tmp_path / "deep.png"
    rows = b"".join(b"\0" + struct.pack(">3H", 65_535, 32_768, 256) * 5 for _ in range(4))
    path.write_bytes(
        png_header(5, 4, depth=16) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    )
    image = images.open_image(path)
    assert image.getpixel((0, 0)) == (255, 128, 1)
    assert "16 bits" in image.info["notices"][0]


def test_sixteen_bit_grey_with_alpha_stays_grey(tmp_path):
    path = tmp_path / "deep.png"
    rows = (b"\0" + struct.pack(">2H", 32_768, 256) * 5) * 4
    path.write_bytes(
        png_header(5, 4, depth=16, kind=4)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )
    image = images.open_image(path)
    assert (image.mode, image.getpixel((0, 0))) == ("LA", (128, 1))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path, orientation):
    undo = {
        2: 0,
        3: 3,
        4: 1,
        5: 5,
        6: 2,
        7: 6,
        8: 4,
    }  # the transpose that a camera held this way has done
    stored = photo().transpose(Image.Transpose(undo[orientation])) if orientation > 1 else photo()
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = images.open_image(save(stored, tmp_path / "a.png", exif=exif))
    assert image.size == (24, 20) and mean_difference(image, photo()) == 0
    assert 0x0112 not in image.getexif()


@pytest.mark.parametrize("mode", ["L", "P", "CMYK", "RGBA", "RGB", "I;16"])
@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
def test_a_tiff_on_its_side_is_turned(tmp_path, mode, compression):
    stored = (
        Image.fromarray(np.asarray(photo(mode="L")).astype(np.uint16) * 257)
        if mode == "I;16"
        else photo(mode=mode)
    )
    upright = images.open_picture(save(stored, tmp_path / "a.tif")).pixels
    path = save(stored, tmp_path / "b.tif", compression=compression, tiffinfo={274: 6})
    for came in (images.open_picture(path), *images.pictures_of(Image.open(path))):
        assert np.array_equal(came.pixels, np.rot90(upright, -1))
    if mode != "I;16":
        assert np.array_equal(read_picture(path), np.rot90(read_picture(tmp_path / "a.tif"), -1))


def linear() -> bytes:
    """A profile of light itself that bears sRGB's name, as GIMP's and others do."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    tags = [
        struct.unpack(">4s2I", profile[132 + 12 * i : 144 + 12 * i]) for i in range(profile[131])
    ]
    for place in {place for name, place, _ in tags if name.endswith(b"TRC")}:
        profile[place : place + 16] = b"para" + struct.pack(">IHHI", 0, 0, 0, 65_536)  # gamma 1
    return bytes(profile)


def test_a_profile_is_judged_by_what_it_does_and_not_by_its_name(tmp_path):
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    renamed = srgb.replace("sRGB".encode("utf-16-be"), "test".encode("utf-16-be"))
    assert renamed != srgb
    same, bright = (
        images.open_image(save(photo(), tmp_path / "a.png", icc_profile=icc))
        for icc in (renamed, linear())
    )
    assert mean_difference(same, photo()) == 0
    light = np.asarray(photo()) / 255
    wanted = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    assert np.abs(np.asarray(bright) - 255 * wanted).max() < 3


def swapped_primaries() -> bytes:
    """A profile far from sRGB: its red is sRGB's green, and the other way round."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    swapped = bytearray(profile.replace("sRGB".encode("utf-16-be"), "test".encode("utf-16-be")))
    tags = {bytes(swapped[132 + 12 * i : 136 + 12 * i]): 132 + 12 * i for i in range(profile[131])}
    red, green = tags[b"rXYZ"], tags[b"gXYZ"]
    swapped[red + 4 : red + 12], swapped[green + 4 : green + 12] = (
        swapped[green + 4 : green + 12],
        swapped[red + 4 : red + 12],
    )
    return bytes(swapped)


def test_icc_profile_is_converted_to_srgb(tmp_path):
    red_as_stored = Image.new("RGBA", (6, 5), (200, 30, 30, 90))
    image = images.open_image(
        save(red_as_stored, tmp_path / "a.png", icc_profile=swapped_primaries())
    )
    red, green, _, alpha = image.getpixel((0, 0))
    assert green > 180 and red < 60
    assert alpha == 90 and "icc_profile" not in image.info


def test_srgb_profile_changes_nothing_and_a_broken_one_is_noted(tmp_path):
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert (
        mean_difference(
            images.open_image(save(photo(), tmp_path / "a.png", icc_profile=srgb)), photo()
        )
        == 0
    )
    broken = images.open_image(save(photo(), tmp_path / "b.png", icc_profile=b"rubbish" * 30))
    assert mean_difference(broken, photo()) == 0 and "profile" in broken.info["notices"][0]


@pytest.mark.parametrize(("name", "count"), [("a.png", "2"), ("a.webp", "2"), ("a.tif", "several")])
def test_animation_gives_its_first_frame_and_a_notice(tmp_path, name, count):
    path = save(
        photo(), tmp_path / name, save_all=True, append_images=[photo().rotate(180)], lossless=True
    )
    image = images.open_image(path)
    assert mean_difference(image, photo()) == 0
    assert image.info["notices"] == [f"{count} frames, only the first is used"]


def test_nobody_counts_the_frames_of_a_tiff(tmp_path):
    """Pillow reads all that came before for each: 32,000 of them took seconds."""
    frames = 32_000
    ifd = struct.pack("<H", 9) + b"".join(
        struct.pack("<HHII", tag, 4, 1, value)
        for tag, value in [
            (256, 1),
            (257, 1),
            (258, 8),
            (259, 1),
            (262, 1),
            (273, 8),
            (277, 1),
            (278, 1),
            (279, 1),
        ]
    )
    first, size = 10, len(ifd) + 4
    links = (struct.pack("<I", first + (number + 1) * size) for number in range(frames - 1))
    content = b"".join(
        [
            b"II*\0",
            struct.pack("<I", first),
            b"\x80\0",
            *(ifd + link for link in links),
            ifd,
            bytes(4),
        ]
    )
    (tmp_path / "a.tif").write_bytes(content)
    start = time.process_time()
    image = images.open_image(tmp_path / "a.tif")
    assert time.process_time() - start < 0.5
    assert image.getpixel((0, 0)) == 128 and image.info["notices"] == [
        "several frames, only the first is used"
    ]


def test_content_decides_and_a_wrong_extension_is_noted(tmp_path):
    path = save(photo(), tmp_path / "a.jpg").rename(tmp_path / "a.png")
    assert "JPEG" in images.open_image(path).info["notices"][0]


@pytest.mark.parametrize("place", ["before", "behind"])
def test_a_text_longer_than_pillow_unpacks_is_passed_over(tmp_path, place):
    long = zlib.compress(bytes(2_000_000))
    texts = chunk(b"zTXt", b"c\0\0" + long) + chunk(b"iTXt", b"c\0\1\0\0\0" + long)
    pixels = chunk(
        b"IDAT", zlib.compress(b"".join(b"\0" + row.tobytes() for row in np.asarray(photo())))
    )
    body = texts + pixels if place == "before" else pixels + texts
    (tmp_path / "a.png").write_bytes(png_header(24, 20) + body + chunk(b"IEND", b""))
    assert mean_difference(images.open_image(tmp_path / "a.png"), photo()) == 0
    bomb = chunk(b"zTXt", b"c\0\0" + zlib.compress(bytes(1_000_000))) * 70
    (tmp_path / "a.png").write_bytes(png_header(24, 20) + bomb + pixels + chunk(b"IEND", b""))
    assert "Too much memory" in refusal(tmp_path / "a.png")


# --- refusing -------------------------------------------------------------------------------------


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_header(width: int, height: int, depth: int = 8, kind: int = 2) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + chunk(
        b"IHDR", struct.pack(">2I5B", width, height, depth, kind, 0, 0, 0)
    )


def test_empty_missing_and_odd_files_are_refused(tmp_path):
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("not a picture")
    assert refusal(tmp_path / "empty.png") == "empty file"
    assert "not an image" in refusal(tmp_path / "text.png")
    assert refusal(tmp_path / "none.png") == "no such file"
    assert "regular" in refusal(tmp_path)
    os.mkfifo(tmp_path / "pipe.png")
    assert "regular" in refusal(tmp_path / "pipe.png")
    (tmp_path / "loop.png").symlink_to("loop.png")
    assert refusal(tmp_path / "loop.png")


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp", "a.tif", "a.bmp"])
def test_truncated_files_are_refused(tmp_path, name):
    path = save(photo(200, 160), tmp_path / name)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert refusal(path)


@pytest.mark.parametrize("side", [12_000, 60_000])
def test_bombs_are_refused_by_their_header(tmp_path, side):
    path = tmp_path / "bomb.png"
    path.write_bytes(
        png_header(side, side) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "million pixels" in refusal(path)


def test_the_pixel_cap_can_be_set_and_pillow_keeps_its_own(tmp_path, monkeypatch):
    """A global of Pillow's, which other threads see: whoever reads pictures neither obeys nor moves
    it.
    """
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 3)
    seen = threading.Event()
    with images.opened(save(photo(), tmp_path / "b.png")):
        threading.Thread(target=lambda: Image.MAX_IMAGE_PIXELS == 3 and seen.set()).start()
        assert seen.wait(20)
    before = Image.MAX_IMAGE_PIXELS
    path = save(photo(), tmp_path / "a.png")
    assert "--max_input_pixels" in refusal(path, max_pixels=479)
    assert images.open_image(path, max_pixels=480).size == (24, 20)
    assert Image.MAX_IMAGE_PIXELS == before


@pytest.mark.parametrize(
    ("start", "word"),
    [
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "PostScript"),
        (b"%PDF-1.4\n", "PDF"),
        (b"GIF89a\x01\x00\x01\x00", "GIF"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not an image"),
        (b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00", "HEIC"),
        (b"\x00\x00\x00\x18ftypavif\x00\x00\x00\x00", "AVIF"),
        (b"\x00\x00\x00\x0cJXL \r\n\x87\n", "JPEG XL"),
        (b"\x80\x04\x95\x00\x00", "not an image"),
    ],
)
def test_other_formats_are_refused_by_name(tmp_path, start, word):
    path = tmp_path / "a.png"
    path.write_bytes(start)
    assert word in refusal(path)


def test_damaged_files_only_ever_raise_image_errors(tmp_path):
    chance = random.Random(0)
    path = tmp_path / "a.png"
    for _ in range(300):
        buffer = BytesIO()
        photo(16, 12).save(buffer, chance.choice(["PNG", "JPEG", "WEBP", "TIFF", "BMP"]))
        data = bytearray(buffer.getvalue())
        for _ in range(chance.randint(1, 8)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        path.write_bytes(data[: chance.randint(1, len(data))] if chance.random() < 0.3 else data)
        try:
            assert images.open_image(path, max_pixels=10_000).mode in ("L", "LA", "RGB", "RGBA")
        except ImageError as error:
            assert "\n" not in str(error)


# --- colour and alpha -----------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
def test_split_and_join_are_inverse(mode):
    original = photo(mode=mode)
    rgb, alpha, is_grey = images.split(original)
    assert (
        rgb.mode == "RGB" and is_grey == (mode[0] == "L") and (alpha is None) == (mode[-1] != "A")
    )
    (picture,) = images.pictures_of(original)
    back = images.as_image(images.join(picture.pixels, picture))
    assert back.mode == mode and mean_difference(back, original) == 0


def test_a_picture_of_pils_is_read_as_its_file(tmp_path):
    """By its orientation, profile, gamma and key; a copy says nothing of how it lies, and still of
    its colours.
    """
    exif = Image.Exif()
    exif[274] = 6
    jpeg = save(photo(), tmp_path / "a.jpg", exif=exif, icc_profile=swapped_primaries())
    deep = tmp_path / "deep.png"
    rows = (b"\0" + struct.pack(">2H", 32_768, 256) * 5) * 4
    deep.write_bytes(
        png_header(5, 4, depth=16, kind=4)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )
    gamma = [png_with_gamma(tmp_path / f"{depth}.png", 1.0, depth) for depth in (8, 16)]
    clear = save(photo(mode="P"), tmp_path / "p.png", transparency=3, icc_profile=linear())
    for path in (jpeg, deep, *gamma, clear):
        wanted, given = images.open_picture(path), Image.open(path)
        for _ in range(2):  # not loaded, and loaded
            (came,) = images.pictures_of(given)
            assert (
                np.array_equal(came.pixels, wanted.pixels)
                and came.pixels.dtype == wanted.pixels.dtype
            )
            assert path == deep or (
                np.array_equal(came.alpha, wanted.alpha) and came.is_grey == wanted.is_grey
            )
    wanted = images.open_picture(jpeg).pixels
    (copy,) = images.pictures_of(Image.open(jpeg).convert("RGB"))
    assert np.array_equal(np.rot90(copy.pixels, -1), wanted)
    (turned,) = images.pictures_of(images.ImageOps.exif_transpose(Image.open(jpeg)))
    assert np.array_equal(turned.pixels, wanted)


def test_alpha_is_enlarged_with_the_picture():
    original = photo(mode="RGBA")
    (picture,) = images.pictures_of(original)
    joined = images.as_image(images.join(np.asarray(photo(96, 80)), picture))
    assert joined.mode == "RGBA" and joined.size == (96, 80)
    assert np.array_equal(
        joined.getchannel("A"), original.getchannel("A").resize((96, 80), Image.Resampling.BICUBIC)
    )


# --- sizes ----------------------------------------------------------------------------------------

SIDES = st.integers(1, 5000)


@settings(max_examples=300, deadline=None)
@given(SIDES, SIDES, st.floats(1, 9), st.integers(1, 1024), st.integers(1, 64))
def test_plans_are_sound_for_every_size(width, height, upscale, process_size, multiple):
    frame = images.plan_frame(width, height, upscale, process_size, multiple)
    assert frame.output == (round(upscale * width), round(upscale * height))
    assert all(side % multiple == 0 for side in frame.padded)
    assert all(
        p >= c >= o for p, c, o in zip(frame.padded, frame.content, frame.output, strict=True)
    )
    assert all(
        p - c < images.MIN_SIDE + multiple for p, c in zip(frame.padded, frame.content, strict=True)
    )
    if frame.enlarged != frame.source:
        assert max(frame.content) <= images.MAX_SIDE
    else:
        assert frame.content == frame.output


def test_a_result_beyond_reason_is_refused():
    with pytest.raises(ValueError, match="choose a smaller --upscale"):
        images.plan_frame(100, 100, 1e9)
    with pytest.raises(ValueError, match="choose a smaller --upscale"):
        images.plan_frame(1, 1, 1e300)


@settings(max_examples=60, deadline=None)
@given(
    width=st.integers(1, 40),
    height=st.integers(1, 40),
    upscale=st.sampled_from([1, 1.5, 2, 2.7, 3, 4]),
)
def test_a_picture_comes_back_at_exactly_its_size(width, height, upscale):
    frame = images.plan_frame(width, height, upscale, process_size=48)
    prepared = images.prepare(np.asarray(photo(width, height)), frame)
    x = images.from_levels(images.to_batch([images.pad(prepared, frame)])) * 2 - 1
    assert x.shape == (1, 3, *frame.padded[::-1])
    (result,) = images.from_batch(images.to_unit(images.crop(x, frame)), 8)
    assert np.array_equal(result, prepared)  # padding comes off without a trace
    assert images.finish(result, frame).shape == (
        round(upscale * height),
        round(upscale * width),
        3,
    )


def test_small_pictures_reach_the_published_short_side():
    for width in range(1, 128):  # int(128 / width * width), as published, is 127 for some of these
        frame = images.plan_frame(width, 200, 4, 512)
        assert frame.enlarged[0] == 128 or max(frame.content) > images.MAX_SIDE - 4 * 128
    assert images.plan_frame(13, 17, 4, 128).enlarged == (32, 41)


@pytest.mark.parametrize("size", [(4000, 2), (2, 4000), (1000, 3)])
def test_strips_are_padded_rather_than_blown_up(size):
    frame = images.plan_frame(*size)
    assert frame.output == (size[0] * 4, size[1] * 4)
    assert (
        max(frame.content) <= max(images.MAX_SIDE, *frame.output)
        and min(frame.padded) == images.MIN_SIDE
    )


def test_padding_mirrors_and_repeats_a_single_row():
    frame = images.Frame((3, 1), (3, 1), (3, 1), (8, 4), (3, 1))
    row = np.array([[[10] * 3, [20] * 3, [30] * 3]], np.uint8)
    padded = images.pad(row, frame)[..., 0]
    assert padded.tolist() == [[10, 20, 30, 20, 10, 20, 30, 20]] * 4


def test_a_frame_for_another_picture_and_shrinking_are_refused():
    with pytest.raises(ValueError, match="planned for"):
        images.prepare(np.asarray(photo()), images.plan_frame(10, 10))
    with pytest.raises(ValueError, match="1 or more"):
        images.plan_frame(10, 10, 0.5)
    with pytest.raises(ValueError, match="a picture of 0x5 pixels came"):
        images.plan_frame(0, 5)


def test_preparation_is_the_published_one(parity):
    """Where the published sizes are multiples of 8, the prepared picture is the same to the
    byte.
    """
    import json

    compared = 0
    for case in json.loads((parity / "index.json").read_text())["eval_cases"]:
        image = images.open_image(parity / case["input"])
        frame = images.plan_frame(
            *image.size, case["options"]["upscale"], case["options"]["process_size"]
        )
        expected = Image.open(parity / case["prepared_input"])
        if frame.content == expected.size:
            assert np.array_equal(
                images.prepare(np.asarray(image.convert("RGB")), frame), np.asarray(expected)
            )
            compared += 1
    assert compared >= 10


# --- ranges and writing ---------------------------------------------------------------------------


def test_ranges_round_trip_and_round():
    levels = torch.arange(256).float().view(1, 1, 1, 256).expand(1, 3, 1, 256)
    assert torch.equal(images.to_tensor(images.to_image(levels / 255)) * 255, levels)
    assert images.to_image(torch.full((3, 1, 1), 0.9999)).getpixel((0, 0)) == (255, 255, 255)
    assert torch.equal(
        images.to_unit(torch.tensor([-3.0, -1.0, 0.0, 1.0, 7.0])), torch.tensor([0, 0, 0.5, 1, 1])
    )


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.webp", "a.bmp", "a.jpg"])
def test_written_pictures_read_back(tmp_path, name):
    saving.save_image(photo(), tmp_path / name)
    assert mean_difference(images.open_image(tmp_path / name), photo()) < (
        3 if name.endswith("jpg") else 1e-9
    )
    assert [file.name for file in tmp_path.iterdir()] == [name]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    saving.save_image(photo(), path)
    before = path.read_bytes()

    def full_disk(self, file, **_):
        file.write(b"half a pict")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full_disk)
    with pytest.raises(OSError):
        saving.save_image(photo(), path)
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_what_a_format_cannot_hold_is_refused(tmp_path):
    for image, name in [
        (photo(mode="RGBA"), "a.jpg"),
        (Image.new("L", (65_536, 1)), "a.jpg"),
        (Image.new("L", (1, 16_384)), "a.webp"),
        (photo(), "a.gif"),
    ]:
        with pytest.raises(ImageError, match="png"):
            saving.save_image(image, tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_names_of_255_bytes_are_written(tmp_path):
    saving.save_image(photo(), tmp_path / ("n" * 251 + ".png"))


# --- sixteen bits ---------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_sixteen_bits_come_back_from_a_png(tmp_path, channels):
    pixels = np.random.default_rng(0).integers(0, 65_536, (7, 5, channels), dtype=np.uint16)
    saving.save_image(pixels, tmp_path / "a.png")
    eight = np.asarray(images.open_image(tmp_path / "a.png")).reshape(7, 5, channels)
    assert np.abs(eight - pixels / 257).max() <= 1
    picture = images.open_picture(tmp_path / "a.png")
    back = images.join(picture.pixels, picture)
    if channels == 2:  # Pillow reads the high bytes alone
        assert back.dtype == np.uint8 and "16 bits a channel, read at 8" in picture.notices
    else:
        assert np.array_equal(images.to_levels(back, 16), pixels) and picture.notices == []


def write_tiff(path, entries, *blocks):
    """A little-endian TIFF: entries (tag, type, count, value), where a value (n,) stands for the
    place of block n.
    """
    start = 8 + 2 + 12 * len(entries) + 4
    places = [start + sum(map(len, blocks[:n])) for n in range(len(blocks))]
    own = [
        (*e[:3], places[e[3][0]] if isinstance(e[3], tuple) else e[3])
        for e in sorted(entries, key=lambda e: e[0])
    ]
    head = b"II" + struct.pack("<HIH", 42, 8, len(entries))
    path.write_bytes(
        head + b"".join(struct.pack("<HHII", *e) for e in own) + bytes(4) + b"".join(blocks)
    )
    return places


def test_a_tiff_of_sixteen_bits_in_planes_is_refused(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 65_536, (3, 6, 4), dtype=np.uint16)
    entries = [
        (256, 3, 1, 4),
        (257, 3, 1, 6),
        (258, 3, 3, (0,)),
        (259, 3, 1, 1),
        (262, 3, 1, 2),
        (273, 4, 3, (1,)),
    ]
    entries += [(277, 3, 1, 3), (278, 3, 1, 6), (279, 4, 3, (2,)), (284, 3, 1, 2)]
    blocks = [
        struct.pack("<3H", 16, 16, 16),
        bytes(12),
        struct.pack("<3I", 48, 48, 48),
        pixels.tobytes(),
    ]
    places = write_tiff(tmp_path / "a.tif", entries, *blocks)
    blocks[1] = struct.pack("<3I", *(places[3] + 48 * n for n in range(3)))
    write_tiff(tmp_path / "a.tif", entries, *blocks)
    for read in (images.open_image, images.open_picture):
        with pytest.raises(
            ImageError, match="16 bits in separate planes is not read; save it interleaved"
        ):
            read(tmp_path / "a.tif")


def test_a_tiff_whose_zero_is_white_is_turned(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 65_536, (6, 4), dtype=np.uint16)
    entries = [
        (256, 3, 1, 4),
        (257, 3, 1, 6),
        (258, 3, 1, 16),
        (259, 3, 1, 1),
        (262, 3, 1, 0),
        (273, 4, 1, (0,)),
    ]
    entries += [(277, 3, 1, 1), (278, 3, 1, 6), (279, 4, 1, 48)]
    write_tiff(tmp_path / "a.tif", entries, pixels.tobytes())
    picture = images.open_picture(tmp_path / "a.tif")
    assert np.array_equal(images.to_levels(picture.pixels[..., 0], 16), 65_535 - pixels)
    assert (
        np.abs(np.asarray(images.open_image(tmp_path / "a.tif")) - (65_535.0 - pixels) / 257).max()
        <= 0.51
    )


def grey_tiff(path, levels, bits, photometric=1, kind=1, samples=1):
    """A TIFF of 2 x 8 pixels of these bytes, whose numbers are unsigned (1), signed (2) or floats
    (3).
    """
    depths = bits | bits << 16 if samples == 2 else bits
    entries = [
        (256, 3, 1, 8),
        (257, 3, 1, 2),
        (258, 3, samples, depths),
        (259, 3, 1, 1),
        (262, 3, 1, photometric),
    ]
    entries += [
        (273, 4, 1, (0,)),
        (277, 3, 1, samples),
        (278, 3, 1, 2),
        (279, 4, 1, len(levels)),
        (339, 3, 1, kind),
    ]
    write_tiff(path, [*entries, (338, 3, 1, 2)] if samples == 2 else entries, levels)
    return path


@pytest.mark.parametrize("brightest", [4095, 65_535, 2**32 - 1])
def test_twelve_bits_and_thirty_two_unsigned_ones_are_scaled(tmp_path, brightest):
    levels = np.linspace(0, brightest, 16).round().astype(np.uint32)
    if brightest == 4095:
        pairs = (int(a) << 12 | int(b) for a, b in levels.reshape(-1, 2))
        grey_tiff(tmp_path / "a.tif", b"".join(pair.to_bytes(3, "big") for pair in pairs), 12)
    else:
        grey_tiff(tmp_path / "a.tif", levels.astype("<u4").tobytes(), 32)
    wanted = (levels / brightest).reshape(2, 8)
    assert np.abs(images.open_picture(tmp_path / "a.tif").pixels[..., 0] - wanted).max() < 2e-5
    assert (
        np.abs(np.asarray(images.open_image(tmp_path / "a.tif")) / 255 - wanted).max() < 0.51 / 255
    )


@pytest.mark.parametrize(
    ("bits", "photometric", "kind", "samples", "reason"),
    [
        (8, 1, 2, 1, "signed 8-bit levels is not read; save it unsigned"),
        (32, 0, 3, 1, "floats whose zero is white is not read; save it with black at zero"),
        (16, 1, 1, 2, "of a kind that is not read .*; save it as PNG"),
    ],
)
def test_a_tiff_that_would_be_read_wrong_is_refused(
    tmp_path, bits, photometric, kind, samples, reason
):
    path = grey_tiff(
        tmp_path / "a.tif", bytes(bits // 8 * 16 * samples), bits, photometric, kind, samples
    )
    for read in (images.open_image, images.open_picture, read_picture):
        with pytest.raises(ImageError, match=reason):
            read(path)


def test_sixteen_bits_of_colour_come_from_a_tiff_of_either_byte_order(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 65_536, (6, 4, 3), dtype=np.uint16)
    for order, mark in (("<", b"II"), (">", b"MM")):
        entries = [
            (256, 3, 1, 4),
            (257, 3, 1, 6),
            (258, 3, 3, 134),
            (259, 3, 1, 1),
            (262, 3, 1, 2),
            (273, 4, 1, 140),
        ]
        entries += [(277, 3, 1, 3), (278, 3, 1, 6), (279, 4, 1, pixels.nbytes), (284, 3, 1, 1)]
        file = mark + struct.pack(f"{order}HIH", 42, 8, len(entries))
        for tag, kind, count, value in entries:
            file += struct.pack(f"{order}HHI", tag, kind, count)
            inline = kind == 3 and count == 1
            file += (
                struct.pack(f"{order}HH", value, 0) if inline else struct.pack(f"{order}I", value)
            )
        file += struct.pack(f"{order}I", 0)
        assert len(file) == 134
        file += struct.pack(f"{order}3H", 16, 16, 16) + pixels.astype(f"{order}u2").tobytes()
        (tmp_path / "a.tif").write_bytes(file)
        picture = images.open_picture(tmp_path / "a.tif")
        assert np.array_equal(images.to_levels(picture.pixels, 16), pixels)


def test_deep_pictures_are_upright_too_and_a_profile_costs_their_depth(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 65_536, (4, 6, 3), dtype=np.uint16)
    saving.save_image(pixels, tmp_path / "a.png")
    content = (tmp_path / "a.png").read_bytes()
    exif = Image.Exif()
    exif[274] = 6  # to be turned by a quarter, clockwise

    def with_chunk(name, data):
        chunk = (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )
        (tmp_path / "b.png").write_bytes(content[:33] + chunk + content[33:])
        return images.open_picture(tmp_path / "b.png")

    turned = with_chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0"))
    assert np.array_equal(images.to_levels(turned.pixels, 16), np.rot90(pixels, -1))
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("XYZ")).tobytes()
    other = with_chunk(b"iCCP", b"x\0\0" + zlib.compress(lab))
    assert other.pixels.dtype == np.uint8 and "16 bits a channel, read at 8" in other.notices


def test_sixteen_bits_go_into_a_png_alone(tmp_path):
    with pytest.raises(ImageError, match="sixteen bits are written as PNG"):
        saving.save_image(np.zeros((2, 2, 3), np.uint16), tmp_path / "a.tif")
