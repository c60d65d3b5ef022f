"""The page predicts once a picture, decodes for every knob, mixes nothing up and refuses in a line.

The session is tested on the tiny model, the page over a real server by gradio's own client.
"""

import base64
import io
import math
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import torch
from PIL import ExifTags, Image

pytest.importorskip("gradio", reason="needs pisasr[app]")

import gradio as gr
import httpx
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError

from pisasr import PiSASRPipeline
from pisasr.app.page import MAX_UPLOAD_MB, open_photo, pack, repair_all, serve
from pisasr.app.session import Session, Settings, Store, read_mask
from pisasr.commands.app import is_loopback
from pisasr.commands.main import main
from pisasr.errors import ImageError, PisasrError, explain
from pisasr.pictures.images import open_picture, to_levels

README = Path(__file__).parents[1] / "pisasr" / "app" / "README.md"
SMALL = {"process_size": 16}  # fast with the tiny model
TWICE = Settings(upscale=2)


def write(path: Path, size: tuple[int, int] = (20, 16), phase: float = 1.0) -> Path:
    pixels = (tiny.wave((size[1], size[0], 3), phase, 80) + 128).to(torch.uint8).numpy()
    Image.fromarray(pixels).save(path)
    return path


def png(mask: np.ndarray) -> str:
    """A mask [h, w] of levels, as the browser sends it."""
    file = io.BytesIO()
    Image.fromarray(mask).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


@pytest.fixture
def photo(tmp_path) -> Path:
    return write(tmp_path / "photo.png")


@pytest.fixture
def session(pipe) -> Session:
    return Session(pipe, **SMALL)


# --- the session ----------------------------------------------------------------------------------


def test_strengths_ask_no_unet_and_give_what_the_pipeline_gives(session, pipe, photo, passes):
    opened = session.open(photo, TWICE)
    assert len(passes) == 2
    list(session.corners(opened))
    for pix, sem in ((1.0, 1.0), (0.4, 1.2)):
        settings = Settings(pix, sem, upscale=2, color_fix="wavelet")
        shown = session.show(opened, settings)
        assert len(passes) == 2
        options = {"upscale": 2, "color_fix": "wavelet", **SMALL}
        expected = pipe(Image.open(photo), pix, sem, **options).images[0]
        assert shown.tobytes() == expected.tobytes()
        session.repair_file(photo, photo.with_name("made.png"), settings)
        assert Image.open(photo.with_name("made.png")).tobytes() == expected.tobytes()
        passes[2:] = []


def test_the_inside_of_a_mask_has_strengths_of_its_own(session, photo):
    opened = session.open(photo, TWICE)
    half = np.zeros((16, 20), np.float32)
    half[:, :10] = 1
    both = Settings(1, 1, 0.2, 0.1, feather=0, upscale=2)
    inside = session.show(opened, Settings(0.2, 0.1, upscale=2)).tobytes()
    outside = session.show(opened, TWICE).tobytes()
    assert session.show(opened, both, np.ones_like(half)).tobytes() == inside
    assert session.show(opened, both, 0 * half).tobytes() == outside
    assert session.show(opened, both, half).tobytes() not in (inside, outside)


@pytest.mark.parametrize("feather", [1e308, 129, -1, math.inf, math.nan, 10**400, "8", None])
def test_a_feather_that_would_end_the_process_is_refused(feather):
    with pytest.raises(PisasrError, match="^feather is"):
        Settings(1, 1, 0, 0.5, feather).strengths(np.eye(64, dtype=np.float32), 128)


def test_a_download_is_what_was_shown_and_holds_how_it_was_made(session, tmp_path):
    exif = Image.Exif()
    exif[ExifTags.Base.Model] = "camera"
    Image.open(write(tmp_path / "photo.png")).save(tmp_path / "photo.jpg", exif=exif)
    opened = session.open(tmp_path / "photo.jpg", TWICE)
    session.show(opened, TWICE)
    shown = session.show(opened, Settings(1, 0.7, upscale=2, color_fix="wavelet"))
    for keep in (False, True):
        path = session.download(opened, "PNG", keep)
        assert path.name == "photo_pix1_sem0.7.png"
        image = Image.open(path)
        assert image.tobytes() == shown.tobytes()
        software = image.getexif()[ExifTags.Base.Software]
        assert "lambda_sem=0.7" in software and "color_fix=wavelet" in software
        assert image.getexif().get(ExifTags.Base.Model) == ("camera" if keep else None)


