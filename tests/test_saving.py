"""A file holds all of its picture or nothing, and says no more of the photo than the user wants."""

import os

import numpy as np
import pytest
from PIL import ExifTags, Image

import pisasr
from pisasr.errors import ImageError
from pisasr.pictures.images import open_image, open_picture
from pisasr.pictures.metadata import Metadata, exif_bytes, made_with
from pisasr.pictures.saving import save_image

BASE, IFD = ExifTags.Base, ExifTags.IFD
MADE = made_with("embedded", {"lambda_pix": 1.0, "lambda_sem": 0.7, "prompt": ""})
FORMATS = ["png", "jpg", "webp", "tif"]


def camera() -> Image.Exif:
    """What a phone writes, turned by a quarter."""
    exif = Image.Exif()
    exif[BASE.Orientation], exif[BASE.Make], exif[BASE.Software] = 6, "Maker", "a phone 1.0"
    exif[BASE.Artist] = "© Zoë".encode()
    exif[IFD.Exif] = {
        BASE.DateTimeOriginal: "2024:05:06 07:08:09",
        BASE.MakerNote: b"secret of the maker",
        BASE.ExifImageWidth: 7,
    }
    exif[IFD.GPSInfo] = {1: "N", 2: (52.0, 30.0, 15.5)}
    return exif


def drawn(mode: str = "RGB", size: tuple[int, int] = (9, 6)) -> Image.Image:
    shape = (size[1], size[0], len(mode))
    levels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    return Image.fromarray(levels.squeeze(-1) if len(mode) == 1 else levels)


def photo_with_exif(folder, name="in.jpg"):
    exif = dict(camera())
    options = {"tiffinfo": exif} if name.endswith("tif") else {"exif": exif_bytes(exif)}
    drawn(size=(7, 5)).save(folder / name, **options)
    return folder / name


@pytest.mark.parametrize("ending", [*FORMATS, "bmp"])
def test_written_pictures_read_back_and_hold_nothing_else(tmp_path, ending):
    picture = open_image(photo_with_exif(tmp_path))
    save_image(picture, tmp_path / f"out.{ending}")
    difference = np.asarray(open_image(tmp_path / f"out.{ending}"), float) - np.asarray(picture)
    assert np.abs(difference).mean() < (3 if ending == "jpg" else 1e-9)
    content = (tmp_path / f"out.{ending}").read_bytes()
    assert not any(word in content for word in (b"Maker", b"Zo", b"2024:", b"pisasr"))
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("source", ["jpg", "tif"])
@pytest.mark.parametrize("made", [*FORMATS, "deep"])
def test_the_photos_exif_is_kept_where_it_is_still_true(tmp_path, source, made):
    exif = open_picture(photo_with_exif(tmp_path, f"in.{source}")).exif
    deep = np.asarray(drawn()).astype(np.uint16) * 257
    path = tmp_path / f"out.{'png' if made == 'deep' else made}"
    save_image(deep if made == "deep" else drawn(), path, Metadata(MADE, exif))
    with Image.open(path) as image:
        image.load()
        found = image.getexif()
        details, place = found.get_ifd(IFD.Exif), found.get_ifd(IFD.GPSInfo)
    assert (found[BASE.Make], found[BASE.Orientation], found[BASE.Software]) == ("Maker", 1, MADE)
    assert found[BASE.Artist].encode("latin-1").decode() == "© Zoë"
    assert details[BASE.DateTimeOriginal] == "2024:05:06 07:08:09"
    assert (details[BASE.ExifImageWidth], details[BASE.ExifImageHeight]) == (9, 6)
    assert place[1] == "N" and [float(x) for x in place[2]] == [52.0, 30.0, 15.5]
    assert b"secret" not in path.read_bytes()
    assert open_picture(path).size == (9, 6)


def test_a_png_names_its_software_in_words_too(tmp_path):
    for picture in (drawn(), np.asarray(drawn()).astype(np.uint16)):
        save_image(picture, tmp_path / "a.png", Metadata(MADE))
        with Image.open(tmp_path / "a.png") as image:
            image.load()
            assert image.text == {"Software": MADE}


def test_equal_pictures_are_equal_files(tmp_path):
    for picture in (drawn(), np.asarray(drawn()).astype(np.uint16)):
        for name in "ab":
            save_image(picture, tmp_path / f"{name}.png", Metadata(MADE))
        assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_what_made_it_is_one_line_of_ascii():
    version = pisasr.__version__
    assert MADE == f"pisasr {version} (model=embedded, lambda_pix=1, lambda_sem=0.7)"
    line = made_with("m", {"prompt": "a café\nby night", "tile_size": None, "seed": 0})
    assert line.endswith(r"prompt=a caf\xe9\nby night, seed=0)") and line.isascii()


def test_damaged_exif_costs_a_notice_not_the_picture(tmp_path):
    drawn(size=(7, 5)).save(tmp_path / "in.jpg", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x05rubbish")
    picture = open_picture(tmp_path / "in.jpg")
    assert picture.exif is None and picture.size == (7, 5)


def test_what_a_format_cannot_hold_is_refused(tmp_path):
    for picture, name in [
        (drawn("RGBA"), "a.jpg"),
        (Image.new("L", (65_536, 1)), "a.jpg"),
        (Image.new("L", (1, 16_384)), "a.webp"),
        (np.zeros((2, 2, 3), np.uint16), "a.tif"),
        (drawn(), "a.gif"),
    ]:
        with pytest.raises(ImageError, match="png"):
            save_image(picture, tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    save_image(drawn(), path)
    before = path.read_bytes()

    def full_disk(self, file, **_):
        file.write(b"half a pict")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full_disk)
    with pytest.raises(OSError):
        save_image(drawn(), path)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["a.png"]
