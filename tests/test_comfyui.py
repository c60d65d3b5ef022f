"""ComfyUI's nodes, beside a stub of ComfyUI: floats in and out, a moved strength without a pass,
masks, what is found.

The slow test is of a real ComfyUI, where PISASR_COMFYUI names its folder and this Python has what
it needs.
"""

import asyncio
import inspect
import json
import os
import subprocess
import sys
import time
import tomllib
import urllib.error
import urllib.request
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import stub_comfyui
import tiny
import torch
from PIL import Image

import pisasr
from pisasr import PiSASRPipeline
from pisasr.models.weights import save_adapter

ROOM = Path(pisasr.__file__).parent / "comfyui"
OWN = "the model's own"
WORKFLOWS = ["upscale", "two_strengths", "strengths_by_mask"]
NODES = ["PiSASRLoad", "PiSASRPredict", "PiSASRMixAndDecode", "PiSASRUpscale"]


@pytest.fixture
def comfy(monkeypatch, tmp_path):
    """The record of a stub that stands where ComfyUI would, for the nodes that are imported
    next.
    """
    made, seen = stub_comfyui.modules(tmp_path)
    for name, module in made.items():
        monkeypatch.setitem(sys.modules, name, module)
    stub_comfyui.forget()
    yield seen
    stub_comfyui.forget()


@pytest.fixture
def nodes(comfy):
    from pisasr.comfyui import nodes

    return nodes


@pytest.fixture
def model(nodes, base_folder):
    from pisasr.comfyui.models import ComfyPipeline, Model

    class Small(ComfyPipeline):
        """So that a tiny picture is not enlarged to 512 px first."""

        def look(self, image, **options):
            return super().look(image, process_size=16, **options)

        def __call__(self, image, *lambdas, **options):
            return super().__call__(image, *lambdas, process_size=16, **options)

    return Model(Small.from_pretrained(base_folder))


@pytest.fixture
def passes(model):
    """Which UNet is asked, in order."""
    asked = []
    for name in ("unet_pix", "unet"):
        getattr(model.pipe, name).register_forward_pre_hook(
            lambda *_, name=name: asked.append(name)
        )
    return asked


def images(count: int = 2, height: int = 9, width: int = 12) -> torch.Tensor:
    """An IMAGE whose values lie between eight-bit levels."""
    return 0.5 + 0.4 * tiny.wave((count, height, width, 3), 1.0)


def mix(nodes, looked, lambda_pix=1.0, lambda_sem=1.0, color_fix=OWN, **masked):
    (image,) = nodes.MixAndDecode.execute(looked, lambda_pix, lambda_sem, color_fix, **masked).args
    return image


def look(nodes, model, image, upscale=2.0):
    (looked,) = nodes.Predict.execute(model, image, upscale).args
    return looked


# --- what ComfyUI is told -------------------------------------------------------------------------


def test_the_extension_lists_four_nodes_whose_inputs_are_what_they_take(comfy):
    import pisasr.comfyui as room

    listed = asyncio.run(asyncio.run(room.comfy_entrypoint()).get_node_list())
    schemas = {
        schema.node_id: (schema, node) for node in listed for schema in [node.define_schema()]
    }
    assert list(schemas) == NODES
    for name, (schema, node) in schemas.items():
        taken = inspect.signature(node.execute).parameters
        assert {socket.id for socket in schema.inputs} == set(taken)
        for socket in schema.inputs:
            default = taken[socket.id].default
            assert socket.optional == (default is not inspect.Parameter.empty)
            assert (
                "default" not in socket.told
                or not socket.optional
                or socket.told["default"] == default
            )
        page = (ROOM / room.WEB_DIRECTORY / "docs" / f"{name}.md").read_text()
        assert page.startswith(f"# {schema.display_name}\n") and all(
            socket.id in page for socket in schema.inputs
        )
    assert "NODE_CLASS_MAPPINGS" not in vars(room)


@pytest.mark.parametrize(
    ("missing", "cure"), [("diffusers", "pip install"), ("comfy_api.latest", "update ComfyUI")]
)
def test_what_is_missing_is_said_in_one_line_and_there_are_no_nodes(
    comfy, monkeypatch, caplog, missing, cure
):
    for name in [name for name in sys.modules if name == "pisasr.pipeline"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, missing, None)
    import pisasr.comfyui as room

    assert room.NODE_CLASS_MAPPINGS == {} and not hasattr(room, "comfy_entrypoint")
    (record,) = caplog.records
    assert (
        missing in record.getMessage()
        and cure in record.getMessage()
        and "\n" not in record.getMessage()
    )


