"""The page's promises: one look a picture and none a knob, nothing mixed up, a line for what goes
wrong.

The desk is tested on the tiny model, the page over a real server by gradio's own client, as a
script asks it.
"""

import base64
import html
import io
import math
import os
import signal
import socket
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from PIL import ExifTags, Image

pytest.importorskip("gradio", reason="no gradio here: pip install 'pisasr[app]'")

import gradio as gr
import httpx
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError

from pisasr.app import desk as desk_module
from pisasr.app import page as page_module
from pisasr.app.desk import (
    CORNERS,
    Desk,
    Finish,
    Limits,
    Store,
    Strengths,
    Wish,
    mask_image,
    read_mask,
)
from pisasr.app.page import COLORS, MAX_UPLOAD_MB, Listener, read_wish, serve
from pisasr.commands.app import LOCK, is_loopback
from pisasr.commands.main import main
from pisasr.errors import ImageError, PisasrError
from pisasr.files import is_locked
from pisasr.pictures.images import open_picture, to_levels

ROOT = Path(__file__).parents[1]
SMALL = {"process_size": 16}  # which the tiny model takes in no time
WISH = Wish(upscale=2)


def write(path: Path, size: tuple[int, int] = (20, 16), phase: float = 1.0) -> Path:
    """A small picture with something going on in it."""
    pixels = (tiny.wave((size[1], size[0], 3), phase, 80) + 128).to(torch.uint8).numpy()
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def photo(tmp_path) -> Path:
    return write(tmp_path / "photo.png")


@pytest.fixture
def desk(pipe) -> Desk:
    return Desk(pipe, **SMALL)


@pytest.fixture
def unet_calls(pipe):
    """How often a UNet was asked so far, as a list that grows."""
    calls: list[int] = []
    for unet in (pipe.unet, pipe.unet_pix):
        unet.register_forward_hook(lambda *_: calls.append(1))
    return calls


def png(mask: np.ndarray) -> str:
    """A mask [h, w] of levels, as the browser sends it."""
    file = io.BytesIO()
    Image.fromarray(mask).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


# --- the desk -------------------------------------------------------------------------------------


def test_a_picture_is_looked_at_once_and_knobs_ask_no_unet(desk, photo, unet_calls):
    opened = desk.open(photo, WISH)
    assert len(unet_calls) == 2
    results = [desk.show(opened, Strengths(pix, sem)) for pix, sem in ((1, 1), (0.3, 0.9), (1, 0))]
    list(desk.corners(opened))
    assert len(unet_calls) == 2
    assert len({result.tobytes() for result in results}) == 3


def test_what_is_shown_is_what_the_pipeline_makes(desk, pipe, photo):
    opened = desk.open(photo, WISH)
    for pair in ((1.0, 1.0), (0.4, 1.2)):
        expected = pipe(Image.open(photo), *pair, upscale=2, **SMALL).images[0]
        assert desk.show(opened, Strengths(*pair)).tobytes() == expected.tobytes()
    assert desk.repair(desk.read(photo), Strengths(0.4, 1.2), WISH).tobytes() == expected.tobytes()


def test_a_place_has_the_strengths_of_its_own(desk, photo):
    opened = desk.open(photo, WISH)
    half = np.zeros((16, 20), np.float32)
    half[:, :10] = 1
    everywhere = np.ones((16, 20), np.float32)
    inside = desk.show(opened, Strengths(0.2, 0.1))
    outside = desk.show(opened, Strengths(1, 1))
    assert (
        desk.show(opened, Strengths(1, 1, 0.2, 0.1, mask=everywhere)).tobytes() == inside.tobytes()
    )
    assert (
        desk.show(opened, Strengths(1, 1, 0.2, 0.1, mask=0 * half)).tobytes() == outside.tobytes()
    )
    mixed = desk.show(opened, Strengths(1, 1, 0.2, 0.1, mask=half))
    assert mixed.tobytes() not in (inside.tobytes(), outside.tobytes())


def test_a_feather_softens_the_rim_and_keeps_what_is_far(desk):
    place = np.zeros((64, 64), np.float32)
    place[:, :32] = 1
    pix, sem = Strengths(1, 1, 0, 0.5, feather=4, mask=place).lambdas(128)
    assert pix[0, 0] == 0 and pix[0, -1] == 1 and sem[0, 0] == 0.5
    assert 0.2 < pix[0, 32] < 0.8
    assert (np.diff(pix[0]) >= 0).all()


