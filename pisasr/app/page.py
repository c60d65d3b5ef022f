"""Lay the page out: gradio's controls and the batch; the picture is viewer.js, over routes.py."""

import html
import os
import tempfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import gradio as gr
import torch
from starlette.middleware import Middleware

from pisasr.app.routes import MAX_UPLOAD_MB, Guard, Routes
from pisasr.app.session import FORMATS, IDLE_S, Job, Session, Settings, Stopped
from pisasr.errors import PisasrError, explain
from pisasr.options import ColorFix

HERE, FILES = Path(__file__).parent, ("viewer.html", "viewer.js", "help.md")
PRESETS = {"Faithful": (1.0, 0.0), "Balanced": (1.0, 0.5), "Sharp": (1.0, 1.0)}
FACTORS = [("as much as fits", 0), *((f"{n} time{'s' * (n > 1)}", n) for n in (1, 2, 3, 4, 6, 8))]
COLORS = [("the model's own way", ""), *((name, name) for name in get_args(ColorFix))]
FONTS = ["system-ui", "-apple-system", "Segoe UI", "sans-serif"]
MAX_BATCH = 200  # files
MAX_WAITING = 64  # requests of all users
HEAD = "<h1>pisasr</h1><p>A sharper photo from a poor one, and two knobs for how far to go.</p>"


def repair_all(
    session: Session, files: list[str], chosen: Settings, folder: Path, job: Job | None = None
) -> Iterator[str]:
    """Repair one file after another into a folder; yields what has been done, a line for each."""
    rows: list[str] = []
    factor = "as much as fits" if chosen.upscale is None else f"{chosen.upscale:g} times"
    what = f"repair {chosen.lambda_pix:g}, detail {chosen.lambda_sem:g}, {factor}"
    started, left = time.monotonic(), ""
    for number, file in enumerate(files, 1):
        name = Path(file).name
        if rows:
            seconds = (time.monotonic() - started) / len(rows) * (len(files) - len(rows))
            left = f", about {seconds / 60:.0f} min left" if seconds > 60 else ""
        yield "\n".join([*rows, f"{number} of {len(files)}: {name} ({what}){left}"])
        path = folder / chosen.file_name(Path(file).stem)
        if path.exists():
            path = path.with_stem(f"{path.stem}-{number}")
        try:
            session.repair_file(file, path, chosen, job)
            rows.append(f"{name}: {path.name}")
        except Stopped:
            break
        except Exception as error:
            rows.append(f"{name}: failed: {explain(error)}")
    done = "Done." if len(rows) == len(files) else f"Stopped after {len(rows)} of {len(files)}."
    yield "\n".join([*rows, done])


def pack(folder: Path, archive: Path) -> str | None:
    """Pack the finished files of a folder into a zip; None where there are none."""
    files = sorted(folder.glob("[!.]*"))  # a hidden one is unfinished
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as opened:
        for path in files:
            opened.write(path, path.name)
    return str(archive) if files else None


# --- layout ---------------------------------------------------------------------------------------


