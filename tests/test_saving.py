"""What a file tells beside its picture: nothing unless asked; then the input's EXIF, upright and of
the new size.
"""

import struct
import zlib

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageCms

import pisasr
from pisasr.errors import ImageError
from pisasr.pictures.images import open_image, open_picture
from pisasr.pictures.saving import Metadata, _latin, exif_bytes, made_with, save_image

BASE, IFD = ExifTags.Base, ExifTags.IFD
MADE = made_with(
    "embedded, adapters=0123456789ab", {"lambda_pix": 1.0, "lambda_sem": 0.7, "prompt": ""}
)
FORMATS = ["png", "jpg", "webp", "tif"]


def camera() -> Image.Exif:
    """What a phone writes, with a thumbnail's and a maker's share, turned by a quarter."""
    exif = Image.Exif()
    exif[BASE.Orientation], exif[BASE.Make], exif[BASE.Copyright] = 6, "Maker", "someone"
    exif[BASE.ImageDescription], exif[BASE.Software] = "a caption", "a phone 1.0"
    exif[BASE.Artist] = "© Zoë".encode()
    exif[IFD.Exif] = {
        BASE.DateTimeOriginal: "2024:05:06 07:08:09",
        BASE.ExposureTime: 0.008,
        BASE.MakerNote: b"secret of the maker",
        BASE.LensModel: "Zoë 35",
        BASE.ExifImageWidth: 7,
        BASE.ExifImageHeight: 5,
    }
    exif[IFD.GPSInfo] = {1: "N", 2: (52.0, 30.0, 15.5)}
    return exif


def drawn(mode: str = "RGB", size: tuple[int, int] = (9, 6)) -> Image.Image:
    channels = len(mode)
    levels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], channels), dtype=np.uint8)
    return Image.fromarray(levels.squeeze(-1) if channels == 1 else levels)


def input_with(exif: Image.Exif, path):
    told = (
        {"tiffinfo": _latin(dict(exif))}
        if path.suffix == ".tif"
        else {"exif": exif_bytes(dict(exif))}
    )
    drawn(size=(7, 5)).save(path, **told)
    return path


@pytest.mark.parametrize("came", FORMATS)
@pytest.mark.parametrize("made", FORMATS)
def test_the_inputs_exif_is_kept_where_it_is_still_true(tmp_path, came, made):
    exif = open_picture(input_with(camera(), tmp_path / f"in.{came}")).exif
    save_image(drawn(), tmp_path / f"out.{made}", Metadata(MADE, exif))
    with Image.open(tmp_path / f"out.{made}") as image:
        told = image.getexif()
        details, place = told.get_ifd(IFD.Exif), told.get_ifd(IFD.GPSInfo)
        assert np.array_equal(np.asarray(image), np.asarray(drawn())) or made == "jpg"
        assert ImageCms.getProfileDescription(
            ImageCms.ImageCmsProfile(_file(image.info["icc_profile"]))
        ).strip() == ("sRGB built-in")
    assert (told[BASE.Make], told[BASE.Copyright], told[BASE.ImageDescription]) == (
        "Maker",
        "someone",
        "a caption",
    )
    assert (
        told[BASE.Artist].encode("latin-1").decode() == "© Zoë"
        and details[BASE.LensModel] == "Zoë 35"
    )
    assert told[BASE.Orientation] == 1 and told[BASE.Software] == MADE
    assert (
        details[BASE.DateTimeOriginal] == "2024:05:06 07:08:09"
        and float(details[BASE.ExposureTime]) == 0.008
    )
    assert (
        details[BASE.ExifImageWidth],
        details[BASE.ExifImageHeight],
        details[BASE.ColorSpace],
    ) == (9, 6, 1)
    assert (
        BASE.MakerNote not in details and b"secret" not in (tmp_path / f"out.{made}").read_bytes()
    )
    assert place[1] == "N" and [float(x) for x in place[2]] == [52.0, 30.0, 15.5]
    assert open_image(tmp_path / f"out.{made}").size == (9, 6)


def _file(content: bytes):
    from io import BytesIO

    return BytesIO(content)


