"""The page in a real browser, without a screen: drop, turn, compare, paint; two users at once.

Needs selenium (pisasr[browser]) and the system's Chromium with its driver (Debian: chromium,
chromium-driver).
"""

import io
import shutil
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from PIL import Image

pytest.importorskip("gradio", reason="needs pisasr[app]")
pytest.importorskip("selenium", reason="needs pisasr[browser]")

import httpx
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from pisasr import PiSASRPipeline
from pisasr.app.page import serve
from pisasr.app.session import Session, Settings

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
PATIENCE_S = 60

pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="no Chromium with its driver here"),
]


@pytest.fixture(scope="module")
def session(base_folder) -> Session:
    return Session(PiSASRPipeline.from_pretrained(base_folder), process_size=16)


@pytest.fixture(scope="module")
def page(session, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(tmp_path_factory.mktemp("gradio")))
        page = serve(session)
        yield page
        page.close(verbose=False)


def write(path: Path, phase: float) -> Path:
    pixels = (tiny.wave((16, 24, 3), phase, 80) + 128).to(torch.uint8).numpy()
    Image.fromarray(pixels).resize((48, 32), Image.Resampling.BICUBIC).save(path)
    return path


@pytest.fixture
def photos(tmp_path) -> list[Path]:
    return [write(tmp_path / f"photo{number}.png", number) for number in range(3)]


class Hand:
    """A user with a browser of their own."""

    def __init__(self, downloads: Path, address: str):
        options = webdriver.ChromeOptions()
        options.binary_location = CHROMIUM or ""
        for word in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage"):
            options.add_argument(word)
        options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        self.browser = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
        self.browser.set_script_timeout(PATIENCE_S)
        self.browser.set_window_size(1360, 1100)
        self.address = address

    def load(self, address: str = "") -> "Hand":
        self.browser.get(address or self.address)
        self.until(lambda: self.all("#viewer .stage"))
        return self

    def all(self, css: str) -> list[Any]:
        return self.browser.find_elements(By.CSS_SELECTOR, css)

    def one(self, css: str) -> Any:
        return self.until(lambda: self.all(css))[0]

    def js(self, code: str) -> Any:
        return self.browser.execute_script("return " + code)

    def until(self, true: Callable[[], Any]) -> Any:
        end = time.monotonic() + PATIENCE_S
        while time.monotonic() < end:
            if result := true():
                return result
            time.sleep(0.05)
        raise AssertionError(f"waited {PATIENCE_S} s in vain")

    def drop(self, *photos: Path, on: str = "#photo") -> None:
        self.one(f"{on} input[type=file]").send_keys("\n".join(map(str, photos)))

    def open(self, photo: Path) -> None:
        before = self.js("window.pisasr?.id() ?? null")
        self.drop(photo)
        self.until(lambda: self.js("window.pisasr.ready()"))
        self.until(lambda: self.js("window.pisasr.id()") != before)

    def turn(self, knob: str, value: float) -> None:
        """Drag a knob in many small steps, as a mouse does."""
        code = """const range = document.querySelector(arguments[0] + " input[type=range]");
            const from = Number(range.value), end = arguments[1];
            for (let i = 1; i <= 20; i++) {
              range.value = i < 20 ? from + ((end - from) * i) / 20 : end;
              range.dispatchEvent(new Event("input", { bubbles: true }));
            }"""
        self.browser.execute_script(code, f"#{knob}", value)

    def moved(self) -> None:
        self.until(lambda: not self.js("window.pisasr.isExact()"))

    def picture(self) -> np.ndarray:
        """The exact result, as the viewer holds it: uint8 [H, W, 3]."""
        self.until(lambda: self.js("window.pisasr.isExact()"))
        levels, width, height = self.js("window.pisasr.levels()")
        return np.array(levels, np.uint8).reshape(height, width, 4)[..., :3]


@pytest.fixture(scope="module")
def hands(page, tmp_path_factory):
    users = [Hand(tmp_path_factory.mktemp("downloads"), page.local_url) for _ in range(2)]
    yield users
    for user in users:
        user.browser.quit()


@pytest.fixture
def user(hands):
    hands[0].browser.get_log("browser")
    yield hands[0].load()
    severe = [x["message"] for x in hands[0].browser.get_log("browser") if x["level"] == "SEVERE"]
    assert not severe


def expected(session: Session, photo: Path, pix: float, sem: float) -> np.ndarray:
    path = photo.with_suffix(".expected.png")
    session.repair_file(photo, path, Settings(pix, sem))
    return np.asarray(Image.open(path))


def test_knobs_end_in_the_exact_picture_and_ask_no_unet(user, session, photos):
    user.open(photos[0])
    assert np.array_equal(user.picture(), expected(session, photos[0], 1, 1))
    meant, calls = expected(session, photos[0], 0.85, 0.7), []
    hook = session.pipe.unet.register_forward_hook(lambda *_: calls.append(1))
    for value in (0.2, 1.3, 0.7):
        user.turn("sem", value)
    user.turn("pix", 0.85)
    assert np.array_equal(user.picture(), meant)
    hook.remove()
    assert not calls