@pytest.mark.parametrize("feather", [1e308, 1e10, 129, -1, math.inf, math.nan, 10**400, "8", None])
def test_a_feather_that_would_end_the_page_is_refused_in_a_line(feather):
    with pytest.raises(PisasrError, match="^feather is"):
        Strengths(1, 1, 0, 0.5, feather, np.eye(64, dtype=np.float32)).lambdas(128)


def test_the_last_result_is_what_is_saved(desk, photo):
    opened = desk.open(photo, WISH)
    desk.show(opened, Strengths(1, 1))
    last = desk.show(opened, Strengths(0.5, 0.25))
    assert opened.result is last
    listener = Listener(desk)
    path = Path(listener.download(opened.key, "PNG", False))
    assert path.name == "photo_pix0.5_sem0.25.png"
    assert Image.open(path).tobytes() == last.tobytes()
    assert {
        Path(listener.download(opened.key, kind, True)).suffix for kind in ("JPEG", "WebP", "TIFF")
    } == {
        ".jpg",
        ".webp",
        ".tif",
    }


def test_a_download_may_have_sixteen_bits(desk, pipe, photo):
    opened = desk.open(photo, WISH)
    desk.show(opened, Strengths(0.5, 0.25), Finish("wavelet"))
    path = Path(Listener(desk).download(opened.key, "PNG16", False))
    options = {"upscale": 2, "color_fix": "wavelet", "output_type": "uint16", **SMALL}
    expected = pipe(Image.open(photo), 0.5, 0.25, **options).images[0]
    assert path.name == "photo_pix0.5_sem0.25_16bit.png"
    assert np.array_equal(to_levels(open_picture(path).pixels, 16), expected)
    assert len(np.unique(expected % 257)) > 50


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WebP", "TIFF"])
def test_a_file_tells_how_it_was_made_and_of_the_photo_only_if_asked(desk, tmp_path, kind):
    exif = Image.Exif()
    exif[ExifTags.Base.Model] = "camera"
    write(tmp_path / "photo.png")
    Image.open(tmp_path / "photo.png").save(tmp_path / "photo.jpg", exif=exif)
    opened = desk.open(tmp_path / "photo.jpg", WISH)
    desk.show(opened, Strengths(1, 0.7), Finish("wavelet"))
    for keep in (False, True):
        read = Image.open(Listener(desk).download(opened.key, kind, keep)).getexif()
        told = read[ExifTags.Base.Software]
        assert (
            "lambda_pix=1, lambda_sem=0.7" in told
            and "color_fix=wavelet" in told
            and "adapters=" in told
        )
        assert read.get(ExifTags.Base.Model) == ("camera" if keep else None)


def test_what_nobody_touches_is_put_away_and_its_files_with_it(desk, photo):
    now = [0.0]
    first, second = desk.open(photo, WISH), desk.open(photo, WISH)
    store = Store(first.held_bytes + second.held_bytes, idle_s=10, clock=lambda: now[0])
    store.put(first)
    now[0] = 9
    store.put(second)
    assert store.get(first.key) is first and len(store) == 2
    now[0] = 18.5
    store.get(first.key)
    now[0] = 20
    with pytest.raises(PisasrError, match="put away"):
        store.get(second.key)
    assert not Path(second.folder.name).exists() and Path(first.folder.name).exists()


def test_what_is_too_much_makes_room_for_the_newest(desk, photo):
    pictures = [desk.open(photo, WISH) for _ in range(3)]
    store = Store(2 * pictures[0].held_bytes, idle_s=10)
    for opened in pictures:
        store.put(opened)
    with pytest.raises(PisasrError, match="put away"):
        store.get(pictures[0].key)
    assert [store.get(opened.key) for opened in pictures[1:]] == pictures[1:]
    assert pictures[0].held_bytes > pictures[0].looked.z_L.nbytes


def test_a_forecast_is_what_then_happens(desk, photo):
    line = desk.forecast((20, 16), Wish(upscale=3))
    assert line == "20 × 16 → 60 × 48 px"
    assert desk.show(desk.open(photo, Wish(upscale=3)), Strengths()).size == (60, 48)
    assert desk.show(desk.open(photo, Wish(long_side=50)), Strengths()).size == (50, 40)


