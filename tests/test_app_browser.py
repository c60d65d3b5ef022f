"""The page in a real browser, without a screen: a hand drops a photo, turns, compares, paints; two
hands at once.

Wants selenium ('pisasr[browser]') and the system's Chromium with its driver (Debian: chromium,
chromium-driver).
"""

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

pytest.importorskip("gradio", reason="no gradio here: pip install 'pisasr[app]'")
pytest.importorskip("selenium", reason="no selenium here: pip install 'pisasr[browser]'")

from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from pisasr import PiSASRPipeline
from pisasr.app.desk import Desk, Strengths
from pisasr.app.page import serve
from pisasr.commands.app import writing_below

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
PATIENCE_S = 60  # of a machine that has other things to do, too

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="no Chromium with its driver here"),
]


@pytest.fixture(scope="module")
def desk(base_folder) -> Desk:
    return Desk(PiSASRPipeline.from_pretrained(base_folder), process_size=16)


@pytest.fixture(scope="module")
def page(desk, tmp_path_factory):
    with writing_below(str(tmp_path_factory.mktemp("page"))):  # as the command does
        page = serve(desk)
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


def expected(desk: Desk, photo: Path, *strengths: Any) -> np.ndarray:
    from pisasr.app.page import read_wish

    result = desk.repair(desk.read(photo), Strengths(*strengths), read_wish("4 times", None, ""))
    return np.asarray(result)


def test_turning_a_knob_shows_the_exact_picture_at_last_and_asks_no_unet(hand, desk, photos):
    user, calls = hand(), []
    hooks = [
        u.register_forward_hook(lambda *_: calls.append(1))
        for u in (desk.pipe.unet, desk.pipe.unet_pix)
    ]
    user.open(photos[0])
    assert np.array_equal(user.picture(), expected(desk, photos[0], 1, 1))
    calls.clear()
    for value in (0.2, 1.3, 0.7):
        user.turn("sem", value)
    user.turn("pix", 0.85)
    seen = user.picture()
    assert not calls
    for hook in hooks:
        hook.remove()
    assert np.array_equal(seen, expected(desk, photos[0], 0.85, 0.7))
    assert not user.errors()


def test_an_emptied_number_is_none(hand, desk, photos):
    user = hand()
    user.open(photos[0])
    user.settled()
    user.write("#pix input[type=number]", Keys.DELETE, Keys.TAB)
    user.until(lambda: not user.js("window.pisasr.isExact()"))
    assert np.array_equal(user.picture(), expected(desk, photos[0], 0, 1))
    assert not user.errors()


def test_a_number_beyond_its_knob_is_the_knob_s_end_and_that_is_said(hand, desk, photos):
    user = hand()
    user.open(photos[0])
    user.settled()
    number = user.write("#sem input[type=number]", "7")
    user.until(lambda: not user.js("window.pisasr.isExact()"))
    assert np.array_equal(user.picture(), expected(desk, photos[0], 1, 1.5))
    number.send_keys(Keys.TAB)
    user.until(lambda: number.get_attribute("value") == "1.5")
    assert user.one("#sem").get_attribute("data-beyond") == "from 0 to 1.5: 7 is taken as 1.5"
    user.turn("sem", 0.5)
    assert user.one("#sem").get_attribute("data-beyond") is None
    assert not user.all(".toast-body") and not user.errors()


def test_a_cell_of_the_sheet_sets_both_knobs(hand, desk, photos):
    user = hand()
    user.open(photos[1])
    user.settled()
    compare = user.one("#viewer .compare")
    compare.click()
    compare.send_keys(Keys.ESCAPE)
    assert not user.one("#viewer .sheet").is_displayed()
    compare.click()
    cells = user.all("#viewer .sheet button")
    assert len(cells) == 16
    user.one("#viewer .sheet button[data-pix='0.5'][data-sem='1.5']").click()
    user.until(lambda: not user.js("window.pisasr.isExact()"))
    assert np.array_equal(user.picture(), expected(desk, photos[1], 0.5, 1.5))
    assert [
        user.one(f"#{name} input[type=number]").get_attribute("value") for name in ("pix", "sem")
    ] == ["0.5", "1.5"]
    assert not user.one("#viewer .sheet").is_displayed()


