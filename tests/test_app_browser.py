"""The page in a real browser, without a screen: look, turn, pan, paint, stop, save.

Needs pisasr[browser] and the system's Chromium with its driver (Debian: chromium-driver).
"""

import base64
import io
import shutil
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("gradio", reason="needs pisasr[app]")
pytest.importorskip("selenium", reason="needs pisasr[browser]")

import httpx
import test_app
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from test_app import until, write

page = test_app.page  # the fixture
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
PATIENCE_S = 60
# Texts with less than 4.5 to 1 of contrast, and fields whose border has less than 3.
FAINT = """(() => {
  const pen = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
  const light = (...layers) => {
    for (const color of ["white", ...layers]) { pen.fillStyle = color; pen.fillRect(0, 0, 1, 1); }
    const level = (i) => (pen.getImageData(0, 0, 1, 1).data[i] / 255 + 0.055) / 1.055;
    return 0.05 + 0.2126 * level(0) ** 2.4 + 0.7152 * level(1) ** 2.4 + 0.0722 * level(2) ** 2.4;
  };
  const under = (e) => e ? [...under(e.parentElement), getComputedStyle(e).backgroundColor] : [];
  return [...document.querySelectorAll("body *")].filter((e) => e.checkVisibility()).map((e) => {
    const isText = [...e.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
    const style = getComputedStyle(e), ground = under(isText ? e : e.parentElement);
    const [a, b] = [light(...ground, isText ? style.color : style.borderColor), light(...ground)];
    const isField = e.matches("input[type=number], input[type=checkbox], textarea");
    return [Math.max(a / b, b / a), isText ? 4.5 : isField ? 3 : 0, e.outerHTML.slice(0, 90)];
  }).filter(([contrast, least]) => contrast < least); })()"""

pytestmark = [pytest.mark.browser, pytest.mark.slow]
if not (CHROMIUM and DRIVER):
    pytest.skip("no Chromium with its driver here", allow_module_level=True)


@pytest.fixture
def photos(tmp_path) -> list[Path]:
    return [write(tmp_path / f"photo{number}.png", (48, 32), number) for number in range(3)]


class Hand:
    """A user with a browser of their own."""

    def __init__(self, downloads: Path, address: str, size: tuple[int, int] = (1360, 1000)):
        options = webdriver.ChromeOptions()
        options.binary_location = CHROMIUM or ""
        for word in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage"):
            options.add_argument(word)
        if size[0] < 700:
            metrics = {"width": size[0], "height": size[1], "pixelRatio": 2.0, "touch": True}
            options.add_experimental_option("mobileEmulation", {"deviceMetrics": metrics})
        options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        self.browser = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
        self.browser.set_script_timeout(PATIENCE_S)
        self.browser.set_window_size(*size)
        self.address, self.downloads = address, downloads

    def load(self) -> "Hand":
        """Load the page as somebody new: an example opens."""
        self.browser.get(self.address)
        self.js("sessionStorage.clear()")
        self.browser.refresh()
        until(lambda: self.js("window.pisasr?.id() ?? null"))
        return self

    def all(self, css: str) -> list[Any]:
        return self.browser.find_elements(By.CSS_SELECTOR, css)

    def one(self, css: str) -> Any:
        return until(lambda: self.all(css))[0]

    def js(self, code: str, *given: Any) -> Any:
        return self.browser.execute_script("return " + code, *given)

    def about(self) -> dict[str, Any]:
        return self.js("window.pisasr.about()")

    def drop(self, *photos: Path, on: str = "#viewer") -> None:
        self.one(f"{on} input[type=file]").send_keys("\n".join(map(str, photos)))

    def open(self, photo: Path) -> None:
        before = self.js("window.pisasr.id()")
        self.drop(photo)
        until(lambda: self.js("window.pisasr.id()") not in (before, None))

    def turn(self, knob: str, value: float) -> None:
        """Drag a knob in many small steps, as a mouse does."""
        code = """const range = document.querySelector(arguments[0] + " input[type=range]");
            for (let i = 1; i <= 20; i++) {
              range.value = i < 20 ? i / 20 : arguments[1];
              range.dispatchEvent(new Event("input", { bubbles: true }));
            }"""
        self.browser.execute_script(code, f"#{knob}", value)

    def place(self, x: float, y: float) -> np.ndarray:  # of the zoomed picture, from 0 to 1
        about, room = self.about(), self.one("#viewer canvas.picture").size
        view, beside = about["view"], np.array([x - room["width"] / 2, y - room["height"] / 2])
        return [view["x"], view["y"]] + beside / about["size"] / view["zoom"]

    def picture(self) -> np.ndarray:
        """What is shown of the result at full size: uint8 [H, W, 3]."""
        until(lambda: self.js("window.pisasr.isExact()"))
        time.sleep(0.3)
        levels, width, height, *_ = self.js("window.pisasr.levels()")
        return np.array(levels, np.uint8).reshape(height, width, 4)[..., :3]

    def saved(self, name: str) -> np.ndarray:
        """The file that a click on Download saves."""
        self.one("#download").click()
        (path,) = until(lambda: list(self.downloads.glob(name)))
        return np.asarray(Image.open(path))


