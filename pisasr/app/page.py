"""Infer, turned by hand, second half: the page, its looks, and which hand moves what. The work is
the desk's.
"""

import html
import logging
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import gradio as gr
import numpy as np
from gradio.data_classes import FileData

from pisasr import __version__
from pisasr.app.desk import (
    CORNERS,
    Desk,
    Finish,
    Opened,
    Strengths,
    Wish,
    input_image,
    mask_image,
    pack,
    read_mask,
)
from pisasr.errors import PisasrError, explain
from pisasr.pictures.folders import free_name
from pisasr.pictures.saving import save_image

log = logging.getLogger(__name__)

HERE = Path(__file__).parent
EXAMPLES = sorted((HERE.parent / "demo" / "examples").glob("*.png"))
PRESETS = {"Faithful": (1.0, 0.0), "Balanced": (1.0, 0.5), "Sharp": (1.0, 1.0)}
FACTORS = ["2 times", "3 times", "4 times", "6 times", "8 times", "to a long side of"]
FORMATS = {"PNG": ".png", "PNG16": ".png", "JPEG": ".jpg", "WebP": ".webp", "TIFF": ".tif"}
COLORS = {
    "as the model likes it": None,
    "adain": "adain",
    "wavelet": "wavelet",
    "leave them": "none",
}
MAX_UPLOAD_MB = 32
MAX_BATCH = 200  # files
MAX_WAITING = 64  # requests of all users; more are told to come again
PROGRESS = gr.Progress()  # by this default gradio knows where to put its own
CLEAN_S = (300, 3600)  # every so many seconds, files older than so many are deleted

HEAD = """<h1>pisasr</h1><p>A sharper photo from a poor one, and two knobs for how far to go.</p>"""

ABOUT = f"""
### What the two knobs do

A photo that was shrunk, compressed or taken in the dark has lost something. One step of a diffusion model guesses it
back, twice: once how the photo was before the damage, once with the fine detail that such things usually have.

- **Repair** takes away noise, blur and blocks. At 0 nothing is repaired, 1 is as trained, more overdoes it.
- **Detail** adds texture: hair, leaves, weave. At 0 the result is faithful and soft. At 1 it is sharp, and some of it
  is invented: likely, but not in your photo. Don't read evidence out of it.

While a knob moves, you see a mixture of four results that were computed beforehand; when it rests, the exact one.

**A place of its own**: paint where other strengths should hold. Letters and faces mostly want less detail than leaves.

The method is PiSA-SR ([arXiv 2412.03017](https://arxiv.org/abs/2412.03017)), where the knobs are called λ_pix and
λ_sem. This is pisasr {__version__}. Pictures stay on the computer that runs this page: nothing is sent elsewhere, files
are deleted after an hour and when the page's program ends.
"""


@contextmanager
def told() -> Iterator[None]:
    """Let whatever goes wrong in the block become one line on the page, and no traceback."""
    try:
        yield
    except gr.Error:
        raise
    except Exception as error:
        log.debug("an event of the page failed", exc_info=True)
        raise gr.Error(html.escape(explain(error)), print_exception=False) from None


def read_wish(enlarge: str, long_side: float | None, prompt: str) -> Wish:
    """The page's words for a size as what the desk takes."""
    if enlarge == FACTORS[-1]:
        if not long_side or long_side != long_side or not 1 <= long_side <= 100_000:
            raise PisasrError(
                f"a long side of {long_side} px is asked for; give a whole number of pixels"
            )
        return Wish(long_side=round(long_side), prompt=prompt)
    return Wish(float(enlarge.split()[0]), prompt=prompt)


def bits_of(kind: str) -> int:
    """Of each channel of a file of this format."""
    return 16 if kind == "PNG16" else 8


def to_browser(path: Path) -> dict[str, Any]:
    """A file on its way into a gr.HTML: gradio copies it into its cache and adds a url."""
    return FileData(path=str(path), orig_name=path.name).model_dump()