def build(session: Session) -> gr.Blocks:
    """Lay the page out and connect its events."""
    template, script, help_text = ((HERE / name).read_text(encoding="utf-8") for name in FILES)
    device = session.pipe.device
    where = f"the processor, {torch.get_num_threads()} threads" if device.type == "cpu" else device
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else where
    model_line = f"Model: {session.pipe.identity}; on {where}. Nothing leaves this computer."
    options: dict[str, Any] = {"analytics_enabled": False, "delete_cache": (300, IDLE_S)}
    with gr.Blocks(title="pisasr", fill_width=True, **options) as page:
        batches: dict[str, Job] = {}  # of every visit, set to stop its batch
        gr.HTML(HEAD, elem_id="head")
        with gr.Tab("One picture"), gr.Row(elem_id="one"):
            with gr.Column(scale=3, min_width=280):
                viewer: dict[str, Any] = {"html_template": template, "js_on_load": script}
                gr.HTML(apply_default_css=False, elem_id="viewer", **viewer)
            with gr.Column(scale=1, min_width=280):
                with gr.Group(elem_id="knobs"):
                    pix = _knob("pix", "Repair", 1.0, "takes away noise, blur and blocks")
                    sem = _knob("sem", "Detail", 1.0, "adds texture; some of it is invented")
                with gr.Row(elem_id="presets"):
                    for name, (at_pix, at_sem) in PRESETS.items():
                        place = f"at-{at_pix:g}-{at_sem:g}"
                        button = gr.Button(name, size="sm", min_width=60, elem_id=place)
                        button.click(None, None, [pix, sem], js=f"() => [{at_pix}, {at_sem}]")
                with gr.Row(elem_id="save"):
                    kind = gr.Dropdown([*FORMATS], value="PNG", label="Save as", elem_id="kind")
                    about = "what the camera wrote, with the place where the photo was taken"
                    keep = gr.Checkbox(label="Keep EXIF", info=about, elem_id="keep")
                    download = gr.Button("Download", variant="primary", elem_id="download")
                with gr.Accordion("A place of its own", open=False, elem_id="place"):
                    gr.Markdown("Paint on the picture where other strengths should hold.")
                    inside_pix = _knob("inside_pix", "Repair there", 1.0)
                    inside_sem = _knob("inside_sem", "Detail there", 0.0)
                    feather = _knob("feather", "Soft edge, px", 8, most=64, step=1)
                with gr.Accordion("Size, colors, model", open=False):
                    upscale = gr.Dropdown(FACTORS, value=0, label="Enlarge", elem_id="upscale")
                    colors = gr.Dropdown(COLORS, value="", label="Colors from the photo")
                    models = [("as started", ""), *((name, name) for name in session.others)]
                    model = gr.Dropdown(models, value="", label="Model", visible=len(models) > 1)
                    hint = "What the photo shows (press Enter)"
                    prompt = gr.Textbox("", label=hint, visible=session.takes_prompts)
                gr.HTML(f"<p>{html.escape(model_line)}</p>", elem_id="model")
        with gr.Tab("Many pictures"):
            gr.Markdown(f"Up to {MAX_BATCH} photos, at the first tab's settings; a zip at the end.")
            files = gr.File(label="Photos", file_count="multiple", elem_id="files")
            with gr.Row():
                start = gr.Button("Repair them all", variant="primary", elem_id="start")
                stop = gr.Button("Stop", variant="stop", elem_id="stop")
            status = gr.Textbox(label="Progress", lines=6, interactive=False, elem_id="status")
            archive = gr.File(label="Repaired", interactive=False, height=120, elem_id="archive")
        with gr.Tab("Help"):
            gr.Markdown(help_text, elem_id="help")

        controls: dict[str, Any] = {"lambda_pix": pix, "lambda_sem": sem}
        controls |= {"inside_pix": inside_pix, "inside_sem": inside_sem, "upscale": upscale}
        controls |= {"color_fix": colors, "prompt": prompt, "model": model}
        controls |= {"format": kind, "keep_exif": keep}
        told, names = [feather, *controls.values()], ["feather", *controls]  # to viewer.js

        def settings(values: dict[Any, Any]) -> Settings:
            chosen = {name: values[control] for name, control in controls.items()}
            either = {name: chosen[name] or None for name in ("upscale", "color_fix")}
            return Settings(**chosen | either)

        def repair_files(values: dict[Any, Any], request: gr.Request) -> Iterator[Any]:
            if not values[files] or len(values[files]) > MAX_BATCH:
                raise gr.Error(f"give between 1 and {MAX_BATCH} files", print_exception=False)
            job = batches[str(request.session_hash)] = Job(session.device)
            folder = session.result_folder()
            for lines in repair_all(session, values[files], settings(values), folder, job):
                yield lines, None
            yield lines, pack(folder, session.result_folder() / "repaired.zip")

        def halt(request: gr.Request) -> None:
            if job := batches.pop(str(request.session_hash), None):
                job.is_stopped = True

        def repair(image: str | None, settings: dict[str, Any] | None = None) -> str:
            """Repair one picture and return the file.

            settings: lambda_pix (how much of noise, blur and blocks is taken away, 0 to 1.5),
            lambda_sem (how much detail is added, 0 to 1.5), upscale, color_fix (adain, wavelet,
            none, null for usual), prompt, model, format (PNG, PNG16, JPEG, WebP, TIFF), keep_exif.
            """
            try:
                if image is None:
                    raise PisasrError("image is missing; give a picture, by handle_file(PATH)")
                chosen = Settings.read(settings or {})
                path = session.result_folder() / chosen.file_name(Path(image).stem)
                session.repair_file(image, path, chosen)
            except Exception as error:
                raise gr.Error(explain(error), print_exception=False) from None
            return str(path)

        # All of the first tab happens in the browser; the server's queue is for batch and scripts.
        tell = f"(...values) => window.pisasr?.told({names}, values) ?? []"
        gr.on([page.load, *(control.change for control in told)], None, told, None, js=tell)
        restore = f"(...values) => window.pisasrKnobs?.({names}, values) ?? values"
        page.load(None, told, told, js=restore)
        download.click(None, js="() => { window.pisasr.download(); return [] }")
        batch: dict[str, Any] = {"concurrency_id": "batch", "api_visibility": "private"}
        start.click(repair_files, {files, *controls.values()}, [status, archive], **batch)
        stop.click(halt, queue=False, api_visibility="private")
        page.unload(halt)

        with gr.Row(visible=False):  # for scripts
            image = gr.Image(label="image", type="filepath")
            image.preprocess = lambda payload: payload and payload.path  # type: ignore
            given = [image, gr.JSON({})]
            gr.Button().click(repair, given, gr.File(), api_name="repair", concurrency_limit=4)
    return page