@pytest.fixture(scope="module")
def hand(page, tmp_path_factory):
    user = Hand(tmp_path_factory.mktemp("got"), page.local_url)
    yield user
    user.browser.quit()


@pytest.fixture
def user(hand):
    hand.browser.get_log("browser")
    yield hand.load()
    assert not [x["message"] for x in hand.browser.get_log("browser") if x["level"] == "SEVERE"]


def test_what_is_seen_is_what_is_saved_and_knobs_ask_no_unet(user, page, photos):
    user.open(photos[0])
    user.picture()
    calls: list[int] = []
    hook = page.session.pipe.unet.register_forward_hook(lambda *_: calls.append(1))
    for value in (0.2, 1.3, 0.7):
        user.turn("sem", value)
    user.turn("pix", 0.85)
    saved = user.saved("photo0_pix0.85_sem0.7.png")  # at once, before anything comes to rest
    hook.remove()
    assert np.array_equal(user.picture(), saved) and not calls


def test_presets_and_the_keyboard_turn_the_knobs(user, photos):
    user.open(photos[1])
    next(button for button in user.all("#presets button") if button.text == "Balanced").click()
    until(lambda: user.one("#presets [aria-pressed=true]").text == "Balanced")
    user.one("#sem input[type=range]").send_keys(Keys.ARROW_LEFT)
    until(lambda: not user.all("#presets [aria-pressed=true]"))
    assert np.array_equal(user.saved("photo1_pix1_sem0.45.png"), user.picture())
    user.js("window.fetch = () => new Promise(() => {})")  # a slow line
    user.drop(photos[0])
    user.one("#viewer .divider").send_keys(Keys.ARROW_LEFT)  # what is drawn leaves the words
    assert user.one("#viewer .state").text == "opening the photo"


def test_the_divider_follows_the_view_and_before_is_held(user, photos):
    """Zoomed in, left of the middle is the photo and right of it the result; labels say so."""
    user.open(write(photos[0], (160, 120)))
    user.picture()
    user.one("#viewer [data-zoom='4']").click()
    code = """(() => { const canvas = document.querySelector("#viewer canvas.picture");
        const pen = canvas.getContext("2d"), divider = document.querySelector("#viewer .divider");
        const column = (at, value) => {
          divider.value = value; divider.dispatchEvent(new Event("input"));
          return [...pen.getImageData(canvas.width * at, 0, 1, canvas.height).data].join();
        };
        const same = (at, value) => column(at, 50) === column(at, value);
        return [same(0.4, 100), same(0.4, 0), same(0.6, 0), same(0.6, 100)]; })()"""
    assert user.js(code) == [True, False, True, False]
    tags = [user.one(f"#viewer .tag.{side}") for side in ("before", "after")]
    user.js("document.querySelector('#viewer .divider').value = 50")
    canvas = user.one("#viewer canvas.picture")
    canvas.send_keys(Keys.ARROW_RIGHT)
    assert [tag.is_displayed() for tag in tags] == [True, True] and user.about()["view"]["x"] > 0.5
    ActionChains(user.browser).move_to_element(canvas).key_down(" ").perform()
    assert [tag.is_displayed() for tag in tags] == [True, False]
    ActionChains(user.browser).key_up(" ").perform()
    until(lambda: "4.0 to 1" in canvas.get_attribute("aria-label"))
    handle = user.one("#viewer .stage .divider")  # in the picture, on its line
    ActionChains(user.browser).drag_and_drop_by_offset(handle, 100, 0).perform()
    assert 58 < float(handle.get_attribute("value")) < 66