class Listener:
    """What the page's events call: arguments as the components hold them, on their way to and from
    the desk.
    """

    def __init__(self, desk: Desk):
        self.desk = desk
        self.scratch = TemporaryDirectory(prefix="pisasr-", ignore_cleanup_errors=True)

    # --- one picture ---

    def forecast(self, photo: str | None, enlarge: str, long_side: float, prompt: str) -> str:
        """What will happen, in a line, before it happens."""
        if photo is None:
            return ""
        try:
            picture = self.desk.read(photo)
            notices = "".join(f" ({notice})" for notice in picture.notices)
            wish = read_wish(enlarge, long_side, prompt)
            return self.desk.forecast(picture.size, wish) + notices
        except Exception as error:  # `open` tells it aloud
            return html.escape(explain(error))

    def open(
        self, photo: str | None, key: str | None, pix: float, sem: float, enlarge: str, long_side: float,
        prompt: str, colors: str, progress: gr.Progress = PROGRESS,
    ) -> Iterator[tuple[str | None, Any]]:  # fmt: skip
        """Look at a picture once; show it at the current strengths, then make the knobs' preview
        ready.
        """
        if photo is None:
            yield key, gr.skip()
            return
        with told():
            former, finish = self.desk.store.find(key), Finish(COLORS[colors])
            wish = read_wish(enlarge, long_side, prompt)
            if former and self._is_ready(
                former, photo, wish, finish
            ):  # browsers tell of one photo twice
                yield key, gr.skip()
                return
            progress(0.05, desc="Looking at the picture")

            def step(done: int, count: int) -> None:
                progress(
                    0.1 + 0.5 * done / count, desc=f"Looking at the picture, tile {done} of {count}"
                )

            opened = self.desk.open(photo, wish, step, former)
            progress(0.6, desc="Drawing the result")
            self.desk.show(opened, Strengths(pix, sem), finish)
            yield opened.key, self._view(opened) | {"at": [pix, sem]}
            self.desk.store.drop(
                key
            )  # not before the page has the new one: it may be asked for meanwhile
            for number, corner in enumerate(self.desk.corners(opened, finish)):
                progress(0.7 + 0.07 * number, desc="Making the knobs ready")
                opened.save(corner, f"corner{number}.jpg", format="JPEG", quality=92, subsampling=0)
            yield opened.key, self._view(opened) | {"at": [pix, sem]}

    @staticmethod
    def _is_ready(opened: Opened, photo: str, wish: Wish, finish: Finish) -> bool:
        """Whether this lies open already, corners and all."""
        corners = list(Path(opened.folder.name).glob("corner*.jpg"))
        same = (opened.path, opened.wish, opened.finish) == (Path(photo), wish, finish)
        return same and len(corners) == len(CORNERS)

    def settle(
        self, key: str | None, pix: float, sem: float, inside_pix: float, inside_sem: float, feather: float,
        colors: str, event: gr.EventData,
    ) -> dict[str, Any]:  # fmt: skip
        """The exact picture, once the knobs rest: no UNet. The browser's turn comes back, so that
        the last one wins.
        """
        with told():
            opened = self.desk.store.get(key)
            mask = read_mask(str(getattr(event, "mask", "") or ""))
            strengths = Strengths(pix, sem, inside_pix, inside_sem, feather, mask)
            self.desk.show(opened, strengths, Finish(COLORS[colors]))
            return self._view(opened) | {"turn": int(event.turn)}

    def _view(self, opened: Opened) -> dict[str, Any]:
        """What viewer.js shows of a picture; what it has loaded once it doesn't load again."""
        folder = Path(opened.folder.name)
        if not (folder / "before.png").exists():
            opened.save(input_image(opened.picture), "before.png")
        after = folder / "after.png"
        if opened.result is not None:
            opened.save(opened.result, after.name)
        corners = [to_browser(path) for path in sorted(folder.glob("corner*.jpg"))]
        named = {"id": opened.key[:8], "size": list(opened.size), "corners": corners, "turn": -1}
        return named | {"before": to_browser(folder / "before.png"), "after": to_browser(after)}

    def choose(
        self, key: str | None, colors: str, progress: gr.Progress = PROGRESS
    ) -> tuple[float, float]:
        """Both strengths by the rule that `--lambda_auto` knows."""
        with told():
            opened = self.desk.store.get(key)

            def step(done: int, count: int) -> None:
                progress((done, count), desc="Trying strengths", unit="pairs")

            return self.desk.choose(opened, Finish(COLORS[colors]), step=step).pair

    def lay_mask(self, key: str | None, file: str | None) -> Any:
        """A mask from a file on to the viewer, where it can be painted on."""
        if file is None:
            return gr.skip()
        with told():
            opened = self.desk.store.get(key)
            path = opened.save(mask_image(file, self.desk.limits, opened.picture), "mask.png")
            return self._view(opened) | {"mask": to_browser(path)}

    def download(self, key: str | None, kind: str, keep: bool) -> str:
        """What is shown, as a file of the asked kind, which tells how it was made."""
        with told():
            opened = self.desk.store.get(key)
            if opened.result is None:
                raise PisasrError("nothing is shown yet; wait for the picture")
            is_deep = bits_of(kind) == 16
            name = f"{opened.path.stem}_{opened.strengths.words}{'_16bit' if is_deep else ''}{FORMATS[kind]}"
            path, result = (
                Path(opened.folder.name, name),
                self.desk.deep(opened) if is_deep else opened.result,
            )
            how = opened.picture, opened.strengths, opened.wish, opened.finish
            save_image(result, path, self.desk.metadata(*how, keep))
            return str(path)

    # --- many pictures ---

    def batch(
        self, files: list[str] | None, pix: float, sem: float, enlarge: str, long_side: float,
        colors: str, kind: str, keep: bool, made: dict[str, Any],
    ) -> Iterator[tuple[str, Any]]:  # fmt: skip
        """Repair one file after another; another user's picture may come between two. At the end, a
        zip of all.
        """
        with told():
            if not files:
                raise PisasrError("no pictures yet; drop some first")
            if len(files) > MAX_BATCH:
                raise PisasrError(f"{len(files)} files came, {MAX_BATCH} at a time are the most")
            wish = read_wish(enlarge, long_side, "")
        folder = made["folder"] = TemporaryDirectory(prefix="pisasr-", ignore_cleanup_errors=True)
        rows: list[str] = []
        taken: set[str] = set()
        for number, file in enumerate(files):
            yield _table(rows, f"{number + 1} of {len(files)}: {_cell(file)}"), None
            try:
                how = (
                    self.desk.read(file),
                    Strengths(pix, sem),
                    wish,
                    Finish(COLORS[colors]),
                )
                result = self.desk.repair(*how, bits_of(kind))
                name = free_name(Path(Path(file).stem), taken, FORMATS[kind])
                save_image(result, Path(folder.name, name), self.desk.metadata(*how, keep))
                width, height = (
                    result.shape[1::-1] if isinstance(result, np.ndarray) else result.size
                )
                rows.append(f"| {_cell(file)} | {width} × {height} |")
            except Exception as error:
                rows.append(f"| {_cell(file)} | failed: {html.escape(explain(error))} |")
        yield _table(rows, "Done."), self.gather(made)[1]

    def gather(self, made: dict[str, Any]) -> tuple[str, Any]:
        """What a batch has made so far, as a zip; nothing, where it has made nothing."""
        folder = made.get("folder")
        if folder is None or not any(Path(folder.name).iterdir()):
            return "Stopped; nothing was finished.", None
        made["zip"] = TemporaryDirectory(prefix="pisasr-", ignore_cleanup_errors=True)
        archive = pack(Path(folder.name), Path(made["zip"].name, "repaired.zip"))
        return "Stopped; what was finished is in the zip.", str(archive)

    # --- from a script ---

    def repair(
        self, image: str | None, lambda_pix: float = 1, lambda_sem: float = 1, upscale: float = 4,
        color_fix: str | None = None, format: str = "PNG", mask: str | None = None, inside_pix: float = 1,
        inside_sem: float = 0, feather: float = 8, prompt: str = "",
    ) -> str:  # fmt: skip
        """Repair one picture and give back the file, of the asked format: what the page does, for a
        script.

        lambda_pix: how much of noise, blur and blocks is taken away, 0 to 1.5. lambda_sem: how much
        detail is added, 0 to 1.5. color_fix: adain, wavelet, none, or None for the model's own way.
        format: PNG, PNG16 (sixteen bits a channel), JPEG, WebP or TIFF. mask: a grey picture in the
        image's proportions; where it is white, the strengths are inside_pix and inside_sem, feather
        px of the result soft at the rim. prompt: what the image shows.
        """
        with told():
            if image is None:
                raise PisasrError(
                    "image is missing; give a picture, handle_file(PATH) in gradio's client"
                )
            if format not in FORMATS:
                raise PisasrError(f"format is {format!r}; it must be one of {', '.join(FORMATS)}")
            picture, limits = self.desk.read(image), self.desk.limits
            place = (
                None
                if mask is None
                else np.asarray(mask_image(mask, limits, picture), np.float32) / 255
            )
            strengths = Strengths(lambda_pix, lambda_sem, inside_pix, inside_sem, feather, place)
            wish = Wish(upscale, prompt=prompt)
            how = picture, strengths, wish, Finish(color_fix)
            result = self.desk.repair(*how, bits_of(format))
            self._forget()
            folder = Path(self.scratch.name, secrets.token_hex(8))
            folder.mkdir()
            path = folder / f"{Path(image).stem}_{strengths.words}{FORMATS[format]}"
            save_image(result, path, self.desk.metadata(*how))
            return str(path)

    def _forget(self) -> None:
        """Delete what scripts were given an hour ago; gradio sees to its own copies."""
        for folder in Path(self.scratch.name).iterdir():
            if time.time() - folder.stat().st_mtime > CLEAN_S[1]:
                shutil.rmtree(folder, ignore_errors=True)


