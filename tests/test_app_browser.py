"""The page in a real browser, without a screen: drop, turn knobs, compare, paint; two users at once.

Needs selenium (pisasr[browser]) and the system's Chromium with its driver (Debian: chromium,
chromium-driver).
"""

import io
import itertools
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
PATIENCE_S = 60  # of a machine that has other things to do, too

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


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("photos")
    return [write(folder / f"photo{number}.png", number) for number in range(4)]


def write(path: Path, phase: float) -> Path:
    pixels = (tiny.wave((16, 24, 3), phase, 80) + 128).to(torch.uint8).numpy()
    Image.fromarray(pixels).resize((48, 32), Image.Resampling.BICUBIC).save(path)
    return path


def start_browser(downloads: Path) -> webdriver.Chrome:
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM or ""
    for word in (
        "--headless=new",
        "--no-sandbox",
        "--disable-dev-shm-usage",
        "--disable-background-networking",
    ):
        options.add_argument(word)
    options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    browser.set_script_timeout(PATIENCE_S)
    return browser


class Hand:
    """One user, with a browser of their own: each loading of the page is a session of its own."""

    def __init__(
        self,
        browser: webdriver.Chrome,
        address: str,
        size: tuple[int, int] = (1360, 1100),
        theme: str = "",
    ):
        self.browser = browser
        browser.set_window_size(*size)
        browser.get(address + theme)
        browser.get_log("browser")  # those of the user before
        self.until(lambda: self.all("#viewer .stage"))

    def all(self, css: str) -> list[Any]:
        return self.browser.find_elements(By.CSS_SELECTOR, css)

    def one(self, css: str) -> Any:
        return self.until(lambda: self.all(css))[0]

    def js(self, code: str, *values: Any) -> Any:
        return self.browser.execute_script("return " + code, *values)

    def until(self, true: Callable[[], Any]) -> Any:
        end = time.monotonic() + PATIENCE_S
        while time.monotonic() < end:
            if result := true():
                return result
            time.sleep(0.05)
        raise AssertionError(f"waited {PATIENCE_S} s in vain")

    def tab(self, words: str) -> None:
        next(tab for tab in self.all("[role=tab]") if tab.text == words).click()

    def drop(self, *photos: Path, on: str = "#photo") -> None:
        self.one(f"{on} input[type=file]").send_keys("\n".join(map(str, photos)))

    def open(self, photo: Path) -> None:
        self.drop(photo)
        self.until(lambda: self.js("window.pisasr.ready()"))

    def turn(self, knob: str, value: float) -> None:
        """Drag a knob in many small steps, as a mouse does, to a value."""
        code = """const range = document.querySelector(arguments[0] + " input[type=range]");
            const from = Number(range.value), end = arguments[1];
            for (let i = 1; i <= 20; i++) {
              range.value = i < 20 ? from + ((end - from) * i) / 20 : end;
              range.dispatchEvent(new Event("input", { bubbles: true }));
            }"""
        self.browser.execute_script(code, f"#{knob}", value)

    def write(self, css: str, *keys: str):
        """In place of what a field held."""
        field = self.one(css)
        field.send_keys(Keys.CONTROL, "a")
        field.send_keys(*keys)
        return field

    def settled(self) -> None:
        self.until(lambda: self.js("window.pisasr.isExact()"))

    def picture(self) -> np.ndarray:
        """The exact result, as the viewer holds it: uint8 [H, W, 3]."""
        self.settled()
        levels, width, height = self.js("window.pisasr.levels()")
        return np.array(levels, np.uint8).reshape(height, width, 4)[..., :3]

    def pressed(self) -> list[str]:
        """The presets that hold."""
        return [button.text for button in self.all("#presets [aria-pressed=true]")]

    def errors(self) -> list[str]:
        return [
            line["message"] for line in self.browser.get_log("browser") if line["level"] == "SEVERE"
        ]


@pytest.fixture(scope="module")
def browsers(tmp_path_factory):
    """Started when they are wanted, used again by the next test."""
    started: list[webdriver.Chrome] = []
    downloads = tmp_path_factory.mktemp("downloads")

    def nth(number: int) -> webdriver.Chrome:
        while len(started) <= number:
            started.append(start_browser(downloads))
        return started[number]

    nth.downloads = downloads
    yield nth
    for browser in started:
        browser.quit()


@pytest.fixture
def hand(page, browsers):
    count = itertools.count()
    return lambda address=page.local_url, **options: Hand(browsers(next(count)), address, **options)


