"""The page: its components and events. What they do to pictures is in session.py."""

import html
import logging
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

import gradio as gr
from gradio.data_classes import FileData

from pisasr.app.session import FORMATS, IDLE_S, OpenPicture, Session, Settings, read_mask
from pisasr.errors import PisasrError, explain
from pisasr.options import ColorFix
from pisasr.pictures.images import eight_bits, join

log = logging.getLogger(__name__)

HERE = Path(__file__).parent
EXAMPLES = sorted((HERE.parent / "demo" / "examples").glob("*.png"))
PRESETS = {"Faithful": (1.0, 0.0), "Balanced": (1.0, 0.5), "Sharp": (1.0, 1.0)}
FACTORS = [(f"{factor} times", float(factor)) for factor in (1, 2, 3, 4, 6, 8)]
COLORS = {"the model's own way": None, **{name: name for name in get_args(ColorFix)}}
MAX_UPLOAD_MB = 32
MAX_BATCH = 200  # files
MAX_WAITING = 64  # requests of all users
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


def open_photo(
    session: Session, photo: str | None, key: str | None, chosen: Settings, progress: Any
) -> Iterator[tuple[Any, Any, Any]]:
    """Predict once, show the result at the chosen strengths, then make the preview's corners.

    Yields the key, the viewer's value and a line about sizes.
    """
    former = session.store.find(key)
    is_open = former and former.is_ready and former.fits(photo or "", chosen, "color_fix")
    if photo is None or is_open:  # browsers send one photo twice
        yield gr.skip(), gr.skip(), gr.skip()
        return
    progress(0.05, desc="Looking at the picture")

    def on_tile(done: int, total: int) -> None:
        progress(0.1 + 0.5 * done / total, desc=f"Looking at the picture, {done} of {total} tiles")

    opened = session.open(photo, chosen, former, on_tile)
    progress(0.6, desc="Drawing the result")
    session.show(opened, chosen)
    sizes = " → ".join(f"{w} × {h} px" for w, h in (opened.picture.size, opened.size))
    line = html.escape("; ".join([sizes, *map(str, opened.picture.notices)]))
    at = {"at": [chosen.lambda_pix, chosen.lambda_sem]}
    yield opened.key, _view(opened) | at, line
    session.store.drop(key)  # only now: the page may have asked for it meanwhile
    for number, corner in enumerate(session.corners(opened)):
        progress(0.7 + 0.07 * number, desc="Making the knobs ready")
        corner.save(opened.folder / f"corner{number}.jpg", quality=92, subsampling=0)
    opened.is_ready = True
    yield opened.key, _view(opened) | at, line


def repair_all(session: Session, files: list[str], chosen: Settings, folder: Path) -> Iterator[str]:
    """Repair one file after another into a folder; yields what has been done, a line for each."""
    rows: list[str] = []
    for number, file in enumerate(files, 1):
        name = Path(file).name
        yield "\n".join([*rows, f"{number} of {len(files)}: {name}"])
        path = folder / (Path(file).stem + FORMATS[chosen.format])
        if path.exists():
            path = path.with_stem(f"{path.stem}-{number}")
        try:
            session.repair_file(file, path, chosen)
            rows.append(f"{name}: {path.name}")
        except Exception as error:
            rows.append(f"{name}: failed: {explain(error)}")
    yield "\n".join([*rows, "Done."])


def pack(folder: Path, archive: Path) -> str | None:
    """Pack the finished files of a folder into a zip; None where there are none."""
    files = sorted(folder.glob("[!.]*"))  # a hidden one is unfinished
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as opened:
        for path in files:
            opened.write(path, path.name)
    return str(archive) if files else None


def _view(opened: OpenPicture) -> dict[str, Any]:
    """The value of viewer.js: files that it loads, each once."""
    before, after = opened.folder / "before.png", opened.folder / "after.png"
    if not before.exists():
        picture = opened.picture
        eight_bits(join(picture.pixels, picture)).save(before, compress_level=1)
    if opened.result is not None:
        opened.result.save(after, compress_level=1)
    corners = [_file(path) for path in sorted(opened.folder.glob("corner*.jpg"))]
    files = {"before": _file(before), "after": _file(after), "corners": corners}
    return {"id": opened.key[:8], "size": list(opened.size), "turn": -1, **files}