# --- the layout -----------------------------------------------------------------------------------


def build(desk: Desk) -> gr.Blocks:
    """The page: every component, and what each hand sets going."""
    listen = Listener(desk)
    with gr.Blocks(
        title="pisasr", analytics_enabled=False, delete_cache=CLEAN_S, fill_width=True
    ) as page:
        key = gr.State(None, time_to_live=desk.limits.idle_s, delete_callback=desk.store.drop)
        made = gr.State({}, time_to_live=desk.limits.idle_s)
        gr.HTML(HEAD, elem_id="head")
        with gr.Tab("One picture"), gr.Row(elem_id="desk"):
            with gr.Column(scale=3, min_width=280):
                viewer = gr.HTML(
                    None,
                    html_template=(HERE / "viewer.html").read_text(encoding="utf-8"),
                    js_on_load=(HERE / "viewer.js").read_text(encoding="utf-8"),
                    apply_default_css=False,
                    elem_id="viewer",
                )
                info = gr.Markdown("", elem_id="info")
                with gr.Row(elem_id="save"):
                    names = [("PNG, 16 bit" if kind == "PNG16" else kind, kind) for kind in FORMATS]
                    kind = gr.Radio(
                        names,
                        value="PNG",
                        label="File format",
                        show_label=False,
                        container=False,
                        elem_id="kind",
                    )
                    keep = gr.Checkbox(
                        False, label="Keep the photo's EXIF", container=False, elem_id="keep"
                    )
                    download = gr.Button("Download", variant="primary", elem_id="download")
                    ready = gr.DownloadButton(visible="hidden", elem_id="ready")
            with gr.Column(scale=1, min_width=280):
                photo = _photo("Drop, paste or choose a photo", "photo")
                gr.Examples(
                    [[str(path)] for path in EXAMPLES],
                    photo,
                    label="or try one",
                    elem_id="examples",
                    api_visibility="private",
                )
                with gr.Group():
                    pix = _knob("Repair", "takes away noise, blur and blocks", 1.0, "pix")
                    sem = _knob("Detail", "adds texture; some of it is invented", 1.0, "sem")
                with gr.Row(elem_id="presets"):
                    presets = {
                        pair: gr.Button(
                            name, size="sm", min_width=60, elem_id="at-{:g}-{:g}".format(*pair)
                        )
                        for name, pair in PRESETS.items()
                    }
                    choose = gr.Button("Choose for me", size="sm", min_width=60, elem_id="choose")
                with gr.Accordion("A place of its own", open=False):
                    gr.Markdown(
                        "Paint on the picture where other strengths should hold, or give a mask: white is the place."
                    )
                    inside_pix = _knob("Repair there", None, 1.0, "inside_pix")
                    inside_sem = _knob("Detail there", None, 0.0, "inside_sem")
                    feather = _turned(
                        gr.Slider(0, 64, 8, step=1, label="Soft edge, px", elem_id="feather")
                    )
                    mask = gr.File(
                        label="Mask from a file", file_types=["image"], height=90, elem_id="mask"
                    )
                with gr.Accordion("Size and colours", open=False):
                    enlarge = gr.Dropdown(
                        FACTORS, value="4 times", label="Enlarge", elem_id="enlarge"
                    )
                    long_side = gr.Number(
                        1024, label="Long side, px (press Enter)", precision=0, visible=False
                    )
                    colors = gr.Dropdown(
                        list(COLORS), value=next(iter(COLORS)), label="Colours from the photo"
                    )
                    hint = "What the photo shows (press Enter)"
                    prompt = gr.Textbox("", label=hint, max_length=500, visible=desk.takes_prompts)
        with gr.Tab("Many pictures"):
            gr.Markdown(
                f"Up to {MAX_BATCH} photos, repaired and saved as the first tab says; a zip at the end."
            )
            files = gr.File(
                label="Photos", file_count="multiple", file_types=["image"], elem_id="files"
            )
            folder = gr.Button("Add a folder", size="sm", elem_id="folder")
            with gr.Row():
                start = gr.Button("Repair them all", variant="primary", elem_id="start")
                stop = gr.Button("Stop", variant="stop", elem_id="stop")
            status = gr.Markdown("", elem_id="status")
            archive = gr.File(label="Repaired", interactive=False, height=120, elem_id="archive")
        with gr.Tab("Help"):
            gr.Markdown(ABOUT, elem_id="about")

        size, finish = [enlarge, long_side, prompt], [colors]
        quiet: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
        device: dict[str, Any] = {
            "concurrency_id": "device",
            "concurrency_limit": 1,
            "api_visibility": "private",
        }

        photo.change(listen.forecast, [photo, *size], info, **quiet)
        opening: dict[str, Any] = {
            "fn": listen.open,
            "inputs": [photo, key, pix, sem, *size, *finish],
            "outputs": [key, viewer],
        }
        resized = [enlarge.input, long_side.submit]
        gr.on(
            [photo.change, *resized, prompt.submit, colors.input],
            **opening,
            **device,
        )
        gr.on(resized, listen.forecast, [photo, *size], info, **quiet)
        enlarge.input(
            lambda name: gr.update(visible=name == FACTORS[-1]), enlarge, long_side, **quiet
        )

        knobs = [pix, sem, inside_pix, inside_sem, feather]
        hear = (
            f"(...all) => window.pisasr?.turned({[knob.maximum for knob in knobs]}, ...all) ?? []"
        )
        gr.on([page.load, *(knob.change for knob in knobs)], None, knobs, None, js=hear)
        settling = viewer.settle(
            listen.settle,
            [key, *knobs, *finish],
            viewer,
            trigger_mode="multiple",
            show_progress="hidden",
            **device,
        )
        settling.failure(None, js="() => window.pisasr.failed()")
        viewer.choose(None, viewer, [pix, sem], js="(value) => value.chosen")
        for pair, button in presets.items():
            button.click(None, None, [pix, sem], js=f"() => {list(pair)}")
        choose.click(listen.choose, [key, *finish], [pix, sem], show_progress_on=info, **device)
        photo.change(None, None, mask, js="() => null")  # it was the former photo's
        mask.upload(listen.lay_mask, [key, mask], viewer, **quiet)
        saving = download.click(listen.download, [key, kind, keep], ready, **quiet)
        saving.success(None, js="() => document.querySelector('#ready').click()")

        folder.click(None, js=(HERE / "folder.js").read_text(encoding="utf-8"))
        inputs = [files, pix, sem, enlarge, long_side, *finish, kind, keep, made]
        run = start.click(
            listen.batch,
            inputs,
            [status, archive],
            concurrency_id="batch",
            api_visibility="private",
        )
        halt = stop.click(
            None, cancels=run
        )  # first, lest a picture's line that is under way comes after "Stopped"
        halt.then(listen.gather, made, [status, archive], **quiet)

        with gr.Row(visible=False):  # the same from a script
            given = [
                _photo("image", "image"),
                gr.Number(1.0),
                gr.Number(1.0),
                gr.Number(4.0),
                gr.Textbox(None),
                gr.Textbox("PNG"),
                _photo("mask", "mask_image"),
                gr.Number(1.0),
                gr.Number(0.0),
                gr.Number(8.0),
                gr.Textbox(""),
            ]
            gr.Button().click(
                listen.repair,
                given,
                gr.File(),
                api_name="repair",
                concurrency_id="device",
                concurrency_limit=1,
            )
    return page