def test_its_metadata_is_pisasrs():
    metadata = tomllib.loads((ROOM / "pyproject.toml").read_text())
    assert metadata["project"]["version"] == pisasr.__version__
    assert metadata["project"]["license"] == {"text": "Apache-2.0"}
    assert metadata["tool"]["comfy"]["DisplayName"] == "PiSA-SR"


# --- what they make -------------------------------------------------------------------------------


def test_upscale_is_the_pipelines_floats_which_never_were_eight_bits(nodes, model, base_folder):
    given = images()
    (came,) = nodes.Upscale.execute(given, 2.0, 1.0, 0.5, OWN, model).args
    assert came.shape == (2, 18, 24, 3) and came.dtype == torch.float32 and came.is_contiguous()
    assert 0 <= came.min() and came.max() <= 1
    pipe = PiSASRPipeline.from_pretrained(base_folder)
    pictures = [one.movedim(-1, 0) for one in given]
    wanted = pipe(pictures, 1.0, 0.5, upscale=2.0, process_size=16, output_type="pt").images
    assert torch.equal(came, torch.stack(wanted).movedim(1, -1))
    assert ((255 * came) % 1 > 0.01).float().mean() > 0.9  # not a level out
    (other,) = nodes.Upscale.execute(given + 0.2 / 255, 2.0, 1.0, 0.5, OWN, model).args
    assert not torch.equal(came, other)  # nor in


def test_alpha_is_kept_and_values_a_little_outside_are_clamped(nodes, model):
    given = torch.cat([images(1), torch.linspace(0, 1, 12).expand(1, 9, 12)[..., None]], dim=-1)
    (came,) = nodes.Upscale.execute(given, 2.0, 1.0, 1.0, OWN, model).args
    assert came.shape == (1, 18, 24, 4)
    given[0, 0, 0] = torch.tensor([-0.01, 1.02, 0.5, 1.0])
    (clamped,) = nodes.Upscale.execute(given, 2.0, 1.0, 1.0, OWN, model).args
    assert torch.equal(
        clamped, nodes.Upscale.execute(given.clamp(0, 1), 2.0, 1.0, 1.0, OWN, model).args[0]
    )


def test_a_moved_strength_asks_no_unet_and_changes_no_look(nodes, model, passes):
    looked = look(nodes, model, images())
    assert passes == ["unet_pix", "unet"] * 2
    before = [
        value.clone() if isinstance(value, torch.Tensor) else value
        for one in looked.pictures
        for value in (getattr(one, field.name) for field in fields(one))
    ]
    passes.clear()
    moved = {
        pair: mix(nodes, looked, *pair) for pair in ((1.0, 1.0), (1.0, 0.0), (0.4, 1.5), (0.0, 0.0))
    }
    fixed = {fix: mix(nodes, looked, color_fix=fix) for fix in (OWN, "adain", "wavelet", "none")}
    assert passes == []
    for (pix, sem), came in moved.items():
        assert torch.equal(came, nodes.Upscale.execute(images(), 2.0, pix, sem, OWN, model).args[0])
    assert torch.equal(fixed[OWN], fixed["adain"]) and not torch.equal(
        fixed["none"], fixed["wavelet"]
    )
    after = [getattr(one, field.name) for one in looked.pictures for field in fields(one)]
    for was, is_now in zip(before, after, strict=True):
        assert torch.equal(was, is_now) if isinstance(was, torch.Tensor) else was == is_now


def test_inside_a_mask_the_other_strengths_hold(nodes, model):
    looked = look(nodes, model, images())
    outside, inside = (
        {"lambda_pix": 1.0, "lambda_sem": 0.7},
        {"lambda_pix_inside": 0.3, "lambda_sem_inside": 0.0},
    )
    plain, painted = mix(nodes, looked, **outside), mix(nodes, looked, 0.3, 0.0)
    assert torch.equal(mix(nodes, looked, **outside, **inside), plain)
    nothing = torch.zeros(
        1, 64, 64
    )  # what Load Image gives of a picture without alpha, whatever its size
    assert torch.equal(mix(nodes, looked, **outside, **inside, mask=nothing), plain)
    assert torch.equal(mix(nodes, looked, **outside, **inside, mask=torch.ones(9, 12)), painted)
    each = torch.stack([torch.zeros(9, 12), torch.ones(9, 12)])
    assert torch.equal(
        mix(nodes, looked, **outside, **inside, mask=each), torch.stack([plain[0], painted[1]])
    )
    half = mix(nodes, looked, **outside, **inside, mask=torch.full((1, 9, 12), 0.5))
    torch.testing.assert_close(half, mix(nodes, looked, 0.65, 0.35), rtol=0, atol=1e-5)
    left = (torch.arange(12) < 6).float().expand(9, 12)
    came = mix(nodes, looked, **outside, **inside, mask=left, color_fix="none")
    bare, filled = (
        mix(nodes, looked, *pair, color_fix="none") for pair in ((1.0, 0.7), (0.3, 0.0))
    )
    assert (came - filled).abs()[:, :, :8].mean() < (came - bare).abs()[:, :, :8].mean()
    assert (came - bare).abs()[:, :, 16:].mean() < (came - filled).abs()[:, :, 16:].mean()
    with pytest.raises(ValueError, match="3 masks came with 2 pictures"):
        mix(nodes, looked, mask=torch.zeros(3, 9, 12))
    with pytest.raises(ValueError, match="a map of 9x12, the picture is 12x9"):
        mix(nodes, looked, mask=left.T)