def test_a_large_photo_is_seen_in_parts_and_stopped(user, page, tmp_path):
    user.open(write(tmp_path / "large.png", (1200, 900)))
    until(lambda: user.about()["boxes"])
    about = user.about()
    assert about["view"]["zoom"] == 1 and about["size"] == [4800, 3600] and about["part"] < 0.2
    user.one("#download").click()  # makes the whole
    state = user.one("#viewer .state")
    until(lambda: "making the whole, about" in state.text)
    user.one("#viewer .stop").click()
    until(page.session.device.is_idle)
    boxes = len(user.about()["boxes"])
    assert not user.about()["whole"] and "% repaired, the rest hatched; Download" in state.text
    canvas = user.one("#viewer canvas.picture")
    drag = ActionChains(user.browser).move_to_element_with_offset(canvas, 200, 100)
    drag.click_and_hold().move_by_offset(-180, -90).release().perform()
    assert user.about()["view"]["x"] > 0.5 < user.about()["view"]["y"]
    canvas.send_keys(8 * Keys.ARROW_RIGHT + 8 * Keys.ARROW_DOWN)  # to where nothing is done yet
    until(lambda: len(user.about()["boxes"]) > boxes)  # panning looks on
    overview = user.one("#viewer .overview")  # shows where one is, and leads elsewhere
    ActionChains(user.browser).move_to_element_with_offset(overview, -60, -40).click().perform()
    assert user.about()["view"]["x"] < 0.2 > user.about()["view"]["y"]
    assert "left: 0%;" in user.one("#viewer .part").get_attribute("style")
    for name in ("Help", "One picture"):  # there and back: what isn't seen is not looked at
        next(tab for tab in user.all("[role=tab]") if tab.text == name).click()
        time.sleep(0.5)
        assert user.js("document.querySelector('#viewer .picture').width") > 0
    assert not user.one("#viewer .line").text
    key = user.js("window.pisasr.id()")
    user.one("#viewer .close").click()
    until(page.session.device.is_idle)
    assert user.js("window.pisasr.id()") is None and key not in page.session.store._pictures


