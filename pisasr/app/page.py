"""The page: its components and events. What they do to pictures is in session.py."""

import html
import logging
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.data_classes import FileData

from pisasr.app.session import FORMATS, OpenPicture, Session, Settings, input_image, read_mask
from pisasr.errors import PisasrError, explain
from pisasr.method.color import COLOR_FIXES

log = logging.getLogger(__name__)

HERE = Path(__file__).parent
EXAMPLES = sorted((HERE.parent / "demo" / "examples").glob("*.png"))
PRESETS = {"Faithful": (1.0, 0.0), "Balanced": (1.0, 0.5), "Sharp": (1.0, 1.0)}
FACTORS = [(f"{factor} times", float(factor)) for factor in (1, 2, 3, 4, 6, 8)]
COLORS = [("the model's own way", None), *((name, name) for name in COLOR_FIXES)]
MAX_UPLOAD_MB = 32
MAX_BATCH = 200  # files
MAX_WAITING = 64  # requests of all users
CLEAN_S = (300, 3600)  # every so many seconds, gradio deletes its copies older than so many
PROGRESS = gr.Progress()  # gradio finds it among a function's defaults

HEAD = "<h1>pisasr</h1><p>A sharper photo from a poor one, and two knobs for how far to go.</p>"


@contextmanager
def shown_errors() -> Iterator[None]:
    """Show exceptions of the block as one line on the page, without a traceback."""
    try:
        yield
    except Exception as error:
        log.debug("an event of the page failed", exc_info=True)
        raise gr.Error(html.escape(explain(error)), print_exception=False) from None