# --- beside ComfyUI -------------------------------------------------------------------------------


def loaded(comfy):
    return [{patcher.model.network for patcher in load.models} for load in comfy.loads]


def test_comfyuis_manager_brings_what_is_needed_whole(nodes, model, comfy):
    pipe = model.pipe
    everything = {pipe.text_encoder, pipe.unet_pix, pipe.unet, pipe.vae}
    looked = look(nodes, model, images(), upscale=4.0)
    mix(nodes, looked)
    nodes.Upscale.execute(images(), 2.0, 1.0, 1.0, OWN, model)
    assert loaded(comfy) == [everything, {pipe.vae}, everything]
    assert all(patcher.on_device for patcher in comfy.loads[0].models)
    assert comfy.loads[0].models[0].partially_unload(torch.device("cpu"), 1.0) == 0
    assert (
        comfy.loads[0].memory == 3 * 8 * (36 * 48) * 4
    )  # two maps of the decoder: 16 channels in, 8 out, float32
    first, other = comfy.loads[0], comfy.loads[2]
    assert set(first.models) == set(other.models)  # the same patchers, or it would load twice


def test_without_a_semantic_adapter_one_unet_is_held_once(comfy, tmp_path):
    from pisasr.comfyui.models import ComfyPipeline, Model

    tiny.write_base(tmp_path / "base")
    save_adapter(
        tmp_path / "base/adapters/pix.safetensors", tiny.make_adapter(tiny.make_unet(), "pix", 2)
    )
    Model(ComfyPipeline.from_pretrained(tmp_path / "base")).for_looking(1.0)
    assert len(loaded(comfy)[0]) == 3


def test_progress_counts_pictures_and_their_tiles_and_a_stop_is_heard_between_tiles(
    nodes, model, comfy, passes, monkeypatch
):
    monkeypatch.setattr("pisasr.options.TILE_PX", 16)
    look(nodes, model, images())
    assert (
        comfy.progress == sorted(comfy.progress)
        and comfy.progress[0] == 0
        and comfy.progress[-1] == 1
    )
    tiles = len(passes) // 2
    assert tiles > 4 and len(set(comfy.progress)) == 2 * tiles + 1
    passes.clear()
    comfy.progress.clear()
    comfy.stop_at = 0.25
    with pytest.raises(stub_comfyui.Interrupted):
        look(nodes, model, images())
    assert 0 < len(passes) <= tiles / 2 + 1


def test_models_are_found_in_comfyuis_folders_and_the_embedded_one_comes_first(
    nodes, base_folder, tmp_path
):
    from pisasr.comfyui.models import adapters, bases, load

    assert list(bases()) == ["embedded"] and list(adapters()) == ["the base's own"]
    for folder in ("diffusers", "pisasr"):
        (tmp_path / folder / "nothing").mkdir(parents=True)
    (tmp_path / "diffusers/sd").symlink_to(base_folder)
    (tmp_path / "pisasr/mine").symlink_to(base_folder / "adapters")
    (tmp_path / "pisasr/pisa_sr.pkl").touch()
    assert list(bases()) == ["embedded", "sd"] and list(adapters()) == [
        "the base's own",
        "mine",
        "pisa_sr.pkl",
    ]
    PiSASRPipeline.from_pretrained(base_folder).save_pretrained(
        tmp_path / "pisasr/light", adapters_only=True
    )
    assert list(bases()) == ["embedded", "light", "sd"] and "light" in adapters()
    schema = nodes.Load.define_schema()
    assert [socket.told["options"][0] for socket in schema.inputs] == [
        "embedded",
        "the base's own",
        "auto",
    ]
    wanted = load("sd").pipe.unet.state_dict()
    for names in (("sd", "mine", "fp32"), ("light", "the base's own", "fp32")):
        came = load(*names).pipe.unet.state_dict()
        assert all(torch.equal(came[name], wanted[name].float()) for name in wanted)
    assert load("sd", dtype="fp16").pipe.unet.dtype == torch.float16


