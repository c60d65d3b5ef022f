"""Lay the page out: gradio's controls and the batch; the picture is viewer.js, over routes.py."""

import html
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

import gradio as gr
import torch
from starlette.middleware import Middleware
from tqdm import tqdm

from pisasr.app.routes import MAX_UPLOAD_MB, Guard, Routes
from pisasr.app.session import FORMATS, IDLE_S, MAX_STRENGTH, Job, Session, Settings
from pisasr.errors import explain
from pisasr.options import ColorFix

HERE, FILES = Path(__file__).parent, ("viewer.html", "viewer.js", "help.md")
PRESETS = {"Faithful": (1.0, 0.0), "Balanced": (1.0, 0.5), "Sharp": (1.0, 1.0)}
FACTORS = [("as much as fits", 0), *((f"{n} time{'s' * (n > 1)}", n) for n in (1, 2, 3, 4, 6, 8))]
COLORS = [("the model's own way", ""), *((name, name) for name in get_args(ColorFix))]
MAX_BATCH, MAX_WAITING = 200, 64  # files; requests of all users
HEAD = "<h1>pisasr</h1><p>A sharper photo from a poor one, and two knobs for how far to go.</p>"


class Sent(gr.FileData):
    """What a script sends as its picture."""

    @classmethod
    def model_validate(cls, obj: Any, **options: Any) -> Any:
        """Refuse the usual slip, a bare path, in a line."""
        if isinstance(obj, str):
            raise gr.Error("the picture is a path; send handle_file(path)", print_exception=False)
        return super().model_validate(obj, **options)


def repair_all(
    session: Session, files: list[str], chosen: Settings, folder: Path, job: Job
) -> Iterator[str]:
    """Repair one file after another into a folder; yields what has been done, a line for each."""
    rows: list[str] = []
    started, left = time.monotonic(), ""
    for number, file in enumerate(files, 1):
        path = folder / chosen.file_name(Path(file).stem)
        if path.exists():
            path = path.with_stem(f"{path.stem}-{number}")
        name = Path(file).name
        yield "\n".join([*rows, f"{number} of {len(files)}: {name} to {path.name}{left}"])
        try:
            session.repair_file(file, path, chosen, job)
            rows.append(f"{name}: {path.name}")
        except CancelledError:
            break
        except Exception as error:
            rows.append(f"{name}: failed: {explain(error)}")
        file_s = (time.monotonic() - started) / number
        left = f"; about {tqdm.format_interval(file_s * (len(files) - number))} left"
    done = "Done" if len(rows) == len(files) else f"Stopped after {len(rows)} of {len(files)}"
    yield "\n".join([*rows, f"{done}, in {tqdm.format_interval(time.monotonic() - started)}."])