def test_a_painted_place_keeps_its_own_strengths_over_a_reload(user, photos):
    user.open(photos[0])
    user.turn("pix", 0.3)
    everywhere = user.picture()
    user.one("#viewer [data-tool='paint']").click()
    stroke = ActionChains(user.browser).move_to_element(user.one("#viewer canvas.picture"))
    stroke.click_and_hold().move_by_offset(30, 10).release().perform()
    masked = user.picture()
    changed = (masked != everywhere).any(axis=-1)
    height, width = changed.shape
    assert changed[height // 2, width // 2] and not changed[0, 0] and not changed[-1, -1]
    user.browser.refresh()
    until(lambda: user.js("window.pisasr?.about().part === 1"))
    assert user.about()["name"] == "photo0.png" and np.array_equal(user.picture(), masked)
    assert np.array_equal(user.saved("photo0_pix0.3_sem1_mask.png"), masked)
    user.one("#viewer .clear").click()
    assert np.array_equal(user.picture(), everywhere)


def test_text_and_fields_are_seen_in_both_themes(user):
    user.one("#viewer [data-tool='paint']").click()  # opens a place of its own, too
    for tab in ("One picture", "Many pictures", "Help"):
        next(one for one in user.all("[role=tab]") if one.text == tab).click()
        for is_dark in (True, False):
            user.js("document.body.classList.toggle('dark', arguments[0])", is_dark)
            time.sleep(1)  # colors change smoothly
            assert user.js(FAINT) == [], (tab, is_dark)


def test_a_stopped_batch_hands_over_what_it_has(user, tmp_path):
    user.turn("sem", 0.5)
    next(tab for tab in user.all("[role=tab]") if tab.text == "Many pictures").click()
    until(lambda: "repair 1, detail 0.5; as large as fits" in user.one("#plan").text)
    many = [write(tmp_path / f"many{number:02}.png", (48, 32), number) for number in range(40)]
    user.drop(*many, on="#files")
    until(lambda: "many39" in user.one("#files").text)
    status = user.one("#status textarea")
    user.one("#start").click()
    until(lambda: "3 of 40" in status.get_attribute("value"))
    user.one("#stop").click()
    link = until(lambda: user.all("#archive a[href]"))[0].get_attribute("href")
    assert "Stopped after" in status.get_attribute("value")
    with zipfile.ZipFile(io.BytesIO(httpx.get(link).content)) as archive:
        names = [f"{path.stem}_pix1_sem0.5.png" for path in many]
        assert sorted(archive.namelist()) == names[: len(archive.namelist())] != names


def test_on_a_phone_the_picture_stays_is_zoomed_in_place_and_all_has_a_name(page, tmp_path):
    user = Hand(tmp_path, page.local_url, (420, 860))
    try:
        user.load().one("#viewer [data-zoom='1']").click()
        user.js("document.querySelector('#sem').scrollIntoView({ block: 'end' })")
        opener, stage, knob = (
            user.js(f"document.querySelector('{css}').getBoundingClientRect().toJSON()")
            for css in ("#viewer .another", "#viewer .stage", "#sem input[type=range]")
        )
        assert 0 <= opener["top"] < stage["top"] < stage["bottom"] <= knob["top"] < 860
        controls = "#one button, #one input:not([type=checkbox]), #keep label, #viewer .picture"
        for control in filter(lambda one: one.is_displayed(), user.all(controls)):
            named = control.accessible_name or control.text
            assert named and control.size["height"] >= 44, named
        assert user.js("getComputedStyle(document.querySelector('canvas')).touchAction") == "pan-y"
        place, send = user.place(200, 150), user.browser.execute_cdp_cmd
        x, y = stage["left"] + 200, stage["top"] + 150
        for kind, far in (("Start", 40), ("Move", 50), ("Move", 65), ("Move", 80), ("End", 0)):
            two = [{"x": x + far * way, "y": y, "id": way + 1} for way in (-1, 1) if far]
            send("Input.dispatchTouchEvent", {"type": f"touch{kind}", "touchPoints": two})
        wheel = {"type": "mouseWheel", "x": x, "y": y, "deltaX": 0}
        send("Input.dispatchMouseEvent", wheel | {"deltaY": -100})
        until(lambda: user.about()["view"]["zoom"] > 2.1)
        assert np.abs(user.place(200, 150) - place).max() < 0.002  # what is there stays there
        x, y = knob["left"] + 30, knob["top"] + 20
        for kind, *at in (("Start", y), ("Move", y - 40), ("Move", y - 99), ("End",)):
            finger = [{"x": x, "y": where} for where in at]
            send("Input.dispatchTouchEvent", {"type": f"touch{kind}", "touchPoints": finger})
        until(lambda: user.js("scrollY > 9 && document.querySelector('#sem input').value === '1'"))
        presets = user.all("#presets button")
        presets[0].click()
        until(lambda: presets[0].get_attribute("aria-pressed") == "true")
        user.turn("pix", 0.5)  # and what was tapped looks like the others again
        until(lambda: len({one.value_of_css_property("border-color") for one in presets}) == 1)
        user.open(write(tmp_path / "mine.png", (96, 80)))
        user.one("#viewer [data-tool='paint']").click()
        assert user.one(".brush span").is_displayed() and user.one("#keep input").size["width"] > 23
        user.one("#viewer .close").click()
        assert not user.one("#download").is_enabled() and "drop" not in user.one(".empty").text
    finally:
        user.browser.quit()


def test_what_is_shared_is_both_sides_of_the_whole(user, page, tmp_path):
    photo = write(tmp_path / "early.png", (320, 240))
    with page.session.device:
        user.open(photo)
        user.one("#viewer .share").click()  # before anything is predicted
        time.sleep(1)
        assert user.about()["part"] == 0 and not list(user.downloads.glob("early*"))
    (path,) = until(lambda: list(user.downloads.glob("early_before_after.html")))
    _, _, after = path.read_text().split("data:image/jpeg;base64,")
    shown = Image.open(io.BytesIO(base64.b64decode(after.split('"')[0])))
    made = np.asarray(page.session.pipe(Image.open(photo), 1, 1).images[0].reduce(2)).astype(int)
    assert np.abs(made - np.asarray(shown)).max() < 12 and "http" not in path.read_text()


def test_a_preview_of_512_px_answers_within_150_ms(user, photos):
    """From a knob's move to the mixture drawn, the median of 9."""
    move = """const done = arguments[arguments.length - 1], at = performance.now();
        const range = document.querySelector("#sem input[type=range]");
        range.value = arguments[0];
        range.dispatchEvent(new Event("input", { bubbles: true }));
        (function look() {
          if (window.pisasr.drawnAt() > at) done(window.pisasr.drawnAt() - at);
          else setTimeout(look, 1);
        })();"""
    user.open(write(photos[0], (128, 128)))
    user.picture()
    moves = [user.browser.execute_async_script(move, value / 10) for value in range(1, 10)]
    assert np.median(moves) < 150