# --- the example workflows ------------------------------------------------------------------------

CORE = {  # of the nodes that come with ComfyUI: inputs and outputs
    "LoadImage": ({"image": "COMBO"}, ["IMAGE", "MASK"]),
    "SaveImage": ({"images": "IMAGE", "filename_prefix": "STRING"}, []),
}
WIDGETS = ("COMBO", "FLOAT", "STRING")


def described(nodes):
    """For each node id its inputs by name, its outputs' types, and what it can't do without."""
    known = {name: (ins, outs, set(ins)) for name, (ins, outs) in CORE.items()}
    for node in (nodes.Load, nodes.Predict, nodes.MixAndDecode, nodes.Upscale):
        schema = node.define_schema()
        ins = {socket.id: socket.io_type for socket in schema.inputs}
        needed = {socket.id for socket in schema.inputs if not socket.optional}
        known[schema.node_id] = ins, [socket.io_type for socket in schema.outputs], needed
    return known


def workflow(name: str) -> tuple[dict, dict]:
    """(as the page has it, as the server takes it)"""
    folder = ROOM / "example_workflows"
    return tuple(
        json.loads((place / f"{name}.json").read_text()) for place in (folder, folder / "api")
    )


def test_every_example_is_listed_here():
    assert sorted(path.stem for path in (ROOM / "example_workflows").glob("*.json")) == sorted(
        WORKFLOWS
    )
    assert sorted(path.stem for path in (ROOM / "example_workflows/api").iterdir()) == sorted(
        WORKFLOWS
    )


@pytest.mark.parametrize("name", WORKFLOWS)
def test_an_examples_inputs_and_links_are_the_nodes(nodes, name):
    known, (_, served) = described(nodes), workflow(name)
    for node in served.values():
        ins, _, needed = known[node["class_type"]]
        assert needed <= set(node["inputs"]) <= set(ins)
        for socket, value in node["inputs"].items():
            if isinstance(value, list):
                assert known[served[value[0]]["class_type"]][1][value[1]] == ins[socket]
            else:
                assert ins[socket] in WIDGETS
    schemas = {
        schema.node_id: schema
        for schema in (node.define_schema() for node in (nodes.Load, nodes.Upscale))
    }
    for node in served.values():
        for socket in getattr(schemas.get(node["class_type"]), "inputs", ()):
            if socket.io_type == "COMBO":
                assert node["inputs"][socket.id] in socket.told["options"]


@pytest.mark.parametrize("name", WORKFLOWS)
def test_the_page_and_the_server_are_given_the_same_workflow(nodes, name):
    known, (page, served) = described(nodes), workflow(name)
    links = {link[0]: link for link in page["links"]}
    said = {}
    for node in page["nodes"]:
        ins = known[node["type"]][0]
        widgets = [socket for socket, io_type in ins.items() if io_type in WIDGETS]
        values = dict(
            zip(widgets, node["widgets_values"], strict=node["type"] != "LoadImage")
        )  # it has a button
        for slot, socket in enumerate(node["inputs"]):
            assert ins[socket["name"]] == socket["type"]
            if socket["link"] is not None:
                _, source, source_slot, target, target_slot, io_type = links[socket["link"]]
                assert (target, target_slot, io_type) == (node["id"], slot, socket["type"])
                values[socket["name"]] = [str(source), source_slot]
        for slot, socket in enumerate(node["outputs"]):
            assert socket["type"] == known[node["type"]][1][slot]
            assert all(links[link][1:3] == [node["id"], slot] for link in socket["links"] or [])
        said[str(node["id"])] = {"class_type": node["type"], "inputs": values}
    assert said == served


# --- the real thing -------------------------------------------------------------------------------