def _knob(
    name: str, label: str, value: float, info: str = "", most: float = 1.5, step: float = 0.05
) -> gr.Slider:
    """A slider from 0; a number beyond is its end, an emptied one 0, where gradio would refuse.

    An attribute of the instance, since gradio writes a file beside subclasses of its components.
    """
    words: dict[str, Any] = {"label": label, "info": info or None, "elem_id": name, "buttons": []}
    knob: Any = gr.Slider(0, most, value, step=step, **words)
    knob.preprocess = lambda payload: min(max(payload or 0, 0), most)
    return knob


def serve(
    session: Session,
    host: str = "127.0.0.1",
    port: int | None = None,
    auth: tuple[str, str] | None = None,
    browser: bool = False,
    names: tuple[str, ...] = (),
) -> gr.Blocks:
    """Start the page at an address, and behind a proxy's names; in threads, until `close`."""
    uploads = Path(os.environ.get("GRADIO_TEMP_DIR") or Path(tempfile.gettempdir()) / "gradio")
    guard = Middleware(Guard, names=(host, *names), uploads=uploads)
    page = build(session).queue(max_size=MAX_WAITING, api_open=False, default_concurrency_limit=4)
    alone: dict[str, Any] = {"share": False, "enable_monitoring": False, "quiet": True}
    routed = {"routes": Routes(session).all(), "middleware": [guard], "openapi_url": None}
    page.launch(
        **{"server_name": host, "server_port": port, "auth": auth, "inbrowser": browser, **alone},
        max_file_size=f"{MAX_UPLOAD_MB}mb",
        footer_links=["api"],
        theme=gr.themes.Base(primary_hue="orange", neutral_hue="stone", font=FONTS),
        css_paths=HERE / "style.css",
        prevent_thread_lock=True,
        app_kwargs=routed,
    )
    return page