def test_tiles_are_told_as_they_are_done(desk, photo, monkeypatch):
    monkeypatch.setattr("pisasr.options.TILE_PX", 32)
    steps: list[tuple[int, int]] = []
    desk.open(photo, Wish(upscale=3), lambda *step: steps.append(step))
    count = steps[0][1]
    assert steps == [(done, count) for done in range(1, count + 1)] and count > 2
    desk.repair(desk.read(photo), Strengths(), WISH)
    assert len(steps) == count


@pytest.mark.parametrize(
    ("wish", "words"),
    [(Wish(long_side=10), "ask for more"), (Wish(upscale=2000), "million pixels")],
)
def test_impossible_sizes_are_a_line(desk, photo, wish, words):
    with pytest.raises(PisasrError, match=words):
        desk.open(photo, wish)
    assert not len(desk.store)


def test_choosing_takes_the_pair_that_the_rule_means(desk, photo, monkeypatch):
    """NIQE's parameters may be absent: another measure stands in, which is best where the result is
    brightest.
    """
    monkeypatch.setattr(
        desk_module,
        "load_scorers",
        lambda names, weights: ({name: lambda sr, hq, lq: sr.mean() for name in names}, {}),
    )
    opened = desk.open(photo, WISH)
    means = {
        (p, s): np.mean(desk.show(opened, Strengths(p, s)))
        for p in desk_module.GRID
        for s in desk_module.GRID
    }
    choice = desk.choose(opened, rule="psnr_lq")
    assert choice.pair == max(means, key=means.get)


@pytest.mark.parametrize(
    "text",
    [
        "data:image/png;base64,@@@",
        "data:image/png;base64,aGVsbG8=",
        "file:///etc/passwd",
        "data:image/svg+xml;base64,PHN2Zy8+",
        png(np.zeros((2000, 2000), np.uint8)),
        png(np.zeros((8, 8), np.uint8))[:-32],
        "data:image/png;base64," + 9_000_000 * "A",
    ],
)
def test_a_mask_that_nobody_painted_is_refused_in_a_line(text):
    with pytest.raises(PisasrError) as caught:
        read_mask(text)
    assert "\n" not in str(caught.value)


def test_masks_come_as_they_were_painted(tmp_path):
    levels = np.arange(48, dtype=np.uint8).reshape(6, 8) * 5
    assert np.array_equal(read_mask(png(levels)), levels.astype(np.float32) / 255)
    assert read_mask("") is None
    Image.fromarray(levels).save(tmp_path / "mask.png")
    picture = open_picture(write(tmp_path / "photo.png", (16, 12)))
    assert np.array_equal(mask_image(tmp_path / "mask.png", Limits(), picture), levels)
    with pytest.raises(ValueError, match="mask is a map of 8x6, the picture is 12x16"):
        mask_image(
            tmp_path / "mask.png", Limits(), open_picture(write(tmp_path / "photo.png", (12, 16)))
        )


def test_garbage_and_bombs_are_a_line(desk, tmp_path):
    (tmp_path / "garbage.png").write_bytes(b"not a picture")
    with pytest.raises(ImageError, match="not an image"):
        desk.open(tmp_path / "garbage.png", WISH)
    Image.new("1", (30_000, 30_000)).save(tmp_path / "bomb.png")
    with pytest.raises(ImageError, match="the limit is 16"):
        desk.open(tmp_path / "bomb.png", WISH)


def test_words_for_sizes():
    assert read_wish("3 times", None, "") == Wish(3.0)
    assert read_wish("to a long side of", 900, "a cat") == Wish(long_side=900, prompt="a cat")
    for nonsense in (None, -3, float("nan"), 1e9):
        with pytest.raises(PisasrError, match="long side"):
            read_wish("to a long side of", nonsense, "")


# --- what the page hears --------------------------------------------------------------------------

AS_IT_LIKES = next(iter(COLORS))