class Server:
    """A ComfyUI in a process of its own, on this machine alone, its folders under one of ours."""

    def __init__(self, folder: Path, port: int = 18_188):
        self.address = f"http://127.0.0.1:{port}"
        self.folder, self.log = folder, folder / "log.txt"
        (folder / "custom_nodes").mkdir()
        (folder / "custom_nodes/pisasr").symlink_to(ROOM)
        command = [sys.executable, "main.py", "--cpu", "--listen", "127.0.0.1", "--port", str(port)]
        command += ["--base-directory", str(folder), "--disable-api-nodes"]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                command, cwd=os.environ["PISASR_COMFYUI"], stdout=log, stderr=log
            )

    def ask(self, path: str, **body):
        data = json.dumps(body).encode() if body else None
        request = urllib.request.Request(
            self.address + path, data, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            text = answer.read().decode()
        return json.loads(text) if "json" in (answer.headers["Content-Type"] or "") else text

    def wait(self, question, seconds: int = 240):
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            assert self.process.poll() is None, self.log.read_text()[-3000:]
            try:
                if answer := question():
                    return answer
            except urllib.error.URLError:
                pass
            time.sleep(0.5)
        raise AssertionError(self.log.read_text()[-3000:])

    def stopped(self, prompt: dict) -> bool:
        """Whether a workflow that is told to stop does."""
        number = self.ask("/prompt", prompt=prompt)["prompt_id"]

        def stop():
            self.ask("/interrupt", prompt_id=number)
            return self.ask(f"/history/{number}").get(number)

        return "execution_interrupted" in dict(self.wait(stop)["status"]["messages"])

    def run(self, prompt: dict) -> tuple[np.ndarray, set[str]]:
        """The picture that a workflow saved, and which of its nodes ComfyUI did not run again."""
        number = self.ask("/prompt", prompt=prompt)["prompt_id"]
        done = self.wait(lambda: self.ask(f"/history/{number}").get(number))
        told = dict(done["status"]["messages"])
        assert done["status"]["status_str"] == "success", told
        ((saved,),) = [out["images"] for out in done["outputs"].values()]
        return np.asarray(Image.open(self.folder / "output" / saved["filename"])), set(
            told["execution_cached"]["nodes"]
        )


@pytest.mark.slow
@pytest.mark.skipif(
    "PISASR_COMFYUI" not in os.environ, reason="PISASR_COMFYUI names no folder of ComfyUI"
)
def test_a_real_comfyui_runs_the_examples_a_moved_strength_alone_and_stops_when_told(tmp_path):
    (tmp_path / "input").mkdir()
    levels = np.asarray(Image.open(ROOM.parent / "demo/examples/chelsea.png").convert("RGB"))[
        :64, :96
    ]
    seen_through = np.full((64, 96, 1), 255, np.uint8)
    seen_through[20:50, 30:70] = (
        0  # Load Image gives 1 - alpha as its mask, and the colours alone as its picture
    )
    Image.fromarray(levels).save(tmp_path / "input/plain.png")
    Image.fromarray(np.concatenate([levels, seen_through], axis=-1)).save(
        tmp_path / "input/masked.png"
    )
    mask = (seen_through[..., 0] == 0).astype(np.float32)
    pipe = PiSASRPipeline.from_pretrained(torch_dtype="auto")
    floats = levels.astype(np.float32) / 255

    server = Server(tmp_path)
    try:
        known = server.wait(lambda: server.ask("/object_info"))
        assert set(NODES) <= set(known)
        for name in NODES:
            assert known[name]["python_module"] == "custom_nodes.pisasr"
            assert server.ask(f"/extensions/pisasr/docs/{name}.md").startswith("# PiSA-SR")
        assert sorted(server.ask("/workflow_templates")["pisasr"]) == sorted(WORKFLOWS)

        def run(name: str, picture: str, **strengths):
            _, served = workflow(name)
            served["1"]["inputs"]["image"] = picture
            for node in served.values():
                if node["class_type"] in ("PiSASRMixAndDecode", "PiSASRUpscale"):
                    node["inputs"].update(strengths)
            return server.run(served)

        def same(came: np.ndarray, *lambdas) -> bool:
            (wanted,) = pipe(floats, *lambdas, output_type="np").images
            return came.shape == wanted.shape and bool(
                (np.abs(came - 255 * wanted) < 1.01).all()
            )  # it cuts levels off

        came, kept = run("upscale", "plain.png")
        assert same(came, 1.0, 1.0) and not kept
        came, kept = run("two_strengths", "plain.png")
        assert same(came, 1.0, 0.5) and "3" not in kept
        came, kept = run("two_strengths", "plain.png", lambda_sem=1.25)
        assert same(came, 1.0, 1.25) and kept == {"1", "2", "3"}  # loaded, looked at: not again
        came, kept = run("strengths_by_mask", "masked.png")
        assert same(came, 1.0, 1 - mask) and "2" in kept

        _, served = workflow("two_strengths")
        served["1"]["inputs"]["image"], served["3"]["inputs"]["upscale"] = "plain.png", 16.0
        assert server.stopped(served)
        came, kept = run("two_strengths", "plain.png", lambda_sem=0.25)
        assert same(came, 1.0, 0.25)
    finally:
        server.process.terminate()
        server.process.wait(30)