def test_a_thumbnail_stays_behind(tmp_path):
    """A JPEG's EXIF with a second directory, as cameras write it."""
    first = struct.pack("<HHHI4sI", 1, BASE.Make, 2, 4, b"Me\0\0", 26)
    second = struct.pack("<HHHIIHHIII", 2, 513, 4, 1, 56, 514, 4, 1, 9, 0)
    block = b"Exif\0\0II*\0" + struct.pack("<I", 8) + first + second + b"THUMBNAIL"
    drawn().save(tmp_path / "in.jpg", exif=block)
    with Image.open(tmp_path / "in.jpg") as image:
        assert image.getexif().get_ifd(IFD.IFD1)[513] == 56
    exif = open_picture(tmp_path / "in.jpg").exif
    assert b"Me" in exif and b"THUMBNAIL" not in exif


@pytest.mark.parametrize("made", [*FORMATS, "bmp"])
def test_without_metadata_a_file_is_its_picture_alone(tmp_path, made):
    picture = open_image(input_with(camera(), tmp_path / "in.jpg"))
    save_image(picture, tmp_path / f"out.{made}")
    content = (tmp_path / f"out.{made}").read_bytes()
    assert not any(
        word in content for word in (b"Maker", b"someone", b"caption", b"2024:", b"pisasr", b"sRGB")
    )
    with Image.open(tmp_path / f"out.{made}") as image:
        assert not image.getexif().get_ifd(IFD.GPSInfo) and "icc_profile" not in image.info


def test_sixteen_bits_tell_the_same(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 65_536, (6, 9, 3), dtype=np.uint16)
    exif = open_picture(input_with(camera(), tmp_path / "in.jpg")).exif
    save_image(pixels, tmp_path / "out.png", Metadata(MADE, exif))
    with Image.open(tmp_path / "out.png") as image:
        image.load()
        assert image.text["Software"] == image.getexif()[BASE.Software] == MADE
        assert image.getexif().get_ifd(IFD.Exif)[BASE.ExifImageWidth] == 9
    picture = open_picture(tmp_path / "out.png")
    assert np.array_equal((picture.pixels * 65_535).round(), pixels) and picture.notices == []
    save_image(pixels, tmp_path / "again.png", Metadata(MADE, picture.exif))
    assert (tmp_path / "again.png").read_bytes() == (tmp_path / "out.png").read_bytes()


def test_grey_has_no_profile_of_colours_and_png_says_it_in_words_too(tmp_path):
    for mode in ("L", "RGBA"):
        save_image(drawn(mode), tmp_path / "a.png", Metadata(MADE))
        with Image.open(tmp_path / "a.png") as image:
            image.load()
            assert image.text == {"Software": MADE} and ("icc_profile" in image.info) == (
                mode == "RGBA"
            )


def test_equal_pictures_are_equal_files_on_any_day(tmp_path, monkeypatch):
    save_image(drawn(), tmp_path / "a.png", Metadata(MADE))
    content = (tmp_path / "a.png").read_bytes()
    profile = zlib.decompress(content.split(b"iCCP", 1)[1].split(b"\0\0", 1)[1])
    assert struct.unpack(">6H", profile[24:36]) == (1999, 1, 1, 0, 0, 0)


def test_what_made_it_is_one_line_of_ascii():
    assert MADE == (
        f"pisasr {pisasr.__version__} (model=embedded, adapters=0123456789ab, lambda_pix=1, lambda_sem=0.7)"
    )
    line = made_with(
        "m", {"prompt": "a café\nby night", "low_memory": False, "tile_size": None, "seed": 0}
    )
    assert (
        line.endswith(r"prompt=a caf\xe9\nby night, seed=0)")
        and line.isascii()
        and "\n" not in line
    )


def test_exif_that_cannot_be_kept_costs_a_notice_not_the_picture(tmp_path, monkeypatch):
    exif = camera()
    del exif[BASE.Orientation]
    path = input_with(exif, tmp_path / "in.jpg")

    def broken(self, offset=8):
        raise struct.error("what a camera wrote")

    monkeypatch.setattr(Image.Exif, "tobytes", broken)
    picture = open_picture(path)
    assert picture.exif is None and picture.notices == ["EXIF data is damaged and can't be kept"]
    assert picture.size == (7, 5)


def test_exif_that_a_jpeg_cannot_hold_is_refused(tmp_path):
    exif = Image.Exif()
    exif[BASE.ImageDescription] = "x" * 65_400
    metadata = Metadata(MADE, exif.tobytes())
    with pytest.raises(
        ImageError, match=r"EXIF data of \d+ bytes is more than a JPEG holds .*; write .png"
    ):
        save_image(drawn(), tmp_path / "out.jpg", metadata)
    save_image(drawn(), tmp_path / "out.png", metadata)
    assert [path.name for path in tmp_path.iterdir()] == ["out.png"]