def test_presets_the_sheet_and_the_keyboard_turn_the_knobs(user, session, photos):
    user.open(photos[1])
    user.picture()
    next(button for button in user.all("#presets button") if button.text == "Balanced").click()
    user.until(lambda: user.one("#presets [aria-pressed=true]").text == "Balanced")
    assert np.array_equal(user.picture(), expected(session, photos[1], 1, 0.5))
    user.one("#viewer .compare").click()
    assert len(user.all("#viewer .sheet button")) == 16
    user.one("#viewer .sheet button[data-pix='0.5'][data-sem='1.5']").click()
    user.moved()
    assert np.array_equal(user.picture(), expected(session, photos[1], 0.5, 1.5))
    user.one("#sem input[type=range]").send_keys(Keys.ARROW_LEFT)
    user.moved()
    assert np.array_equal(user.picture(), expected(session, photos[1], 0.5, 1.45))


def test_the_divider_follows_the_view(user, photos):
    """Zoomed in, left of the middle is the input and right of it the result."""
    user.open(photos[0])
    user.picture()
    user.one("#viewer [data-zoom='4']").click()
    code = """const canvas = document.querySelector("#viewer canvas.picture");
        const pen = canvas.getContext("2d"), divider = document.querySelector("#viewer .divider");
        const column = (at, value) => {
          divider.value = value; divider.dispatchEvent(new Event("input"));
          return [...pen.getImageData(canvas.width * at, 0, 1, canvas.height).data].join();
        };
        const same = (at, value) => column(at, 50) === column(at, value);
        return [same(0.25, 100), same(0.25, 0), same(0.75, 0), same(0.75, 100)];"""
    assert user.browser.execute_script(code) == [True, False, True, False]


def test_a_painted_place_keeps_its_own_strengths(user, photos):
    user.open(photos[0])
    user.turn("pix", 0.3)
    everywhere = user.picture()
    user.one("#viewer [data-tool='paint']").click()
    canvas = user.one("#viewer canvas.picture")
    stroke = ActionChains(user.browser).move_to_element(canvas).click_and_hold()
    stroke.move_by_offset(30, 10).release().perform()
    user.moved()
    changed = (user.picture() != everywhere).any(axis=-1)
    height, width = changed.shape
    assert changed[height // 2, width // 2] and not changed[0, 0] and not changed[-1, -1]
    user.one("#viewer .clear").click()
    user.moved()
    assert np.array_equal(user.picture(), everywhere)


def test_two_users_and_two_pictures_are_never_mixed_up(hands, session, photos):
    ann, ben = (user.load() for user in hands)
    ann.open(photos[0])
    ben.open(photos[1])
    ann.turn("sem", 0.2)
    ben.turn("pix", 0.4)
    ann.turn("sem", 0.6)
    assert np.array_equal(ann.picture(), expected(session, photos[0], 1, 0.6))
    assert np.array_equal(ben.picture(), expected(session, photos[1], 0.4, 1))
    ann.open(photos[2])
    assert np.array_equal(ann.picture(), expected(session, photos[2], 1, 0.6))


def test_a_stopped_batch_hands_over_what_it_has(user, session, tmp_path):
    next(tab for tab in user.all("[role=tab]") if tab.text == "Many pictures").click()
    many = [write(tmp_path / f"many{number:02}.png", number) for number in range(40)]
    user.drop(*many, on="#files")
    user.until(lambda: "many39" in user.one("#files").text)
    status = user.one("#status textarea")
    user.one("#start").click()
    user.until(lambda: "3 of 40" in status.get_attribute("value"))
    user.one("#stop").click()
    link = user.until(lambda: user.all("#archive a[href]"))[0].get_attribute("href")
    with zipfile.ZipFile(io.BytesIO(httpx.get(link).content)) as archive:
        names = archive.namelist()
        assert names == [path.name for path in many][: len(names)] and 1 <= len(names) < 40
        first = np.asarray(Image.open(archive.open(names[0])))
    assert np.array_equal(first, expected(session, many[0], 1, 1))


def test_download_is_what_is_shown(user, photos, tmp_path_factory):
    user.open(photos[2])
    user.turn("sem", 0.35)
    shown = user.picture()
    user.one("#download").click()
    name = "photo2_pix1_sem0.35.png"
    (path,) = user.until(lambda: list(tmp_path_factory.getbasetemp().rglob(f"downloads*/{name}")))
    assert np.array_equal(np.asarray(Image.open(path)), shown)


def test_a_preview_of_512_px_answers_within_150_ms(hands):
    """With the embedded model, from a knob's move to the mixture drawn; the median of 9."""
    move = """const done = arguments[arguments.length - 1], at = performance.now();
        const range = document.querySelector("#sem input[type=range]");
        range.value = arguments[0];
        range.dispatchEvent(new Event("input", { bubbles: true }));
        (function look() {
          if (window.pisasr.drawnAt > at) done(window.pisasr.drawnAt - at);
          else setTimeout(look, 1);
        })();"""
    page = serve(Session(PiSASRPipeline.from_pretrained()))
    try:
        user = hands[0].load(page.local_url)
        user.open(Path(__file__).parents[1] / "pisasr/demo/examples/astronaut.png")
        user.picture()
        moves = [user.browser.execute_async_script(move, value / 10) for value in range(1, 10)]
    finally:
        page.close(verbose=False)
    assert np.median(moves) < 150
