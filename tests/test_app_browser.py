"""The page in a real browser, without a screen: a hand drops a photo, turns, compares, paints; two hands at once.

Wants selenium ('pisasr[browser]') and the system's Chromium with its driver (Debian: chromium, chromium-driver).
"""

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
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(tmp_path_factory.mktemp("gradio")))
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


class Hand:
    """One user with a browser of their own."""

    def __init__(self, address: str, downloads: Path, size: tuple[int, int] = (1360, 1100), dark: bool = False):
        options = webdriver.ChromeOptions()
        options.binary_location = CHROMIUM or ""
        for word in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-background-networking"):
            options.add_argument(word)
        options.add_argument(f"--window-size={size[0]},{size[1]}")
        options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        self.browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
        self.browser.get(address + ("?__theme=dark" if dark else ""))
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
        self.browser.save_screenshot("/tmp/hand.png")
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
        code = """const range = document.querySelector(arguments[0] + " input[type=range]"), end = Number(arguments[1]);
            const set = Object.getOwnPropertyDescriptor(HTMLInputElement.prototype, "value").set, from = Number(range.value);
            for (let i = 1; i <= 20; i++) {
              set.call(range, i < 20 ? from + ((end - from) * i) / 20 : end);
              range.dispatchEvent(new Event("input", { bubbles: true }));
            }"""
        self.browser.execute_script(code, f"#{knob}", value)

    def settled(self) -> None:
        self.until(lambda: self.js("window.pisasr.isExact()"))

    def picture(self) -> np.ndarray:
        """The exact result, as the viewer holds it: uint8 [H, W, 3]."""
        self.settled()
        levels, width, height = self.js("window.pisasr.levels()")
        return np.array(levels, np.uint8).reshape(height, width, 4)[..., :3]

    def errors(self) -> list[str]:
        return [line["message"] for line in self.browser.get_log("browser") if line["level"] == "SEVERE"]


@pytest.fixture
def hand(page, tmp_path):
    hands: list[Hand] = []

    def new(**options: Any) -> Hand:
        hands.append(Hand(page.local_url, tmp_path / "downloads", **options))
        return hands[-1]

    yield new
    for one in hands:
        one.browser.quit()


def expected(desk: Desk, photo: Path, *strengths: Any) -> np.ndarray:
    from pisasr.app.page import read_wish

    result = desk.repair(desk.read(photo), Strengths(*strengths), read_wish("4 times", None, ""))
    return np.asarray(result)


def test_turning_a_knob_shows_the_exact_picture_at_last_and_asks_no_unet(hand, desk, photos):
    user, calls = hand(), []
    hooks = [u.register_forward_hook(lambda *_: calls.append(1)) for u in (desk.pipe.unet, desk.pipe.unet_pix)]
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