def build(session: Session) -> gr.Blocks:
    """Lay the page out and connect its events."""
    template, script, help_text = ((HERE / name).read_text(encoding="utf-8") for name in FILES)
    where: Any = session.pipe.device
    where = torch.cuda.get_device_name(where) if where.type == "cuda" else f"the {where}"
    model_line = f"Model: {session.pipe.identity}; on {where}. "
    model_line += "Photos go to the computer that runs this page, and nowhere else."
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
                        button = gr.Button(name, size="sm", elem_id=f"at-{at_pix:g}-{at_sem:g}")
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
                    feather = gr.Slider(0, 64, 8, step=1, label="Soft edge, px", buttons=[])
                with gr.Accordion("Size, colors, model", open=False):
                    upscale = gr.Dropdown(FACTORS, value=0, label="Enlarge", elem_id="upscale")
                    colors = gr.Dropdown(COLORS, value="", label="Colors from the photo")
                    models = [("as started", ""), *((name, name) for name in session.others)]
                    model = gr.Dropdown(models, value="", label="Model", visible=len(models) > 1)
                    hint = "What the photo shows (press Enter)"
                    prompt = gr.Textbox("", label=hint, visible=session.pipe.tokenizer is not None)
                gr.HTML(f"<p>{html.escape(model_line)}</p>", elem_id="model")
        with gr.Tab("Many pictures"):
            gr.Markdown(f"Up to {MAX_BATCH} photos, into a zip, at the first tab's settings.")
            plan = gr.Markdown(elem_id="plan")  # what they come to
            files = gr.File(label="Photos", file_count="multiple", elem_id="files")
            with gr.Row():
                start = gr.Button("Repair them all", variant="primary", elem_id="start")
                stop = gr.Button("Stop", variant="stop", elem_id="stop")
            status = gr.Textbox(label="Progress", lines=6, interactive=False, elem_id="status")
            archive = gr.File(label="Repaired", interactive=False, height=120, elem_id="archive")
        with gr.Tab("Help"):
            gr.Markdown(help_text, elem_id="help")

        knobs: list[Any] = [pix, sem, inside_pix, inside_sem, feather]
        controls = [*knobs, upscale, colors, prompt, model, kind, keep]
        names = [field.name for field in fields(Settings)]  # in the order of the controls

        def repair_files(request: gr.Request, paths: list[str] | None, *values: Any) -> Any:
            if not paths or len(paths) > MAX_BATCH:
                raise gr.Error(f"give between 1 and {MAX_BATCH} files", print_exception=False)
            chosen = dict(zip(names, values, strict=True))
            chosen |= {name: chosen[name] or None for name in ("upscale", "color_fix")}
            job = batches[str(request.session_hash)] = Job(session.device)
            folder = session.result_folder()
            for lines in repair_all(session, paths, Settings(**chosen), folder, job):
                yield lines, None
            archive_name = str(session.result_folder() / "repaired")
            is_any = any(folder.iterdir())
            yield lines, shutil.make_archive(archive_name, "zip", folder) if is_any else None

        def halt(request: gr.Request) -> None:
            if job := batches.pop(str(request.session_hash), None):
                job.is_stopped = True

        def repair(image: str, settings: dict[str, Any] | None = None) -> str:
            """Repair one picture and return the file.

            settings: lambda_pix (how much of noise, blur and blocks is taken away, 0 to 1.5),
            lambda_sem (how much detail is added, 0 to 1.5), upscale, color_fix (adain, wavelet,
            none, null for usual), prompt, model, format (PNG, PNG16, JPEG, WebP, TIFF), keep_exif.
            """
            try:
                chosen = Settings(**settings or {})
                path = session.result_folder() / chosen.file_name(Path(image).stem)
                session.repair_file(image, path, chosen, Job(session.device))
            except Exception as error:
                raise gr.Error(explain(error), print_exception=False) from None
            return str(path)

        # All of the first tab happens in the browser; the server's queue is for batch and scripts.
        tell = f"(...values) => window.pisasr?.told({names}, values) ?? ''"
        gr.on([page.load, *(one.change for one in controls)], None, controls, plan, js=tell)
        restore = f"(...values) => window.pisasrKnobs?.({names}, values) ?? values"
        page.load(None, controls, controls, js=restore)
        download.click(None, js="() => { window.pisasr.download(); return [] }")
        batch: dict[str, Any] = {"concurrency_id": "batch", "api_visibility": "private"}
        start.click(repair_files, [files, *controls], [status, archive], **batch)
        stop.click(halt, queue=False, api_visibility="private")
        page.unload(halt)

        with gr.Row(visible=False):  # for scripts
            given = [gr.File(label="image"), gr.JSON({})]
            given[0].data_model = Sent
            gr.Button().click(repair, given, gr.File(), api_name="repair", concurrency_limit=4)
    return page


def _knob(name: str, label: str, value: float, info: str | None = None) -> gr.Slider:
    """A slider for a strength."""
    about: dict[str, Any] = {"label": label, "info": info, "elem_id": name, "buttons": []}
    return gr.Slider(0, MAX_STRENGTH, value, step=0.05, **about)


def serve(
    session: Session, host: str = "127.0.0.1", names: tuple[str, ...] = (), **launch: Any
) -> gr.Blocks:
    """Start the page at an address, and behind a proxy's names; in threads, until `close`."""
    guard = Middleware(Guard, names=(host, *names), uploads=gr.utils.get_upload_folder())
    page = build(session).queue(max_size=MAX_WAITING, api_open=False, default_concurrency_limit=4)
    routes = {"routes": Routes(session).all(), "middleware": [guard], "openapi_url": None}
    launch |= {"share": False, "enable_monitoring": False, "footer_links": ["api"], "quiet": True}
    launch |= {"app_kwargs": routes, "css_paths": HERE / "style.css", "prevent_thread_lock": True}
    theme = gr.themes.Base(primary_hue="orange", neutral_hue="stone", font="system-ui")
    page.launch(server_name=host, theme=theme, max_file_size=f"{MAX_UPLOAD_MB}mb", **launch)
    return page