class Listener:
    """The functions of the page's events. settings: values of `Settings` by name."""

    def __init__(self, session: Session):
        self.session = session

    def open(
        self, photo: str | None, key: str | None, settings: dict[str, Any], progress: Any = PROGRESS
    ) -> Iterator[tuple[Any, Any, Any]]:
        """Predict once, show the result at the current strengths, then make the preview's corners.

        Yields the key, the viewer's value and a line about sizes.
        """
        unchanged = gr.skip(), gr.skip(), gr.skip()
        if photo is None:
            yield unchanged
            return
        with shown_errors():
            store, chosen = self.session.store, Settings.read(settings)
            former = store.find(key)
            if former and former.is_ready and former.fits(photo, chosen, "color_fix"):
                yield unchanged  # browsers send one photo twice
                return
            progress(0.05, desc="Looking at the picture")
            opened = self.session.open(photo, chosen, former)
            progress(0.6, desc="Drawing the result")
            self.session.show(opened, chosen)
            sizes = " → ".join(f"{w} × {h} px" for w, h in (opened.picture.size, opened.size))
            line = html.escape("; ".join([sizes, *map(str, opened.picture.notices)]))
            at = {"at": [chosen.lambda_pix, chosen.lambda_sem]}
            yield opened.key, _view(opened) | at, line
            store.drop(key)  # only now: the page may have asked for it meanwhile
            for number, corner in enumerate(self.session.corners(opened)):
                progress(0.7 + 0.07 * number, desc="Making the knobs ready")
                corner.save(opened.folder / f"corner{number}.jpg", quality=92, subsampling=0)
            opened.is_ready = True
            yield opened.key, _view(opened) | at, line

    def settle(
        self, key: str | None, settings: dict[str, Any], turn: int, mask: str
    ) -> dict[str, Any]:
        """Show the exact picture of resting knobs. turn: the browser's count of questions."""
        with shown_errors():
            opened = self.session.store.get(key)
            self.session.show(opened, Settings.read(settings), read_mask(mask))
            return _view(opened) | {"turn": turn}

    def download(self, key: str | None, settings: dict[str, Any]) -> str:
        """Write what is shown as a file of the chosen format."""
        with shown_errors():
            chosen = Settings.read(settings)
            opened = self.session.store.get(key)
            return str(self.session.download(opened, chosen.format, chosen.keep_exif))

    def batch(
        self, files: list[str] | None, settings: dict[str, Any], made: dict[str, Any]
    ) -> Iterator[tuple[str, Any]]:
        """Repair one file after another, and pack them; yields lines of text and the zip file.

        made: gets the folder, for `pack` after a stop.
        """
        with shown_errors():
            if not files or len(files) > MAX_BATCH:
                raise PisasrError(f"{len(files or ())} files; give between 1 and {MAX_BATCH}")
            chosen = Settings.read(settings)
        folder = made["folder"] = self.session.new_folder()
        rows: list[str] = []
        for number, file in enumerate(files):
            name = Path(file).name
            yield "\n".join([*rows, f"{number + 1} of {len(files)}: {name}"]), None
            try:
                picture = self.session.read(file)
                result = self.session.repair(picture, chosen)
                path = _free_path(folder, Path(file).stem, chosen.suffix)
                self.session.save(result, path, picture, chosen)
                rows.append(f"{name}: {path.name}")
            except Exception as error:
                rows.append(f"{name}: failed: {explain(error)}")
        yield "\n".join([*rows, "Done."]), self.pack(made)[1]

    def pack(self, made: dict[str, Any]) -> tuple[str, Any]:
        """Pack what a batch has finished so far into a zip."""
        folder = made.get("folder")
        files = sorted(folder.glob("[!.]*")) if folder else []  # a hidden one is unfinished
        if not files:
            return "Stopped; nothing was finished.", None
        archive = self.session.new_folder() / "repaired.zip"
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as pack:
            for path in files:
                pack.write(path, path.name)
        return "Stopped; what was finished is in the zip.", str(archive)

    def repair(self, image: str | None, settings: dict[str, Any] | None = None) -> str:
        """Repair one picture and return the file.

        settings: lambda_pix (how much of noise, blur and blocks is taken away, 0 to 1.5),
        lambda_sem (how much detail is added, 0 to 1.5), upscale, color_fix (adain, wavelet, none,
        or null for the model's own), prompt, format (PNG, PNG16, JPEG, WebP, TIFF), keep_exif.
        """
        with shown_errors():
            if image is None:
                raise PisasrError("image is missing; give a picture, by handle_file(PATH)")
            chosen, picture = Settings.read(settings or {}), self.session.read(image)
            result = self.session.repair(picture, chosen)
            path = self.session.new_folder() / chosen.file_name(Path(image).stem)
            self.session.save(result, path, picture, chosen)
            return str(path)


def _view(opened: OpenPicture) -> dict[str, Any]:
    """The value of viewer.js: files that it loads, each once."""
    before, after = opened.folder / "before.png", opened.folder / "after.png"
    if not before.exists():
        input_image(opened.picture).save(before, compress_level=1)
    if opened.result is not None:
        opened.result.save(after, compress_level=1)
    corners = [_file(path) for path in sorted(opened.folder.glob("corner*.jpg"))]
    files = {"before": _file(before), "after": _file(after), "corners": corners}
    return {"id": opened.key[:8], "size": list(opened.size), "turn": -1, **files}


def _file(path: Path) -> dict[str, Any]:
    """A file for a gr.HTML: gradio copies it into its cache and adds a url."""
    return FileData(path=str(path), orig_name=path.name).model_dump()


def _free_path(folder: Path, stem: str, suffix: str) -> Path:
    path, number = folder / (stem + suffix), 1
    while path.exists():
        number += 1
        path = folder / f"{stem}-{number}{suffix}"
    return path


# --- layout ---------------------------------------------------------------------------------------