def expected(session: Session, photo: Path, pix: float, sem: float) -> np.ndarray:
    return np.asarray(session.repair(session.read(photo), Settings(pix, sem)))


def test_knobs_end_in_the_exact_picture_and_ask_no_unet(hand, session, photos):
    user, calls = hand(), []
    pipe = session.pipe
    hooks = [
        u.register_forward_hook(lambda *_: calls.append(1)) for u in (pipe.unet, pipe.unet_pix)
    ]
    user.open(photos[0])
    assert np.array_equal(user.picture(), expected(session, photos[0], 1, 1))
    calls.clear()
    for value in (0.2, 1.3, 0.7):
        user.turn("sem", value)
    user.turn("pix", 0.85)
    seen = user.picture()
    assert not calls
    for hook in hooks:
        hook.remove()
    assert np.array_equal(seen, expected(session, photos[0], 0.85, 0.7))
    assert not user.errors()


@pytest.mark.parametrize(("typed", "counts"), [(Keys.DELETE, 0), ("7", 1.5)])
def test_an_emptied_number_is_none_and_one_beyond_is_the_end(hand, session, photos, typed, counts):
    user = hand()
    user.open(photos[0])
    user.settled()
    user.write("#sem input[type=number]", typed, Keys.TAB)
    user.until(lambda: not user.js("window.pisasr.isExact()"))
    assert np.array_equal(user.picture(), expected(session, photos[0], 1, counts))
    assert not user.all(".toast-body") and not user.errors()


def test_a_cell_of_the_sheet_sets_both_knobs(hand, session, photos):
    user = hand()
    user.open(photos[1])
    user.settled()
    user.one("#viewer .compare").click()
    assert len(user.all("#viewer .sheet button")) == 16
    user.one("#viewer .sheet button[data-pix='0.5'][data-sem='1.5']").click()
    user.until(lambda: not user.js("window.pisasr.isExact()"))
    assert np.array_equal(user.picture(), expected(session, photos[1], 0.5, 1.5))
    assert not user.one("#viewer .sheet").is_displayed()


def test_presets_and_the_keyboard_turn_the_knobs(hand, session, photos):
    user = hand()
    user.until(lambda: user.pressed() == ["Sharp"])
    user.open(photos[1])
    user.settled()
    next(button for button in user.all("#presets button") if button.text == "Balanced").click()
    user.until(lambda: user.pressed() == ["Balanced"])
    assert np.array_equal(user.picture(), expected(session, photos[1], 1, 0.5))
    user.one("#sem input[type=range]").send_keys(Keys.ARROW_RIGHT)
    user.until(lambda: user.pressed() == [])
    assert np.array_equal(user.picture(), expected(session, photos[1], 1, 0.55))
    canvas = user.one("#viewer canvas.picture")
    canvas.send_keys(Keys.ARROW_RIGHT, "+")
    assert user.one("#viewer .divider").get_attribute("value") == "52"
    assert user.one("#viewer [data-zoom='1']").get_attribute("aria-pressed") == "true"


def test_the_divider_follows_the_view(hand, photos):
    """Zoomed in, left of the middle is the input and right of it the result."""
    user = hand()
    user.open(photos[0])
    user.settled()
    user.one("#viewer [data-zoom='4']").click()
    code = """const canvas = document.querySelector("#viewer canvas.picture");
        const pen = canvas.getContext("2d"), y = canvas.height / 2;
        const side = (x) => [...pen.getImageData(x, y, 1, 1).data];
        const halves = [[0, 50], [50, 100]].map(([at, full]) => {
          const divider = document.querySelector("#viewer .divider");
          const pixels = [at, full].map((value) => {
            divider.value = value; divider.dispatchEvent(new Event("input"));
            return side(canvas.width * (at ? 0.75 : 0.25));
          });
          return JSON.stringify(pixels[0]) === JSON.stringify(pixels[1]);
        });
        return halves;"""
    # At 50 the left half shows what 100 (all input) shows, not what 0 (all result) shows.
    assert user.browser.execute_script(code) == [False, False]


