"""The page predicts what is seen, saves what is seen, gives all a turn and refuses in a line.

The session is tested on tiny models, the page over a real server, also by gradio's own client.
"""

import base64
import io
import json
import socket
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from PIL import ExifTags, Image

pytest.importorskip("gradio", reason="needs pisasr[app]")

import httpx
from gradio.utils import get_upload_folder
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError

from pisasr.app import routes
from pisasr.app.page import repair_all, serve
from pisasr.app.session import CELL, Box, Job, Session, Settings, Store, read_mask
from pisasr.commands import app as command
from pisasr.commands.main import main
from pisasr.errors import explain
from pisasr.pictures.images import open_picture, to_levels

README = Path(__file__).parents[1] / "pisasr" / "app" / "README.md"
TWICE, NOTHING = Settings(upscale=2), Box(0, 0, 0, 0)


def write(path: Path, size: tuple[int, int] = (20, 16), phase: float = 1.0) -> Path:
    """A smooth photo, so that nothing is clipped."""
    pixels = (tiny.wave((9, 12, 3), phase, 40) + 128).to(torch.uint8).numpy()
    Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC).save(path)
    return path


@pytest.fixture(autouse=True)
def small_boxes(monkeypatch):
    """A quarter of the sides, so that a picture of a few kilobytes is cut."""
    smaller = {"SEEN_PX": (240, 160), "REST_PX": (192, 192), "MARGIN_PX": 64, "SMALL_PX": 256}
    smaller["AT_ONCE_PX"] = 320 * 256
    for name, value in smaller.items():
        monkeypatch.setattr(f"pisasr.app.session.{name}", value)


@pytest.fixture
def photo(tmp_path) -> Path:
    return write(tmp_path / "photo.png")


@pytest.fixture
def large(tmp_path) -> Path:
    return write(tmp_path / "large.png", (120, 88))


@pytest.fixture
def session(pipe) -> Session:
    pipe.register_to_config(process_size=16)  # fast with the tiny Stable Diffusion
    return Session(pipe)


@pytest.fixture(scope="module")
def linear() -> Session:
    return Session(tiny.linear_pipe())


def look(session: Session, opened, view: Box = NOTHING, whole: bool = True) -> list[dict]:
    job = Job(session.device)
    session.look(opened, view, whole, job)
    return list(job.news)


def opened_whole(session: Session, path: Path, settings: Settings = TWICE):
    opened = session.open(path, settings, path.name)
    look(session, opened)
    return opened


def saved(session: Session, opened, settings: Settings, path: Path, mask=None) -> np.ndarray:
    session.save(opened, settings, mask, path)
    return np.asarray(Image.open(path)).astype(int)


def test_a_factor_that_fits_is_chosen():
    for size, factor in {(640, 480): 4, (4000, 3000): 2, (8160, 6120): 1, (30_000, 2): 4}.items():
        assert Settings().fitted(size).upscale == factor
    w, h = Image.open(routes.EXAMPLES / "a_cup_of_coffee.jpg").size  # open at first: seen whole
    assert 16 * w * h <= 3 * 512**2 and 4 * max(w, h) <= 1024