def _file(path: Path) -> dict[str, Any]:
    """A file for a gr.HTML: gradio copies it into its cache and adds a url."""
    return FileData(path=str(path), orig_name=path.name).model_dump()


# --- layout ---------------------------------------------------------------------------------------


def build(session: Session) -> gr.Blocks:
    """Lay the page out and connect its events."""
    with gr.Blocks(
        title="pisasr", analytics_enabled=False, delete_cache=(300, IDLE_S), fill_width=True
    ) as page:
        # A bound method would have every page load deep-copy the store with all its pictures.
        key = gr.State(time_to_live=IDLE_S, delete_callback=lambda key: session.store.drop(key))
        made = gr.State({}, time_to_live=IDLE_S)
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
                    bare: Any = {"show_label": False, "container": False}
                    kind = gr.Radio([*FORMATS], value="PNG", label="Format", elem_id="kind", **bare)
                    keep = gr.Checkbox(label="Keep the photo's EXIF", elem_id="keep", **bare)
                    download = gr.Button("Download", variant="primary", elem_id="download")
                    ready = gr.DownloadButton(visible="hidden", elem_id="ready")
            with gr.Column(scale=1, min_width=280):
                photo = _photo("Drop, paste or choose a photo", "photo")
                shown: Any = {"elem_id": "examples", "api_visibility": "private"}
                gr.Examples([[str(path)] for path in EXAMPLES], photo, label="or try one", **shown)
                with gr.Group():
                    pix = _knob("pix", "Repair", 1.0, "takes away noise, blur and blocks")
                    sem = _knob("sem", "Detail", 1.0, "adds texture; some of it is invented")
                with gr.Row(elem_id="presets"):
                    for name, (at_pix, at_sem) in PRESETS.items():
                        place = f"at-{at_pix:g}-{at_sem:g}"
                        button = gr.Button(name, size="sm", min_width=60, elem_id=place)
                        button.click(None, None, [pix, sem], js=f"() => [{at_pix}, {at_sem}]")
                with gr.Accordion("A place of its own", open=False):
                    gr.Markdown("Paint on the picture where other strengths should hold.")
                    inside_pix = _knob("inside_pix", "Repair there", 1.0)
                    inside_sem = _knob("inside_sem", "Detail there", 0.0)
                    feather = _knob("feather", "Soft edge, px", 8, most=64, step=1)
                with gr.Accordion("Size and colors", open=False):
                    upscale = gr.Dropdown(FACTORS, value=Settings.upscale, label="Enlarge")
                    colors: Any = gr.Dropdown([*COLORS], label="Colors from the photo")
                    colors.preprocess = COLORS.get
                    hint = "What the photo shows (press Enter)"
                    prompt = gr.Textbox("", label=hint, visible=session.takes_prompts)
        with gr.Tab("Many pictures"):
            gr.Markdown(f"Up to {MAX_BATCH} photos, at the first tab's settings; a zip at the end.")
            files = gr.File(label="Photos", file_count="multiple", elem_id="files")
            with gr.Row():
                start = gr.Button("Repair them all", variant="primary", elem_id="start")
                stop = gr.Button("Stop", variant="stop", elem_id="stop")
            status = gr.Textbox(label="Progress", lines=6, interactive=False, elem_id="status")
            archive = gr.File(label="Repaired", interactive=False, height=120, elem_id="archive")
        with gr.Tab("Help"):
            gr.Markdown((HERE / "help.md").read_text(encoding="utf-8"), elem_id="help")

        knobs = [pix, sem, inside_pix, inside_sem, feather]
        names = ["lambda_pix", "lambda_sem", "inside_pix", "inside_sem", "feather"]
        controls: dict[str, Any] = dict(zip(names, knobs, strict=True))
        controls |= {"upscale": upscale, "color_fix": colors, "prompt": prompt}
        controls |= {"format": kind, "keep_exif": keep}
        inputs = set(controls.values())  # of a set of inputs, gradio passes a dict
        private: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
        device: dict[str, Any] = {"concurrency_id": "device", "concurrency_limit": 1}

        def settings(values: dict[Any, Any]) -> Settings:
            return Settings(**{name: values[control] for name, control in controls.items()})

        def drop(values: dict[Any, Any], progress: gr.Progress = PROGRESS) -> Iterator[Any]:
            with shown_errors():
                chosen = settings(values)
                yield from open_photo(session, values[photo], values[key], chosen, progress)

        @shown_errors()
        def settle(values: dict[Any, Any], event: gr.EventData) -> dict[str, Any]:
            opened = session.store.get(values[key])
            session.show(opened, settings(values), read_mask(str(event.mask)))
            return _view(opened) | {"turn": event.turn}  # so that the last question wins

        @shown_errors()
        def save(values: dict[Any, Any]) -> str:
            chosen, opened = settings(values), session.store.get(values[key])
            return str(session.download(opened, chosen.format, chosen.keep_exif))

        def repair_files(values: dict[Any, Any]) -> Iterator[Any]:
            with shown_errors():
                if not values[files] or len(values[files]) > MAX_BATCH:
                    raise PisasrError(f"give between 1 and {MAX_BATCH} files")
                folder = values[made]["folder"] = session.result_folder()
                for lines in repair_all(session, values[files], settings(values), folder):
                    yield lines, None
                yield lines, pack(folder, session.result_folder() / "repaired.zip")

        def stopped(made: dict[str, Any]) -> tuple[str, str | None]:
            archive = session.result_folder() / "repaired.zip"
            return "Stopped.", pack(made["folder"], archive) if made else None

        @shown_errors()
        def repair(image: str | None, settings: dict[str, Any] | None = None) -> str:
            """Repair one picture and return the file.

            settings: lambda_pix (how much of noise, blur and blocks is taken away, 0 to 1.5),
            lambda_sem (how much detail is added, 0 to 1.5), upscale, color_fix (adain, wavelet,
            none, or null for the model's own), prompt, format (PNG, PNG16, JPEG, WebP, TIFF).
            """
            if image is None:
                raise PisasrError("image is missing; give a picture, by handle_file(PATH)")
            chosen = Settings.read(settings or {})
            path = session.result_folder() / chosen.file_name(Path(image).stem)
            session.repair_file(image, path, chosen)
            return str(path)

        changes = [photo.change, upscale.input, colors.input, prompt.submit]
        loud: dict[str, Any] = {"show_progress_on": viewer, "api_visibility": "private"}
        gr.on(changes, drop, {photo, key} | inputs, [key, viewer, info], **loud, **device)
        ends = [knob.maximum for knob in knobs]
        turned = f"(...values) => window.pisasr?.turned({ends}, ...values) ?? []"
        gr.on([page.load, *(knob.change for knob in knobs)], None, knobs, None, js=turned)
        asked = viewer.settle(
            settle, {key} | inputs, viewer, trigger_mode="multiple", **private, **device
        )
        asked.failure(None, js="() => window.pisasr.failed()")
        viewer.choose(None, viewer, [pix, sem], js="(value) => value.chosen")
        saved = download.click(save, {key} | inputs, ready, **private)
        saved.success(None, js="() => document.querySelector('#ready').click()")
        batch: dict[str, Any] = {"concurrency_id": "batch", "api_visibility": "private"}
        run = start.click(repair_files, {files, made} | inputs, [status, archive], **batch)
        halt = stop.click(None, cancels=run)  # first, lest a line under way overwrites "Stopped."
        halt.then(stopped, made, [status, archive], **private)

        with gr.Row(visible=False):  # for scripts
            given = [_photo("image", "image"), gr.JSON({})]
            gr.Button().click(repair, given, gr.File(), api_name="repair", **device)
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
    fonts = ["system-ui", "-apple-system", "Segoe UI", "sans-serif"]
    accent = "#b4531d"  # 5 : 1 on white
    paper = gr.themes.Base(primary_hue="orange", neutral_hue="stone", font=fonts)
    return paper.set(
        body_background_fill="#faf8f5",
        body_background_fill_dark="#191614",
        button_primary_background_fill=accent,
        button_primary_background_fill_dark=accent,
        button_primary_text_color="white",
        color_accent=accent,
        link_text_color=accent,
        link_text_color_dark="#f2a878",
        slider_color=accent,
    )