def test_a_download_may_have_sixteen_bits(session, pipe, photo):
    opened = session.open(photo, TWICE)
    session.show(opened, Settings(0.5, 0.25, upscale=2))
    path = session.download(opened, "PNG16", False)
    options = {"upscale": 2, "output_type": "uint16", **SMALL}
    expected = pipe(Image.open(photo), 0.5, 0.25, **options).images[0]
    assert np.array_equal(to_levels(open_picture(path).pixels, 16), expected)
    assert len(np.unique(expected % 257)) > 50


def test_memory_is_bounded_and_the_least_recently_used_leaves(session, photo):
    pictures = [session.open(photo, TWICE) for _ in range(3)]
    store = Store(2 * pictures[0].held_bytes)
    for opened in pictures[:2]:
        store.put(opened)
    store.get(pictures[0].key)  # used last
    store.put(pictures[2])
    assert [store.find(opened.key) for opened in pictures] == [pictures[0], None, pictures[2]]
    assert [opened.folder.exists() for opened in pictures] == [True, False, True]
    assert pictures[0].held_bytes > 3 * 40 * 32 + 3 * 20 * 16
    with pytest.raises(PisasrError):
        store.get(pictures[1].key)


def test_impossible_pictures_are_a_line_and_leave_nothing_open(session, photo, tmp_path):
    with pytest.raises(PisasrError, match="million pixels"):
        session.open(photo, Settings(upscale=2000))
    (tmp_path / "garbage.png").write_bytes(b"not a picture")
    with pytest.raises(ImageError):
        session.open(tmp_path / "garbage.png", TWICE)
    Image.new("1", (5000, 4000)).save(tmp_path / "bomb.png")
    with pytest.raises(ImageError, match="16"):
        session.open(tmp_path / "bomb.png", TWICE)
    assert not list(session.store._pictures)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"upscale": 0.5}, "upscale is 0.5"),
        ({"upscale": 1e308}, "million pixels"),
        ({"upscale": "4"}, "upscale is '4'"),
        ({"lambda_pix": None}, "lambda_pix is None"),
        ({"color_fix": "violet"}, "color_fix is 'violet'"),
        ({"format": "GIF"}, "format is 'GIF'"),
        ({"lamda_pix": 1}, "lamda_pix"),
        ([1, 2], "settings"),
    ],
)
def test_wrong_settings_are_named_in_a_line(session, photo, tmp_path, wrong, words):
    with pytest.raises((PisasrError, TypeError, ValueError)) as caught:
        session.repair_file(photo, tmp_path / "made.png", Settings.read(wrong))
    assert words in explain(caught.value) and "\n" not in explain(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "data:image/png;base64,@@@",
        "data:image/png;base64,aGVsbG8=",
        "file:///etc/passwd",
        "data:image/svg+xml;base64,PHN2Zy8+",
        png(np.zeros((2000, 2000), np.uint8)),
        "data:image/png;base64," + 9_000_000 * "A",
    ],
)
def test_a_forged_mask_is_refused_where_a_painted_one_arrives(text):
    with pytest.raises(PisasrError) as caught:
        read_mask(text)
    assert "\n" not in str(caught.value)
    levels = np.arange(48, dtype=np.uint8).reshape(6, 8) * 5
    assert np.array_equal(read_mask(png(levels)), levels.astype(np.float32) / 255)


# --- what the page does ---------------------------------------------------------------------------


def steps(session: Session, photo: Path, key: str | None, settings: Settings) -> list:
    return list(open_photo(session, str(photo), key, settings, lambda *_, **words: None))