def build(session: Session) -> gr.Blocks:
    """Lay the page out and connect its events."""
    listen, idle_s = Listener(session), session.limits.idle_s
    with gr.Blocks(
        title="pisasr", analytics_enabled=False, delete_cache=CLEAN_S, fill_width=True
    ) as page:
        # A bound method would have every page load deep-copy the store with all its pictures.
        key = gr.State(time_to_live=idle_s, delete_callback=lambda key: session.store.drop(key))
        made = gr.State({}, time_to_live=idle_s)
        gr.HTML(HEAD, elem_id="head")
        with gr.Tab("One picture"), gr.Row():
            with gr.Column(scale=3, min_width=280):
                viewer = gr.HTML(
                    html_template=(HERE / "viewer.html").read_text(encoding="utf-8"),
                    js_on_load=(HERE / "viewer.js").read_text(encoding="utf-8"),
                    apply_default_css=False,
                    elem_id="viewer",
                )
                info = gr.Markdown(elem_id="info")
                with gr.Row(elem_id="save"):
                    bare = {"show_label": False, "container": False}
                    kind = gr.Radio(
                        list(FORMATS), value="PNG", label="File format", elem_id="kind", **bare
                    )
                    keep = gr.Checkbox(label="Keep the photo's EXIF", elem_id="keep", **bare)
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
                    pix = _knob("pix", "Repair", 1.0, "takes away noise, blur and blocks")
                    sem = _knob("sem", "Detail", 1.0, "adds texture; some of it is invented")
                with gr.Row(elem_id="presets"):
                    for name, (at_pix, at_sem) in PRESETS.items():
                        button = gr.Button(
                            name, size="sm", min_width=60, elem_id=f"at-{at_pix:g}-{at_sem:g}"
                        )
                        button.click(None, None, [pix, sem], js=f"() => [{at_pix}, {at_sem}]")
                with gr.Accordion("A place of its own", open=False):
                    gr.Markdown("Paint on the picture where other strengths should hold.")
                    inside_pix = _knob("inside_pix", "Repair there", 1.0)
                    inside_sem = _knob("inside_sem", "Detail there", 0.0)
                    feather = _knob("feather", "Soft edge, px", 8, most=64, step=1)
                with gr.Accordion("Size and colors", open=False):
                    upscale = gr.Dropdown(
                        FACTORS, value=Settings.upscale, label="Enlarge", elem_id="enlarge"
                    )
                    colors = gr.Dropdown(COLORS, value=None, label="Colors from the photo")
                    prompt = gr.Textbox(
                        "",
                        label="What the photo shows (press Enter)",
                        max_length=500,
                        visible=session.takes_prompts,
                    )
        with gr.Tab("Many pictures"):
            gr.Markdown(f"Up to {MAX_BATCH} photos, at the first tab's settings; a zip at the end.")
            files = gr.File(
                label="Photos", file_count="multiple", file_types=["image"], elem_id="files"
            )
            with gr.Row():
                start = gr.Button("Repair them all", variant="primary", elem_id="start")
                stop = gr.Button("Stop", variant="stop", elem_id="stop")
            status = gr.Textbox(label="Progress", lines=6, interactive=False, elem_id="status")
            archive = gr.File(label="Repaired", interactive=False, height=120, elem_id="archive")
        with gr.Tab("Help"):
            gr.Markdown((HERE / "help.md").read_text(encoding="utf-8"), elem_id="help")

        knobs = [pix, sem, inside_pix, inside_sem, feather]
        names = ["lambda_pix", "lambda_sem", "inside_pix", "inside_sem", "feather"]
        controls = dict(zip(names, knobs, strict=True))
        controls |= {"upscale": upscale, "color_fix": colors, "prompt": prompt}
        controls |= {"format": kind, "keep_exif": keep}
        everything = {photo, key, files, made, *controls.values()}  # gradio then passes one dict
        private: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
        device: dict[str, Any] = {"concurrency_id": "device", "concurrency_limit": 1}

        def settings(values: dict[Any, Any]) -> dict[str, Any]:
            return {name: values[control] for name, control in controls.items()}

        def open_photo(values: dict[Any, Any], progress: Any = PROGRESS) -> Iterator[Any]:
            yield from listen.open(values[photo], values[key], settings(values), progress)

        def settle(values: dict[Any, Any], event: gr.EventData) -> dict[str, Any]:
            mask = str(getattr(event, "mask", "") or "")
            return listen.settle(values[key], settings(values), int(event.turn), mask)

        def save(values: dict[Any, Any]) -> str:
            return listen.download(values[key], settings(values))

        def run_batch(values: dict[Any, Any]) -> Iterator[Any]:
            yield from listen.batch(values[files], settings(values), values[made])

        gr.on(
            [photo.change, upscale.input, colors.input, prompt.submit],
            open_photo,
            everything,
            [key, viewer, info],
            show_progress_on=viewer,
            api_visibility="private",
            **device,
        )
        ends = [knob.maximum for knob in knobs]
        turned = f"(...values) => window.pisasr?.turned({ends}, ...values) ?? []"
        gr.on([page.load, *(knob.change for knob in knobs)], None, knobs, None, js=turned)
        settled = viewer.settle(
            settle, everything, viewer, trigger_mode="multiple", **private, **device
        )
        settled.failure(None, js="() => window.pisasr.failed()")
        viewer.choose(None, viewer, [pix, sem], js="(value) => value.chosen")
        saved = download.click(save, everything, ready, **private)
        saved.success(None, js="() => document.querySelector('#ready').click()")
        run = start.click(
            run_batch,
            everything,
            [status, archive],
            concurrency_id="batch",
            api_visibility="private",
        )
        halt = stop.click(None, cancels=run)  # first, lest a line under way overwrites "Stopped"
        halt.then(listen.pack, made, [status, archive], **private)

        with gr.Row(visible=False):  # for scripts
            given = [_photo("image", "image"), gr.JSON({})]
            gr.Button().click(listen.repair, given, gr.File(), api_name="repair", **device)
    return page