def test_a_painted_place_keeps_its_own_strengths(hand, session, photos):
    user = hand()
    user.open(photos[0])
    user.settled()
    user.turn("pix", 0.3)
    everywhere = user.picture()
    user.one("#viewer [data-tool='paint']").click()
    canvas = user.one("#viewer canvas.picture")
    stroke = ActionChains(user.browser).move_to_element(canvas).click_and_hold()
    stroke.move_by_offset(30, 10).release().perform()
    user.until(lambda: not user.js("window.pisasr.isExact()"))
    changed = (user.picture() != everywhere).any(axis=-1)
    height, width = changed.shape
    assert changed[height // 2, width // 2] and not changed[0, 0] and not changed[-1, -1]
    user.one("#viewer .clear").click()
    user.until(lambda: not user.js("window.pisasr.isExact()"))
    assert np.array_equal(user.picture(), everywhere)


def test_two_users_and_two_pictures_are_never_mixed_up(hand, session, photos):
    ann, ben = hand(), hand()
    ann.drop(photos[0])
    ben.drop(photos[1])
    for user in (ann, ben):
        user.until(lambda user=user: user.js("window.pisasr.ready()"))
    ann.turn("sem", 0.2)
    ben.turn("pix", 0.4)
    ann.turn("sem", 0.6)
    assert np.array_equal(ann.picture(), expected(session, photos[0], 1, 0.6))
    assert np.array_equal(ben.picture(), expected(session, photos[1], 0.4, 1))
    before = ann.js("window.pisasr.id()")
    ann.drop(photos[2])
    ann.until(lambda: ann.js("window.pisasr.id()") != before and ann.js("window.pisasr.ready()"))
    assert np.array_equal(ann.picture(), expected(session, photos[2], 1, 0.6))


def test_a_stopped_batch_hands_over_what_it_has(hand, session, photos, tmp_path):
    user = hand()
    user.tab("Many pictures")
    many = [write(tmp_path / f"many{number:02}.png", number) for number in range(40)]
    user.drop(*many, on="#files")
    user.until(lambda: "many39" in user.one("#files").text)
    status = user.one("#status textarea")
    user.one("#start").click()
    user.until(lambda: "3 of 40" in status.get_attribute("value"))
    user.one("#stop").click()
    user.until(lambda: "Stopped" in status.get_attribute("value"))
    link = user.until(lambda: user.all("#archive a[href]"))[0].get_attribute("href")
    with zipfile.ZipFile(io.BytesIO(httpx.get(link).content)) as archive:
        names = archive.namelist()
        assert names == [f"many{number:02}.png" for number in range(len(names))]
        assert 1 <= len(names) < 40
        first = np.asarray(Image.open(archive.open(names[0])))
    assert np.array_equal(first, expected(session, many[0], 1, 1))


def test_download_is_what_is_shown(hand, browsers, photos):
    user = hand()
    user.open(photos[3])
    user.turn("sem", 0.35)
    shown = user.picture()
    user.one("#download").click()
    path = browsers.downloads / "photo3_pix1_sem0.35.png"
    user.until(path.exists)
    assert np.array_equal(np.asarray(Image.open(path)), shown)


def test_garbage_is_a_line_on_the_page(hand, tmp_path):
    user = hand()
    (tmp_path / "garbage.png").write_bytes(b"<html>not a picture</html>")
    user.drop(tmp_path / "garbage.png")
    toast = user.until(lambda: [t for t in user.all(".toast-body") if "not an image" in t.text])[0]
    assert "Traceback" not in toast.text and "\n  File" not in toast.text


@pytest.mark.parametrize("size", [(420, 900), (1360, 1000)])
def test_nothing_is_wider_than_the_window(hand, photos, size):
    user = hand(size=size, theme="?__theme=dark")
    user.open(photos[0])
    assert user.js("document.documentElement.scrollWidth <= window.innerWidth")
    assert user.js("document.body.classList.contains('dark')")


MOVE = """const done = arguments[arguments.length - 1];
    const range = document.querySelector("#sem input[type=range]"), at = performance.now();
    let preview = 0;
    range.value = arguments[0];
    range.dispatchEvent(new Event("input", { bubbles: true }));
    (function look() {
      if (!preview && window.pisasr.drawnAt > at) preview = window.pisasr.drawnAt - at;
      if (preview && window.pisasr.isExact()) done(preview);
      else setTimeout(look, 1);
    })();"""


def test_a_preview_of_512_px_answers_within_150_ms(hand):
    """With the embedded model, from a knob's move to the mixture drawn; the median of 9."""
    page = serve(Session(PiSASRPipeline.from_pretrained()))
    try:
        user = hand(address=page.local_url)
        user.open(Path(__file__).parents[1] / "pisasr/demo/examples/astronaut.png")
        user.settled()
        moves = [user.browser.execute_async_script(MOVE, value / 10) for value in range(1, 10)]
    finally:
        page.close(verbose=False)
    assert np.median(moves) < 150