def test_another_size_replaces_the_picture_and_an_impossible_one_leaves_it(session, photo):
    *_, (key, value, line) = steps(session, photo, None, TWICE)
    assert len(value["corners"]) == 4 and value["size"] == [40, 32] and "40 × 32" in line
    with pytest.raises(PisasrError, match="million"):
        steps(session, photo, key, Settings(upscale=2000))
    opened = session.store.get(key)
    new = open_photo(session, str(photo), key, Settings(upscale=3), lambda *_, **words: None)
    next(new)
    assert session.store.find(key) is not None  # until the page has the new one
    *_, (new_key, _, _) = new
    assert session.store.find(key) is None and not opened.folder.exists()
    assert session.store.get(new_key).size == (60, 48)


def test_other_colors_ask_no_unet_and_the_same_photo_again_nothing(session, photo, passes):
    *_, (key, _, _) = steps(session, photo, None, TWICE)
    first = session.store.get(key).result
    bare = Settings(upscale=2, color_fix="none")
    *_, (key, _, _) = steps(session, photo, key, bare)
    assert session.store.get(key).result.tobytes() != first.tobytes() and len(passes) == 2
    assert len(steps(session, photo, key, bare)) == 1 and len(passes) == 2
    opened = session.store.get(key)
    session.show(opened, Settings(upscale=3))  # the page is ahead of its picture
    assert opened.shown.upscale == 2 and not opened.fits(photo, Settings(upscale=3))


def test_tiles_are_counted_while_a_picture_is_predicted(session, photo, monkeypatch):
    monkeypatch.setattr("pisasr.options.TILE_PX", 32)
    counts = []
    session.open(photo, Settings(upscale=3), on_tile=lambda *count: counts.append(count))
    total = counts[-1][1]
    assert total > 2 and counts == [(done, total) for done in range(1, total + 1)]


def test_a_batch_reports_each_file_and_packs_what_is_whole(session, photo, tmp_path):
    (tmp_path / "again").mkdir()
    (tmp_path / "broken.png").write_bytes(b"nothing")
    again, folder = write(tmp_path / "again" / "photo.png"), session.result_folder()
    files = list(map(str, [photo, again, tmp_path / "broken.png"]))
    *_, text = repair_all(session, files, TWICE, folder)
    assert text.splitlines()[-1] == "Done." and "broken.png: failed" in text
    (folder / ".half-written.png").write_bytes(b"so far")
    archive = pack(folder, tmp_path / "repaired.zip")
    assert zipfile.ZipFile(archive).namelist() == ["photo-2.png", "photo.png"]
    assert pack(session.result_folder(), tmp_path / "empty.zip") is None


# --- the command ----------------------------------------------------------------------------------


WRONG = ["--host 0.0.0.0", "--host ::", "--host example.org", "--auth ann", "--port 99999"]


@pytest.mark.parametrize("words", WRONG)
def test_others_need_a_whole_password_and_a_port_exists(words, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["app", *words.split()])
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and words[:6] in error and error.count("\n") == 1
    assert all(map(is_loopback, ["127.0.0.1", "localhost", "::1"]))


# --- over a real server ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def page(base_folder, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("gradio")
        patch.setenv("GRADIO_TEMP_DIR", str(folder))
        session = Session(PiSASRPipeline.from_pretrained(base_folder), **SMALL)
        page = serve(session)
        page.folder, page.session = folder, session
        yield page
        page.close(verbose=False)


@pytest.fixture
def client(page, tmp_path):
    return Client(page.local_url, download_files=str(tmp_path / "got"), verbose=False)


def test_a_script_gets_what_the_pipeline_makes(client, pipe, photo):
    settings = {"lambda_pix": 0.5, "lambda_sem": 0.75, "upscale": 2, "color_fix": "wavelet"}
    path = client.predict(handle_file(photo), settings, api_name="/repair")
    assert Path(path).name == "photo_pix0.5_sem0.75.png"
    expected = pipe(Image.open(photo), **settings, **SMALL).images[0]
    assert Image.open(path).tobytes() == expected.tobytes()
    assert list(client.view_api(return_format="dict")["named_endpoints"]) == ["/repair"]
    with pytest.raises(AppError, match="upscale is 0.5") as caught:
        client.predict(handle_file(photo), {"upscale": 0.5}, api_name="/repair")
    assert "\n" not in caught.value.message