def test_presets_and_the_keyboard_turn_the_knobs(hand, desk, photos):
    user = hand()
    user.until(lambda: user.pressed() == ["Sharp"])
    user.open(photos[1])
    user.settled()
    next(button for button in user.all("#presets button") if button.text == "Balanced").click()
    user.until(lambda: user.one("#sem input[type=number]").get_attribute("value") == "0.5")
    assert np.array_equal(user.picture(), expected(desk, photos[1], 1, 0.5))
    assert user.pressed() == ["Balanced"]
    user.one("#sem input[type=range]").send_keys(Keys.ARROW_RIGHT)
    user.until(lambda: user.one("#sem input[type=number]").get_attribute("value") == "0.55")
    assert np.array_equal(user.picture(), expected(desk, photos[1], 1, 0.55))
    assert user.pressed() == []
    canvas = user.one("#viewer canvas.picture")
    canvas.send_keys(Keys.ARROW_RIGHT, "+")
    assert user.one("#viewer .divider").get_attribute("value") == "52"
    assert user.one("#viewer [data-zoom='1']").get_attribute("aria-pressed") == "true"


def test_a_painted_place_keeps_its_own_strengths(hand, desk, photos):
    user = hand()
    user.open(photos[0])
    user.settled()
    user.turn("pix", 0.3)
    everywhere = user.picture()
    user.one("#viewer [data-tool='paint']").click()
    canvas = user.one("#viewer canvas.picture")
    ActionChains(user.browser).move_to_element(canvas).click_and_hold().move_by_offset(
        30, 10
    ).release().perform()
    user.until(lambda: not user.js("window.pisasr.isExact()"))
    painted = user.picture()
    changed = (painted != everywhere).any(axis=-1)
    height, width = changed.shape
    assert changed[height // 2, width // 2] and not changed[0, 0] and not changed[-1, -1]
    user.one("#viewer .clear").click()
    user.until(lambda: not user.js("window.pisasr.isExact()"))
    assert np.array_equal(user.picture(), everywhere)


def test_a_mask_from_a_file_is_a_place_too(hand, desk, photos, tmp_path):
    user = hand()
    user.open(photos[0])
    user.settled()
    Image.new("L", (96, 64), 255).save(tmp_path / "mask.png")
    next(head for head in user.all("button.label-wrap") if "place" in head.text).click()
    user.until(lambda: user.all("#mask input[type=file]"))
    user.turn("feather", 0)
    user.picture()
    user.drop(tmp_path / "mask.png", on="#mask")
    user.until(lambda: not user.js("window.pisasr.isExact()"))
    assert np.array_equal(
        user.picture(), expected(desk, photos[0], 1, 0)
    )  # the page's strengths inside: no detail
    before = user.js("window.pisasr.id()")
    user.drop(photos[1])
    user.until(lambda: user.js("window.pisasr.id()") != before and user.js("window.pisasr.ready()"))
    assert np.array_equal(user.picture(), expected(desk, photos[1], 1, 1))
    user.until(lambda: "mask" not in user.one("#mask").text)
    Image.new("L", (32, 96), 255).save(tmp_path / "tall.png")
    user.drop(tmp_path / "tall.png", on="#mask")
    user.until(
        lambda: (
            "mask is a map of 32x96, the picture is 48x32"
            in "".join(t.text for t in user.all(".toast-body"))
        )
    )


def test_two_users_and_two_pictures_are_never_mixed_up(hand, desk, photos):
    ann, ben = hand(), hand()
    ann.drop(photos[0])
    ben.drop(photos[1])
    for user in (ann, ben):
        user.until(lambda user=user: user.js("window.pisasr.ready()"))
    ann.turn("sem", 0.2)
    ben.turn("pix", 0.4)
    ann.turn("sem", 0.6)
    assert np.array_equal(ann.picture(), expected(desk, photos[0], 1, 0.6))
    assert np.array_equal(ben.picture(), expected(desk, photos[1], 0.4, 1))
    before = ann.js("window.pisasr.id()")
    ann.drop(photos[2])
    ann.until(lambda: ann.js("window.pisasr.id()") != before and ann.js("window.pisasr.ready()"))
    assert np.array_equal(ann.picture(), expected(desk, photos[2], 1, 0.6))


def test_a_batch_ends_in_a_zip_of_all(hand, desk, photos, tmp_path):
    user = hand()
    user.tab("Many pictures")
    (tmp_path / "broken.png").write_bytes(b"no picture at all")
    user.drop(*photos[:2], tmp_path / "broken.png", on="#files")
    user.until(lambda: "photo1" in user.one("#files").text)
    user.one("#start").click()
    user.until(lambda: user.one("#status").text.startswith("Done."))
    assert "failed: not an image" in user.one("#status").text
    with zipfile.ZipFile(downloaded(user, "#archive", tmp_path)) as archive:
        assert archive.namelist() == ["photo0.png", "photo1.png"]
        with archive.open("photo1.png") as file:
            assert np.array_equal(np.asarray(Image.open(file)), expected(desk, photos[1], 1, 1))


def test_a_folder_is_its_pictures(hand, photos, tmp_path):
    user = hand()
    user.tab("Many pictures")
    (tmp_path / "photos/below").mkdir(parents=True)
    shutil.copy(photos[0], tmp_path / "photos")
    shutil.copy(photos[1], tmp_path / "photos/below/photo1.PNG")
    shutil.copy(photos[2], tmp_path / "photos/.photo2.png")
    (tmp_path / "photos/notes.txt").write_text("of no use here")
    user.one("#folder").click()
    user.until(lambda: user.all("#folder-input"))[0].send_keys(str(tmp_path / "photos"))
    user.until(lambda: user.one("#files").text.count("photo") == 2)
    assert {cell.get_attribute("aria-label") for cell in user.all("#files .filename")} == {
        "photo0.png",
        "photo1.PNG",
    }


def test_a_stopped_batch_hands_over_what_it_has(hand, desk, photos, tmp_path):
    user = hand()
    user.tab("Many pictures")
    many = [write(tmp_path / f"many{number:02}.png", number) for number in range(40)]
    user.drop(*many, on="#files")
    user.until(lambda: "many39" in user.one("#files").text)
    user.one("#start").click()
    user.until(lambda: "3 of 40" in user.one("#status").text)
    user.one("#stop").click()
    user.until(lambda: "Stopped" in user.one("#status").text)
    with zipfile.ZipFile(downloaded(user, "#archive", tmp_path)) as archive:
        names = archive.namelist()
        assert 1 <= len(names) < 40 and names == [
            f"many{number:02}.png" for number in range(len(names))
        ]
    time.sleep(1)
    assert "Stopped" in user.one("#status").text


def downloaded(user: Hand, css: str, folder: Path) -> Path:
    link = user.until(lambda: user.all(f"{css} a[href]"))[0].get_attribute("href")
    import httpx

    path = folder / "got.zip"
    path.write_bytes(httpx.get(link).content)
    return path


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
    user.one("#viewer [data-tool='paint']").click()
    rows = {
        round(button.location["y"])
        for button in user.all("#viewer .bar button")
        if button.is_displayed()
    }
    assert len(rows) <= (2 if size[0] < 640 else 1)


MOVE = """const done = arguments[arguments.length - 1], range = document.querySelector("#sem input[type=range]");
    const at = performance.now();
    let preview = 0;
    range.value = arguments[0];
    range.dispatchEvent(new Event("input", { bubbles: true }));
    (function look() {
      if (!preview && window.pisasr.drawnAt > at) preview = window.pisasr.drawnAt - at;
      if (preview && window.pisasr.isExact()) done([preview, performance.now() - at]);
      else setTimeout(look, 1);
    })();"""


def test_a_preview_of_512_px_answers_within_150_ms(hand, capsys):
    """With the embedded model: from a knob's move to the mixture drawn, and to the exact picture;
    medians of 9.
    """
    page = serve(Desk(PiSASRPipeline.from_pretrained()))
    try:
        user = hand(address=page.local_url)
        user.open(Path(__file__).parents[1] / "pisasr/demo/examples/astronaut.png")
        user.settled()
        moves = [user.browser.execute_async_script(MOVE, value / 10) for value in range(1, 10)]
    finally:
        page.close(verbose=False)
    preview, exact = np.median(moves, axis=0)
    with capsys.disabled():
        print(
            f"\n512 px: preview {preview:.0f} ms, exact picture {exact:.0f} ms, 250 of them waiting for rest"
        )
    assert preview < 150