def _photo(label: str, name: str) -> gr.Image:
    """An input whose file comes as it was uploaded: `Session.read` opens and checks it."""
    photo: Any = gr.Image(
        label=label, type="filepath", sources=["upload", "clipboard"], height=200, elem_id=name
    )
    photo.preprocess = lambda payload: payload and payload.path
    return photo


def _knob(
    name: str,
    label: str,
    value: float,
    info: str | None = None,
    most: float = 1.5,
    step: float = 0.05,
) -> gr.Slider:
    """A slider from 0; a number beyond is its end, an emptied one 0, where gradio would refuse.

    An attribute of the instance, since gradio writes a file beside subclasses of its components.
    """
    knob: Any = gr.Slider(0, most, value, step=step, label=label, info=info, elem_id=name)
    knob.preprocess = lambda payload: min(max(payload or 0, 0), most)
    return knob


def serve(
    session: Session,
    host: str = "127.0.0.1",
    port: int | None = None,
    auth: tuple[str, str] | None = None,
    browser: bool = False,
) -> gr.Blocks:
    """Start the page at an address; it runs in threads until `close`. Nothing is sent elsewhere."""
    page = build(session).queue(max_size=MAX_WAITING, api_open=False, default_concurrency_limit=4)
    page.session = session
    page.launch(
        server_name=host,
        server_port=port,
        auth=auth,
        share=False,
        enable_monitoring=False,
        inbrowser=browser,
        max_file_size=f"{MAX_UPLOAD_MB}mb",
        footer_links=["api"],
        theme=theme(),
        css_paths=HERE / "style.css",
        prevent_thread_lock=True,
        quiet=True,
    )
    return page


def theme() -> gr.themes.Base:
    """Paper, ink and one warm accent, in the system's own letters."""
    accent = "#b4531d"
    paper = gr.themes.Base(
        primary_hue="orange",
        neutral_hue="stone",
        font=["system-ui", "-apple-system", "Segoe UI", "sans-serif"],
        radius_size="lg",
    )
    return paper.set(
        body_background_fill="#faf8f5",
        body_background_fill_dark="#191614",
        button_primary_background_fill=accent,
        button_primary_background_fill_dark=accent,
        button_primary_text_color="white",
        color_accent=accent,
        link_text_color="#96431a",
        link_text_color_dark="#f2a878",
        slider_color=accent,
    )