def test_what_is_seen_comes_first_and_is_the_whole_pictures(linear, large):
    """Within a level of the pipeline's own result of the whole; the first box, and all."""
    opened, pair = linear.open(large, Settings(), large.name), Settings(1, 0.4)
    view = Box(140, 104, 200, 136)
    *boxes, end = look(linear, opened, view, whole=False)
    first = Box(*boxes[0]["box"])
    assert first.w >= 160 and first.h >= 128 and not end["whole"] and end["left_s"] > 0
    outer = opened.around(Box(*(n // 4 for n in first)), opened.margin)
    assert outer.w * outer.h * 16 <= 368 * 288  # as four of 512 px, unpatched
    expected = np.asarray(linear.pipe(Image.open(large), 1, 0.4).images[0]).astype(int)
    seen = opened.mix(pair, None, view)
    assert np.abs(seen - expected[view.slices]).max() < 2
    *rest, end = look(linear, opened, view)
    assert end["whole"] and end["left_s"] == 0 and rest[0]["left_s"] > rest[-1]["left_s"] == 0
    assert np.array_equal(opened.mix(pair, None, view), seen)  # no other picture comes later
    everything = saved(linear, opened, pair, large.with_name("made.png"))
    assert np.abs(everything - expected).max() <= 1
    assert np.abs(everything[view.slices] - seen).max() <= 0.5
    mean = everything.reshape(176, 2, 240, 2, 3).mean(axis=(1, 3))  # at a glance
    small = opened.small.astype(float)
    assert opened.step == 2 and np.abs((small[0] + small[1] + 0.4 * small[2]) / 64 - mean).max() < 2


def test_other_factors_are_the_pipelines_too(linear, tmp_path):
    small, made = write(tmp_path / "small.png", (60, 50)), tmp_path / "made.png"
    for factor in (1, 2, 3, 6):
        opened = opened_whole(linear, small, Settings(upscale=factor))
        for pix, sem in ((0, 0), (1, 0.5)):
            expected = linear.pipe(Image.open(small), pix, sem, upscale=factor).images[0]
            result = saved(linear, opened, Settings(pix, sem), made)
            assert np.abs(result - np.asarray(expected)).max() <= 2  # it resizes rounded levels


def test_panning_predicts_only_what_is_new(linear, large):
    opened = linear.open(large, Settings(), large.name)
    look(linear, opened, Box(100, 100, 160, 120), whole=False)
    done = opened.done.sum()
    assert len(look(linear, opened, Box(100, 100, 160, 120), whole=False)) == 1  # the end
    news = look(linear, opened, Box(132, 100, 160, 120), whole=False)
    strip = sum(w * h for *_, w, h in (line["box"] for line in news if "box" in line))
    assert strip == (opened.done.sum() - done) * (4 * CELL) ** 2 <= 32 * 160


@pytest.mark.parametrize("home", ["linear", "session"])
def test_the_inside_of_a_mask_has_strengths_of_its_own(home, request, photo):
    home, half, path = request.getfixturevalue(home), np.zeros((16, 20)), photo.with_name("a.png")
    opened, both = opened_whole(home, photo), Settings(1, 1, 0.2, 0.1)
    half[:, :10] = 1
    inside, outside = (saved(home, opened, s, path) for s in (Settings(0.2, 0.1), Settings()))
    assert (saved(home, opened, both, path, half**0) == inside).all()
    assert (saved(home, opened, both, path, 0 * half) == outside).all()
    made = saved(home, opened, both, path, half)
    assert (made != inside).any() and (made != outside).any()


@pytest.mark.slow
def test_of_another_base_what_is_seen_is_decoded(session, pipe, large, passes):
    opened, pair = session.open(large, Settings(upscale=3), large.name), Settings(0.4, 1.2)
    look(session, opened, Box(120, 100, 120, 80), whole=False)
    assert len(passes) == 2 and not opened.mixes
    with pytest.raises(Exception, match="not made yet"):
        session.save(opened, TWICE, None, large.with_name("made.png"))
    box, seen = session.exact(opened, pair, None)
    assert seen.shape == (box.h, box.w, 3) and box.meet(Box(120, 100, 120, 80)).w == 120
    assert len(passes) == 2  # another pair asks no UNet
    assert any(0 < line["part"] < 1 for line in look(session, opened))
    expected = np.asarray(pipe(Image.open(large), 0.4, 1.2, upscale=3).images[0])
    assert (saved(session, opened, pair, large.with_name("made.png")) == expected).all()


def test_a_download_holds_how_it_was_made_and_the_photos_exif_if_wanted(linear, tmp_path):
    exif = Image.Exif()
    exif[ExifTags.Base.Model] = "camera"
    Image.open(write(tmp_path / "photo.png")).save(tmp_path / "photo.jpg", exif=exif)
    opened = opened_whole(linear, tmp_path / "photo.jpg", Settings(upscale=2, color_fix="none"))
    for keep in (False, True):
        chosen = Settings(1, 0.7, keep_exif=keep, upscale=3)  # the page is ahead of its picture
        saved(linear, opened, chosen, tmp_path / chosen.file_name("photo"))
        image = Image.open(tmp_path / "photo_pix1_sem0.7.png")
        software = image.getexif()[ExifTags.Base.Software]
        assert all(w in software for w in ("lambda_sem=0.7", "upscale=2", "color_fix=none"))
        assert image.getexif().get(ExifTags.Base.Model) == ("camera" if keep else None)


@pytest.mark.parametrize("home", ["linear", "session"])
def test_a_download_may_have_sixteen_bits(home, request, photo):
    home, path = request.getfixturevalue(home), photo.with_name("deep.png")
    home.save(opened_whole(home, photo), Settings(0.5, 0.25, format="PNG16"), None, path)
    expected = home.pipe(Image.open(photo), 0.5, 0.25, upscale=2, output_type="uint16").images[0]
    levels = to_levels(open_picture(path).pixels, 16).astype(int)
    assert np.abs(levels - expected).max() <= 257 // 32 and len(np.unique(levels % 257)) > 50


def test_gray_and_transparent_photos_stay_so_and_phones_open(linear, photo):
    gray = photo.with_name("gray.png")
    Image.open(photo).convert("LA").save(gray)
    made = saved(linear, opened_whole(linear, gray), Settings(1, 0.5), photo.with_name("made.png"))
    expected = np.asarray(linear.pipe(Image.open(gray), 1, 0.5, upscale=2).images[0])
    assert made.shape == (32, 40, 2) and np.abs(made - expected).max() <= 1
    pillow_heif = pytest.importorskip("pillow_heif")
    pillow_heif.from_pillow(Image.open(write(photo, (64, 48)))).save(photo.with_suffix(".heic"))
    assert linear.open(photo.with_suffix(".heic"), Settings(), "a.heic").size == (256, 192)


def test_memory_is_bounded_and_the_least_recently_used_leaves(linear, photo):
    pictures = [linear.open(photo, TWICE, "photo.png") for _ in range(3)]
    before = pictures[2].held_bytes()
    store = Store(2 * before)
    for opened in pictures[:2]:
        store.put(opened)
    store.get(pictures[0].key)  # used last
    store.put(pictures[2])
    assert [opened.key in store._pictures for opened in pictures] == [True, False, True]
    with pytest.raises(Exception, match="not open any more"):
        store.get(pictures[1].key)
    look(linear, pictures[2])
    assert pictures[2].held_bytes() == before + 12 * 6 * 16**2


def test_impossible_pictures_and_settings_are_a_line_and_leave_nothing_open(photo, tmp_path):
    session = Session(tiny.linear_pipe())
    (tmp_path / "garbage.png").write_bytes(b"not a picture")
    Image.new("1", (9000, 6000)).save(tmp_path / "bomb.png")
    wrong = {"lambda_pix": -5, "lambda_sem": None, "inside_sem": float("nan"), "upscale": "4"}
    wrong |= {"color_fix": "violet", "format": "GIF"}
    cases = [(photo, {name: value}, f"{name} is {value!r}") for name, value in wrong.items()]
    cases += [(tmp_path / "garbage.png", {}, "not an image"), (tmp_path / "bomb.png", {}, "limit")]
    cases += [(photo, {"upscale": 1e308}, "million pixels"), (photo, {"upscale": 1.5}, "whole num")]
    cases += [(photo, {"model": "b"}, "no model 'b'"), (photo, {"lamda": 1}, "lamda")]
    for path, settings, words in cases:
        with pytest.raises(Exception, match=words) as caught:
            session.open(path, Settings(**settings), "a")
        assert "\n" not in explain(caught.value) and not session.store._pictures


def test_other_models_are_loaded_when_asked_for(photo):
    loaded, make = [], tiny.linear_pipe
    session = Session(make(), others=["b"], load=lambda name: loaded.append(name) or make())
    for _ in range(2):
        assert session.open(photo, Settings(model="b"), "a").pipe is not session.pipe
    assert loaded == ["b"] and session.open(photo, Settings(), "a").pipe is session.pipe


def test_a_forged_mask_is_refused_where_a_painted_one_arrives():
    def png(levels: np.ndarray) -> str:
        file = io.BytesIO()
        Image.fromarray(levels).save(file, "PNG")
        return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()

    forged = ["data:image/png;base64,@@@", "data:image/png;base64,aGVsbG8=", "file:///etc/passwd"]
    forged += [png(np.zeros((2000, 2000), np.uint8)), "data:image/png;base64," + 9_000_000 * "A"]
    for text in forged:
        with pytest.raises(Exception, match="no small PNG"):
            read_mask(text)
    levels = np.arange(48, dtype=np.uint8).reshape(6, 8) * 5
    assert np.array_equal(read_mask(png(levels)), levels / 255) and read_mask("") is None


def until(true):
    """What a function gives once that is true."""
    end = time.monotonic() + 60
    while not (result := true()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)
    return result


def test_a_small_job_waits_for_a_tile_and_a_stopped_one_ends_there(large, photo):
    session = Session(tiny.linear_pipe())
    opened = session.open(large, Settings(), large.name)
    job = session.start(opened, NOTHING, whole=True)
    until(lambda: opened.boxes)
    session.repair_file(photo, photo.with_name("made.png"), TWICE, Job(session.device))
    assert not job.is_over and not opened.is_whole()
    job.is_stopped = True
    until(lambda: job.is_over)
    done, other = len(opened.boxes), session.start(opened, NOTHING, whole=True)
    session.store.drop(opened.key)  # X ends it, too
    until(lambda: other.is_over)
    assert len(opened.boxes) <= done + 1 and "not open any more" in other.news[-1]["error"]
    job = session.start(session.open(large, Settings(), "a"), NOTHING, whole=True)
    assert session.close() and not session.folder.exists()  # as Ctrl-C does
    until(lambda: job.is_over)


def test_a_batch_reports_each_file_and_packs_what_is_whole(linear, photo, tmp_path):
    (tmp_path / "again").mkdir()
    (tmp_path / "broken.png").write_bytes(b"nothing")
    again, folder = write(tmp_path / "again" / "photo.png"), linear.result_folder()
    files, job = list(map(str, [photo, again, tmp_path / "broken.png"])), Job(linear.device)
    first, second, *_, text = repair_all(linear, files, Settings(1, 0.5, upscale=2), folder, job)
    assert first == "1 of 3: photo.png to photo_pix1_sem0.5.png" and second.endswith(" left")
    assert text.splitlines()[-1].startswith("Done, in 0") and "broken.png: failed" in text
    names = ["photo_pix1_sem0.5-2.png", "photo_pix1_sem0.5.png"]  # not those of the originals
    assert sorted(path.name for path in folder.iterdir()) == names
    job.is_stopped = True
    *_, text = repair_all(linear, files, TWICE, folder, job)
    assert text == "Stopped after 0 of 3, in 00:00."


WRONG = ["--host 0.0.0.0", "--host ::", "--host example.org", "--auth ann", "--port 99999"]


@pytest.mark.parametrize("words", WRONG)
def test_others_need_a_whole_password_and_a_port_exists(words, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["app", *words.split()])
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and words[:6] in error and error.count("\n") == 1
    assert all(map(command.is_loopback, ["127.0.0.1", "localhost", "::1"]))


def test_a_taken_port_is_told_before_the_model_loads(monkeypatch, capsys):
    monkeypatch.setattr(command, "load_model", lambda args: pytest.fail("loaded"))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert main(["app", "--port", str(taken.getsockname()[1])]) == 1
    assert "choose another --port" in capsys.readouterr().err
    assert command.addresses("192.168.0.7", 80) == ["http://192.168.0.7:80/"]
    assert len(command.addresses("0.0.0.0", 80)) == 2


@contextmanager
def served(**options):
    page = serve(session := Session(tiny.linear_pipe()), **options)
    page.session = session
    yield page
    page.close(verbose=False)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(tmp_path_factory.mktemp("gradio")))
        with served() as page:
            yield page


@pytest.fixture
def client(page, tmp_path):
    return Client(page.local_url, download_files=str(tmp_path / "got"), verbose=False)


@pytest.fixture
def http(page):
    with httpx.Client(base_url=page.local_url, timeout=60) as client:
        yield client


def opened_by(http, path: Path, **query) -> dict:
    query["name"] = path.name
    return http.post("pisasr/open", params=query, content=path.read_bytes()).json()


def test_a_script_gets_what_the_pipeline_makes(client, page, photo, monkeypatch, capsys):
    settings = {"lambda_pix": 0.5, "lambda_sem": 0.75, "upscale": 2, "color_fix": "wavelet"}
    path = client.predict(handle_file(photo), settings, api_name="/repair")
    assert Path(path).name == "photo_pix0.5_sem0.75.png"
    expected = page.session.pipe(Image.open(photo), **settings).images[0]
    assert Image.open(path).tobytes() == expected.tobytes()
    assert list(client.view_api(return_format="dict")["named_endpoints"]) == ["/repair"]
    for wrong in ("<'&", -5):
        with pytest.raises(AppError, match=f"^lambda_pix is {wrong!r}; it must be from 0 to 1.5$"):
            client.predict(handle_file(photo), {"lambda_pix": wrong}, api_name="/repair")
    with pytest.raises(AppError, match="^the picture is a path; send handle_file.path.$"):
        client.predict(str(photo), {}, api_name="/repair")
    script = README.read_text().split("```python\n")[1].split("```")[0]  # as it stands there
    monkeypatch.chdir(README.parents[2])
    exec(script.replace("http://127.0.0.1:7860", page.local_url), {})
    made = Path(capsys.readouterr().out.splitlines()[-1])
    assert made.name == "coffee_pix1_sem0.7.png" and Image.open(made).size == (600, 400)


def test_the_viewer_opens_looks_and_saves(http, page, large):
    about, files = opened_by(http, large, settings='{"upscale": 2}'), page.session.folder
    address = f"pisasr/{about['key']}"
    assert about["size"] == [240, 176] and about["factor"] == 2
    assert "not made yet" in http.post(f"{address}/save", json={}).json()["error"]
    wish = {"view": [0, 0, 90, 90], "whole": True}
    lines = http.post(f"{address}/look", json=wish).text.splitlines()
    assert json.loads(lines[-1])["whole"] and json.loads(lines[0])["boxes"]
    settings = {"lambda_pix": 0.5, "lambda_sem": 1.25, "format": "WebP"}
    answer = http.post(f"{address}/save", json={"settings": settings})
    assert "large_pix0.5_sem1.25.webp" in answer.headers["content-disposition"]
    made, box = np.asarray(Image.open(io.BytesIO(answer.content))), Box(10, 20, 150, 100)
    planes = http.get(f"{address}/planes", params=dict(zip("xywh", box, strict=True))).content
    photo, by_pix, by_sem = np.frombuffer(planes, np.int16).reshape(3, 100, 150, 3).astype(float)
    mixed = ((photo + 0.5 * by_pix + 1.25 * by_sem) / 64).clip(0, 255)
    assert np.array_equal(np.rint(mixed), made[box.slices])  # what is seen is what is saved
    until(lambda: not list(files.glob("[us]*-*")))  # files are deleted at once
    again = http.post("pisasr/open", params={"key": about["key"], "settings": '{"upscale": 1}'})
    assert again.json()["size"] == [120, 88] and http.get(address).status_code == 400
    assert http.get(f"pisasr/{again.json()['key']}").json()["part"] == 0  # a reload finds it
    assert http.post(f"pisasr/{again.json()['key']}/close").status_code == 204


def test_work_ends_where_nobody_listens_any_more(http, page, large):
    about = opened_by(http, large)
    opened, wish = page.session.store.get(about["key"]), {"view": NOTHING, "whole": True}
    with http.stream("POST", f"pisasr/{about['key']}/look", json=wish) as answer:
        next(answer.iter_lines())
    until(page.session.device.is_idle)
    assert opened.boxes and not opened.is_whole()


def test_the_viewer_is_refused_in_a_line(http, large, monkeypatch):
    key = opened_by(http, large)["key"]
    monkeypatch.setattr(routes, "MAX_UPLOAD_MB", 0)
    for answer, words in (
        (http.post("pisasr/open", content=b"abc"), "larger than 0 MB"),
        (http.post(f"pisasr/{key}/look", json={}), "'view'"),
        (http.get(f"pisasr/{key}/planes", params=dict.fromkeys("xywh", 9999)), "isn't seen at"),
        (http.post(f"pisasr/{key}/save", json={"mask": "file:///etc/passwd"}), "no small PNG"),
        (http.get("pisasr/guessed"), "not open any more"),
    ):
        assert answer.status_code == 400 and words in answer.json()["error"]


def test_files_of_the_machine_can_not_be_had(page, client, http):
    """A path instead of an upload; an upload that is no picture; a name that climbs."""
    source = str(Path(__file__).resolve())
    with pytest.raises(AppError):
        client.predict({"path": source, "meta": {"_type": "gradio.FileData"}}, api_name="/repair")
    with pytest.raises(AppError, match="not an image"):
        client.predict(handle_file(source), api_name="/repair")
    for path in ("/etc/passwd", "../../etc/passwd", "%2e%2e/%2e%2e/etc/passwd", source):
        assert http.get(f"gradio_api/file={path}").status_code in (403, 404)
    (path,) = http.post("gradio_api/upload", files={"files": ("../../evil.png", b"PNG")}).json()
    assert Path(path).resolve().is_relative_to(Path(get_upload_folder()).resolve())


def test_other_sites_unknown_names_and_too_many_uploads_are_refused(page, http, monkeypatch):
    upload, evil = {"files": ("a.png", b"PNG")}, {"origin": "http://evil.example"}
    assert http.post("gradio_api/upload", files=upload, headers=evil).status_code == 403
    assert http.post("pisasr/open", content=b"a", headers=evil).status_code == 403
    assert http.get("config", headers={"host": "evil.example"}).status_code == 421
    own = {"origin": page.local_url.rstrip("/")}
    assert http.post("gradio_api/upload", files=upload, headers=own).status_code == 200
    monkeypatch.setattr(routes, "MAX_UPLOADS_MB", 0)
    assert http.post("gradio_api/upload", files=upload).status_code == 413


def test_nothing_is_shared_watched_or_copied_by_a_visit(page, http, photo):
    opened, copies = page.session.open(photo, TWICE, "photo.png"), []
    type(opened).__deepcopy__ = lambda self, memo: copies.append(self) or self
    try:
        config = http.get("config").json()
    finally:
        del type(opened).__deepcopy__
    assert copies == [] and not any(w in json.dumps(config) for w in ("at 0x", "this computer"))
    assert not config["analytics_enabled"] and not page.share and page.delete_cache is not None
    public = [d["api_name"] for d in config["dependencies"] if d["api_visibility"] == "public"]
    assert public == ["repair"] and page.server_name == "127.0.0.1"
    assert http.get("monitoring/summary").status_code in (401, 403, 404)
    assert http.get("openapi.json").status_code == 404


def test_without_the_password_nothing_is_shown_and_guessing_is_slow(photo):
    given = {"username": "ann", "password": "secret"}
    with served(auth=tuple(given.values())) as page, httpx.Client(base_url=page.local_url) as http:
        assert http.get("config").status_code == 401
        assert "sign in first" in opened_by(http, photo)["error"]
        assert http.post("login", data=given).status_code == 200
        assert opened_by(http, photo)["size"] == [80, 64]
        for password, status in [*[("a", 400)] * 5, ("secret", 429)]:
            given["password"] = password
            assert http.post("login", data=given).status_code == status