def test_a_size_that_cannot_be_leaves_the_picture_open(desk, photo):
    listener = Listener(desk)
    *_, (key, value) = listener.open(str(photo), None, 1, 1, "2 times", None, "", AS_IT_LIKES)
    assert len(value["corners"]) == len(CORNERS) and value["size"] == [40, 32]
    with pytest.raises(gr.Error, match="ask for more"):
        list(listener.open(str(photo), key, 1, 1, "to a long side of", 5, "", AS_IT_LIKES))
    assert "ask for more" in listener.forecast(str(photo), "to a long side of", 5, "")
    opened = desk.store.get(key)
    *_, (new, _) = listener.open(str(photo), key, 1, 1, "3 times", None, "", AS_IT_LIKES)
    with pytest.raises(PisasrError, match="put away"):
        desk.store.get(key)
    assert not Path(opened.folder.name).exists() and desk.store.get(new).size == (60, 48)


def test_other_colours_ask_no_unet(desk, photo, unet_calls):
    listener = Listener(desk)
    *_, (key, _) = listener.open(str(photo), None, 1, 1, "2 times", None, "", None, "adain", False)
    first = desk.store.get(key).result
    *_, (key, value) = listener.open(
        str(photo), key, 1, 1, "2 times", None, "", None, "leave them", False
    )
    assert len(unet_calls) == 2 and len(value["corners"]) == len(CORNERS)
    assert desk.store.get(key).result.tobytes() != first.tobytes()
    assert [
        new
        for new, _ in listener.open(
            str(photo), key, 1, 1, "2 times", None, "", None, "leave them", False
        )
    ] == [key]
    list(listener.open(str(photo), key, 1, 1, "3 times", None, "", None, "leave them", False))
    assert len(unet_calls) == 4


def test_the_former_picture_lies_open_until_the_page_has_the_new_one(desk, photo, tmp_path):
    listener, settings = Listener(desk), (1, 1, "2 times", None, "", AS_IT_LIKES)
    *_, (key, _) = listener.open(str(photo), None, *settings)
    new = listener.open(str(write(tmp_path / "new.png", phase=2)), key, *settings)
    next(new)
    assert desk.store.find(key) is not None
    list(new)
    assert desk.store.find(key) is None


def test_a_batch_tells_each_file_and_packs_what_is_whole(desk, photo, tmp_path):
    listener, made = Listener(desk), {}
    (tmp_path / "again").mkdir()
    strange = write(tmp_path / "![x](y)`<b>.png")
    (tmp_path / "broken.png").write_bytes(b"nothing")
    files = list(
        map(str, [photo, write(tmp_path / "again" / "photo.png"), strange, tmp_path / "broken.png"])
    )
    lines = [
        line
        for line, _ in listener.batch(
            files, 1, 1, "2 times", None, None, AS_IT_LIKES, False, "PNG", False, made
        )
    ]
    assert lines[-1].startswith("Done.") and "| `![x](y)'<b>.png` | 40 × 32 |" in lines[-1]
    assert "| `broken.png` | failed: not an image" in lines[-1]
    Path(made["folder"].name, ".half-written.png").write_bytes(b"so far")
    with zipfile.ZipFile(listener.gather(made)[1]) as archive:
        assert archive.namelist() == ["![x](y)`<b>.png", "photo-2.png", "photo.png"]


# --- the command ----------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.7", "example.org", ""])
def test_others_are_let_in_only_with_a_password(host, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["app", "--host", host])
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert "give --auth USER:PASSWORD" in said and said.count("\n") == 1
    assert all(map(is_loopback, ["127.0.0.1", "localhost", "::1"]))


@pytest.mark.parametrize("auth", ["ann", "ann:", ":secret"])
def test_half_a_password_is_none(auth, capsys):
    with pytest.raises(SystemExit):
        main(["app", "--auth", auth])
    assert "USER:PASSWORD" in capsys.readouterr().err


def test_a_port_that_cannot_be_is_a_line(monkeypatch, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["app", "--port", "99999"])
    assert stopped.value.code == 2 and "99999 is no port" in capsys.readouterr().err
    monkeypatch.setattr("pisasr.commands.app.load_model", lambda args: None)
    with gr.Blocks() as page:
        pass
    monkeypatch.setattr(page_module, "build", lambda desk: page)
    before = signal.getsignal(signal.SIGTERM)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["app", "--port", str(port)]) == 1
    signal.signal(signal.SIGTERM, before)
    said = capsys.readouterr().err
    assert f"port {port}; choose another --port" in said and "launch()" not in said