def test_the_page_as_it_starts_opens_and_settles_a_picture(page, photo):
    """Its events, called as gradio does with what its controls hold."""
    functions = {fn.name: fn for fn in page.fns.values()}
    inputs = {c for name in ("drop", "settle") for c in functions[name].inputs}
    values = {c: c.preprocess(getattr(c, "value", None)) for c in inputs}
    by_id = {c.elem_id: c for c in inputs}
    (key,) = (c for c in inputs if isinstance(c, gr.State))
    values[by_id["photo"]] = str(photo)
    *_, (opened, _, line) = functions["drop"].fn(values, progress=lambda *_, **words: None)
    values |= {key: opened, by_id["sem"]: 0.5, by_id["pix"]: by_id["pix"].preprocess(None)}
    event = SimpleNamespace(mask="", turn=7)
    assert functions["settle"].fn(values, event)["turn"] == 7 and "80 × 64" in line
    assert page.session.store.get(opened).shown == Settings(0, 0.5)  # an emptied number is 0


def test_files_of_the_machine_can_not_be_had(page, client):
    """A path instead of an upload; an upload that is no picture; a name that climbs."""
    source = str(Path(__file__).resolve())
    with pytest.raises(AppError):
        client.predict({"path": source, "meta": {"_type": "gradio.FileData"}}, api_name="/repair")
    with pytest.raises(AppError, match="not an image"):
        client.predict(handle_file(source), api_name="/repair")
    for path in ("/etc/passwd", "../../etc/passwd", "%2e%2e/%2e%2e/etc/passwd", source):
        assert httpx.get(f"{page.local_url}gradio_api/file={path}").status_code in (403, 404)
    upload = {"files": ("../../evil.png", b"\x89PNG")}
    (path,) = httpx.post(f"{page.local_url}gradio_api/upload", files=upload).json()
    assert Path(path).resolve().is_relative_to(page.folder.resolve())
    upload = {"files": ("large.png", bytes((MAX_UPLOAD_MB + 1) * 2**20))}
    assert httpx.post(f"{page.local_url}gradio_api/upload", files=upload).status_code == 413


def test_nothing_is_shared_watched_or_left_open(page):
    config = httpx.get(f"{page.local_url}config").json()
    assert not config["analytics_enabled"] and not page.share
    assert page.server_name == "127.0.0.1" and page.delete_cache is not None
    public = [d["api_name"] for d in config["dependencies"] if d["api_visibility"] == "public"]
    assert public == ["repair"]
    headers = {"origin": "https://example.org", "host": "localhost"}
    answer = httpx.get(f"{page.local_url}config", headers=headers)
    assert "access-control-allow-origin" not in answer.headers
    assert httpx.get(f"{page.local_url}monitoring/summary").status_code in (401, 403, 404)


def test_a_visit_does_not_copy_open_pictures(page, photo):
    opened = page.session.open(photo, TWICE)
    copies = []
    type(opened).__deepcopy__ = lambda self, memo: copies.append(self) or self
    try:
        assert httpx.get(f"{page.local_url}config").status_code == 200
    finally:
        del type(opened).__deepcopy__
    assert copies == []


def test_without_the_password_nothing_is_shown(base_folder):
    session = Session(PiSASRPipeline.from_pretrained(base_folder), **SMALL)
    page = serve(session, auth=("ann", "secret"))
    try:
        assert httpx.get(f"{page.local_url}config").status_code == 401
        for password, status in (("guess", 400), ("secret", 200)):
            given = {"username": "ann", "password": password}
            assert httpx.post(f"{page.local_url}login", data=given).status_code == status
    finally:
        page.close(verbose=False)


@pytest.mark.slow
def test_the_script_on_the_readme_runs(monkeypatch, capsys):
    """As it stands there, but for the port; with the embedded model."""
    script = README.read_text().split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(README.parents[2])
    page = serve(Session(PiSASRPipeline.from_pretrained()))
    try:
        exec(script.replace("http://127.0.0.1:7860", page.local_url), {})
    finally:
        page.close(verbose=False)
    made = Path(capsys.readouterr().out.splitlines()[-1])
    assert made.name == "coffee_pix1_sem0.7.png" and Image.open(made).size == (600, 400)