def _photo(label: str, name: str) -> gr.Image:
    """An input whose file comes as it was uploaded: `Desk.read` opens it, and says what is wrong
    with it.
    """
    photo: Any = gr.Image(
        label=label, type="filepath", sources=["upload", "clipboard"], height=200, elem_id=name
    )
    photo.preprocess = lambda payload: payload and payload.path
    return photo


def _knob(label: str, info: str | None, value: float, name: str) -> gr.Slider:
    return _turned(gr.Slider(0, 1.5, value, step=0.05, label=label, info=info, elem_id=name))


def _turned(slider: gr.Slider) -> gr.Slider:
    """A slider whose number is where its handle stands: its least when emptied, its end when
    beyond. (Gradio writes a file beside whoever inherits from its components.)
    """
    usual = slider.preprocess

    def preprocess(payload: float | None) -> float:
        return usual(min(max(payload or slider.minimum, slider.minimum), slider.maximum))

    slider.preprocess = preprocess  # type: ignore[method-assign]  # of this one alone
    return slider


def serve(
    desk: Desk,
    host: str = "127.0.0.1",
    port: int | None = None,
    auth: tuple[str, str] | None = None,
    browser: bool = False,
) -> gr.Blocks:
    """Start the page at an address; it runs in threads until `close`. Nothing is sent to others
    than its readers.
    """
    page = build(desk).queue(max_size=MAX_WAITING, api_open=False, default_concurrency_limit=4)
    page.launch(
        server_name=host,
        server_port=port,
        auth=auth,
        share=False,
        inbrowser=browser,
        max_file_size=f"{MAX_UPLOAD_MB}mb",
        strict_cors=True,
        ssr_mode=False,
        mcp_server=False,
        pwa=False,
        run_history=False,
        enable_monitoring=False,
        footer_links=["api"],
        theme=theme(),
        css_paths=HERE / "style.css",
        prevent_thread_lock=True,
        quiet=True,
    )
    return page