def test_the_command_ends_well_and_leaves_nothing_behind(base_folder, photo, tmp_path):
    scratch = tmp_path / "scratch"
    for name, mark in {"pisasr-dead": LOCK, "pisasr-alive": LOCK, "pisasr-mine": "lock"}.items():
        (scratch / name / "gradio").mkdir(parents=True)
        write(scratch / name / "gradio" / "old.png")
        (scratch / name / mark).touch()
    alive = (scratch / "pisasr-alive" / LOCK).open("r+b")
    assert is_locked(alive)
    words = [
        sys.executable,
        "-m",
        "pisasr.commands.main",
        "app",
        "--pretrained_model",
        base_folder,
        "--device",
        "cpu",
    ]
    started = subprocess.Popen(
        words, stdout=subprocess.PIPE, text=True, env={**os.environ, "TMPDIR": str(scratch)}
    )
    try:
        address = started.stdout.readline().split()[4]
        with photo.open("rb") as file:
            assert (
                httpx.post(f"{address}gradio_api/upload", files={"files": file}).status_code == 200
            )
        assert [path.name for path in scratch.rglob("photo.png")] == ["photo.png"]
        started.terminate()
        assert started.wait(timeout=60) == 0
    finally:
        started.kill()
    alive.close()
    assert sorted(path.parts[-3] for path in scratch.rglob("old.png")) == [
        "pisasr-alive",
        "pisasr-mine",
    ]
    assert len(list(scratch.iterdir())) == 2


# --- over a real server ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def page(base_folder, tmp_path_factory):
    from pisasr import PiSASRPipeline

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(tmp_path_factory.mktemp("gradio")))
        page = serve(Desk(PiSASRPipeline.from_pretrained(base_folder), **SMALL))
        page.folder = Path(os.environ["GRADIO_TEMP_DIR"])
        yield page
        page.close(verbose=False)


@pytest.fixture
def client(page, tmp_path):
    return Client(page.local_url, download_files=str(tmp_path / "got"), verbose=False)


def test_a_script_gets_what_the_pipeline_makes(client, pipe, photo):
    path = client.predict(
        handle_file(photo), lambda_pix=0.5, lambda_sem=0.75, upscale=2, api_name="/repair"
    )
    assert Path(path).name == "photo_pix0.5_sem0.75.png"
    assert (
        Image.open(path).tobytes()
        == pipe(Image.open(photo), 0.5, 0.75, upscale=2, **SMALL).images[0].tobytes()
    )


def test_a_script_can_ask_for_all_that_the_page_can(client, desk, photo, tmp_path):
    half = np.zeros((16, 20), np.uint8)
    half[:, :10] = 255
    Image.fromarray(half).save(tmp_path / "mask.png")
    place = {
        "mask": handle_file(tmp_path / "mask.png"),
        "inside_pix": 0.2,
        "inside_sem": 0.4,
        "feather": 2,
    }
    finish = {"color_fix": "wavelet", "format": "PNG16"}
    path = client.predict(handle_file(photo), 1, 0.5, 2, **place, **finish, api_name="/repair")
    strengths = Strengths(1, 0.5, 0.2, 0.4, 2, half.astype(np.float32) / 255)
    wish, picture = Wish(2), open_picture(photo)
    expected = desk.repair(picture, strengths, wish, Finish("wavelet"), bits=16)
    assert np.array_equal(to_levels(open_picture(path).pixels, 16), expected)
    told = Image.open(path).info["Software"]
    assert "inside_sem=0.4" in told


def test_one_thing_can_be_asked_by_a_script(client):
    assert list(client.view_api(return_format="dict")["named_endpoints"]) == ["/repair"]


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"upscale": 0.5}, "upscale is 0.5"),
        ({"upscale": 1000}, "million pixels"),
        ({"upscale": 1e308}, "million pixels"),
        ({"upscale": None}, "upscale is None"),
        ({"upscale": "4"}, "upscale is '4'"),
        ({"inside_pix": "x"}, "inside_pix is 'x'"),
        ({"feather": None}, "feather is None"),
        ({"lambda_pix": None}, "lambda_pix is None"),
        ({"color_fix": "violet"}, "color_fix is 'violet'"),
        ({"format": "GIF"}, "format is 'GIF'"),
    ],
)
def test_a_script_is_told_what_is_wrong_in_a_line(client, photo, wrong, words):
    with pytest.raises(AppError) as caught:
        client.predict(handle_file(photo), **{"upscale": 2, **wrong}, api_name="/repair")
    assert words in html.unescape(caught.value.message) and "\n" not in caught.value.message