def theme() -> gr.themes.Base:
    """Paper, ink and one warm accent, in the system's own letters."""
    hues: dict[str, Any] = {
        "primary_hue": "orange",
        "secondary_hue": "stone",
        "neutral_hue": "stone",
    }
    letters = ["system-ui", "-apple-system", "Segoe UI", "sans-serif"]
    paper = gr.themes.Base(
        **hues, font=letters, font_mono=["ui-monospace", "monospace"], radius_size="lg"
    )
    return paper.set(
        body_background_fill="#faf8f5",
        body_background_fill_dark="#191614",
        body_text_color_subdued="#6f6862",
        block_info_text_color="#6f6862",
        button_primary_background_fill="#b4531d",
        button_primary_background_fill_hover="#96431a",
        button_primary_background_fill_dark="#b4531d",
        button_primary_background_fill_hover_dark="#c9622a",
        button_primary_border_color="transparent",
        button_primary_text_color="white",
        button_secondary_background_fill="*background_fill_primary",
        button_secondary_border_color="*border_color_primary",
        button_border_width="1px",
        color_accent="#b4531d",
        link_text_color="#96431a",
        link_text_color_dark="#f2a878",
        slider_color="#b4531d",
        slider_color_dark="#d8783f",
    )


def _cell(file: str) -> str:
    """A file's name as code, so that nothing in it is markup."""
    return "`" + Path(file).name.replace("`", "'").replace("|", "\\|") + "`"


def _table(rows: list[str], line: str) -> str:
    return "\n".join(
        [html.escape(line), "", "| picture | result |", "| --- | --- |", *rows]
        if rows
        else [html.escape(line)]
    )