def test_files_of_the_machine_are_no_pictures_of_the_page(page, client):
    """A path instead of an upload; an upload that is no picture; a name that climbs."""
    stolen = {"path": str(Path(__file__).resolve()), "meta": {"_type": "gradio.FileData"}}
    with pytest.raises(AppError):
        client.predict(stolen, api_name="/repair")
    with pytest.raises(AppError, match="not an image"):
        client.predict(handle_file(__file__), api_name="/repair")
    for path in (
        "/etc/passwd",
        "../../etc/passwd",
        "%2e%2e/%2e%2e/etc/passwd",
        str(Path(__file__).resolve()),
    ):
        assert httpx.get(f"{page.local_url}gradio_api/file={path}").status_code in (403, 404)
    upload = {"files": ("../../evil.png", b"\x89PNG")}
    (path,) = httpx.post(f"{page.local_url}gradio_api/upload", files=upload).json()
    assert (
        Path(path).resolve().is_relative_to(page.folder.resolve()) and Path(path).name == "evil.png"
    )


def test_what_is_too_large_to_upload_is_refused(page):
    upload = {"files": ("large.png", bytes((MAX_UPLOAD_MB + 1) * 2**20))}
    assert httpx.post(f"{page.local_url}gradio_api/upload", files=upload).status_code == 413


def test_nothing_is_shared_watched_or_left_open(page):
    config = httpx.get(f"{page.local_url}config").json()
    assert not config["analytics_enabled"] and not page.share
    assert page.server_name == "127.0.0.1" and page.delete_cache is not None
    named = [
        dependency["api_name"]
        for dependency in config["dependencies"]
        if dependency["api_visibility"] == "public"
    ]
    assert named == ["repair"]
    stranger = httpx.get(
        f"{page.local_url}config", headers={"origin": "https://example.org", "host": "localhost"}
    )
    assert "access-control-allow-origin" not in stranger.headers
    assert httpx.get(f"{page.local_url}monitoring/summary").status_code in (401, 403, 404)


def test_who_has_no_password_sees_nothing(base_folder):
    from pisasr import PiSASRPipeline

    page = serve(Desk(PiSASRPipeline.from_pretrained(base_folder), **SMALL), auth=("ann", "secret"))
    try:
        assert httpx.get(f"{page.local_url}config").status_code == 401
        for password, status in (("guess", 400), ("secret", 200)):
            given = {"username": "ann", "password": password}
            assert httpx.post(f"{page.local_url}login", data=given).status_code == status
    finally:
        page.close(verbose=False)


def test_more_clicks_than_may_wait_are_told_to_come_again(base_folder, photo, monkeypatch):
    from pisasr import PiSASRPipeline

    monkeypatch.setattr(page_module, "MAX_WAITING", 2)
    page = serve(Desk(PiSASRPipeline.from_pretrained(base_folder), **SMALL))
    try:
        client = Client(page.local_url, verbose=False)
        jobs = [client.submit(handle_file(photo), upscale=1, api_name="/repair") for _ in range(16)]
        failures = [job.exception(timeout=120) for job in jobs]
        assert None in failures and any(failures)
        assert all("queue is full" in str(failure).lower() for failure in failures if failure)
        assert client.predict(handle_file(photo), upscale=1, api_name="/repair")
    finally:
        page.close(verbose=False)


def test_the_readme_s_script_runs(tmp_path, monkeypatch, capsys):
    """As it stands in the README, but for the port; with the embedded model."""
    from pisasr import PiSASRPipeline

    script = next(
        part
        for part in (ROOT / "README.md").read_text().split("```python\n")
        if "gradio_client" in part[:40]
    )
    monkeypatch.chdir(ROOT)
    page = serve(Desk(PiSASRPipeline.from_pretrained()))
    try:
        exec(script.split("```")[0].replace("http://127.0.0.1:7860", page.local_url), {})
    finally:
        page.close(verbose=False)
    made = Path(capsys.readouterr().out.splitlines()[-1])
    assert made.name == "coffee_pix1_sem0.7.png" and Image.open(made).size == (600, 400)
