"""ComfyUI nodes beside a stub of ComfyUI; a slow test runs a real one (PISASR_COMFYUI)."""

import asyncio
import inspect
import json
import os
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import httpx
import numpy as np
import pytest
import stub_comfyui
import tiny
import torch
from PIL import Image

import pisasr
from pisasr import PiSASRPipeline

ROOM = Path(pisasr.__file__).parent / "comfyui"
OWN = "the model's own"
WORKFLOWS = ["strengths_by_mask", "two_strengths", "upscale"]
NODES = ["PiSASRLoad", "PiSASRPredict", "PiSASRMixAndDecode", "PiSASRUpscale"]


@pytest.fixture
def comfy(monkeypatch, tmp_path):
    """The record of a stub that stands where ComfyUI would."""
    made, record = stub_comfyui.modules(tmp_path)
    for name, module in made.items():
        monkeypatch.setitem(sys.modules, name, module)
    stub_comfyui.forget()
    yield record
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

        def predict(self, image, **options):
            return super().predict(image, process_size=16, **options)

        def __call__(self, image, *lambdas, **options):
            return super().__call__(image, *lambdas, process_size=16, **options)

    return Model(Small.from_pretrained(base_folder))


@pytest.fixture
def passes(model):
    """Which UNet was called, in order."""
    calls = []
    for name in ("unet_pix", "unet"):
        network = getattr(model.pipe, name)
        network.register_forward_pre_hook(lambda *_, name=name: calls.append(name))
    return calls


def images(count: int = 2, height: int = 9, width: int = 12) -> torch.Tensor:
    """An IMAGE whose values lie between eight-bit levels."""
    return 0.5 + 0.4 * tiny.wave((count, height, width, 3), 1.0)


def predict(nodes, model, image):
    return nodes.Predict.execute(model, image, 2.0).args[0]


def decode(nodes, prediction, pix=1.0, sem=1.0, color_fix=OWN, **masked):
    return nodes.MixAndDecode.execute(prediction, pix, sem, color_fix, **masked).args[0]


def upscale(nodes, model, image, pix=1.0, sem=1.0):
    return nodes.Upscale.execute(image, 2.0, pix, sem, OWN, model).args[0]


def test_the_schemas_fit_what_the_nodes_take_and_their_help(comfy):
    import pisasr.comfyui as room

    listed = asyncio.run(asyncio.run(room.comfy_entrypoint()).get_node_list())
    schemas = [(node, node.define_schema()) for node in listed]
    assert [schema.node_id for _, schema in schemas] == NODES
    for node, schema in schemas:
        taken = inspect.signature(node.execute).parameters
        assert {socket.id for socket in schema.inputs} == set(taken)
        for socket in schema.inputs:
            default = taken[socket.id].default
            assert socket.optional == (default is not inspect.Parameter.empty)
            if socket.optional and "default" in socket.told:
                assert socket.told["default"] == default
        text = (ROOM / room.WEB_DIRECTORY / "docs" / f"{schema.node_id}.md").read_text()
        assert all(socket.id in text for socket in schema.inputs)
    metadata = tomllib.loads((ROOM / "pyproject.toml").read_text())
    assert metadata["project"]["version"] == pisasr.__version__


def test_a_missing_package_is_one_line_and_no_nodes(comfy, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "comfy_api.latest", None)
    import pisasr.comfyui as room

    assert room.NODE_CLASS_MAPPINGS == {} and not hasattr(room, "comfy_entrypoint")
    (record,) = caplog.records
    assert "update ComfyUI" in record.getMessage() and "\n" not in record.getMessage()


def test_upscale_gives_the_pipelines_floats_without_eight_bits_between(nodes, model, base_folder):
    given = images()
    made = upscale(nodes, model, given, 1.0, 0.5)
    assert made.shape == (2, 18, 24, 3) and made.dtype == torch.float32 and made.is_contiguous()
    pipe = PiSASRPipeline.from_pretrained(base_folder)
    options = {"upscale": 2.0, "process_size": 16, "output_type": "pt"}
    expected = [pipe(one.movedim(-1, 0), 1.0, 0.5, **options).images[0] for one in given]
    assert torch.equal(made, torch.stack(expected).movedim(1, -1))
    assert ((255 * made) % 1 > 0.01).float().mean() > 0.9
    assert not torch.equal(made, upscale(nodes, model, given + 0.2 / 255, 1.0, 0.5))


def test_alpha_is_kept_and_values_outside_are_clamped(nodes, model):
    given = torch.cat([images(1), torch.linspace(0, 1, 12).expand(1, 9, 12)[..., None]], dim=-1)
    given[0, 0, 0] = torch.tensor([-0.01, 1.02, 0.5, 1.0])
    made = upscale(nodes, model, given)
    assert made.shape[-1] == 4 and torch.equal(made, upscale(nodes, model, given.clamp(0, 1)))


def test_strengths_need_no_unet_and_leave_the_prediction_as_it_is(nodes, model, passes):
    prediction = predict(nodes, model, images())
    assert passes == ["unet_pix", "unet"] * 2
    pairs = [(1.0, 1.0), (0.4, 1.5), (0.0, 0.0)]
    made = {pair: decode(nodes, prediction, *pair) for pair in pairs}
    fixed = {fix: decode(nodes, prediction, color_fix=fix) for fix in (OWN, "adain", "none")}
    assert len(passes) == 4
    for pair, image in made.items():
        assert torch.equal(image, decode(nodes, prediction, *pair))
        assert torch.equal(image, upscale(nodes, model, images(), *pair))
    assert torch.equal(fixed[OWN], fixed["adain"])
    assert not torch.equal(fixed[OWN], fixed["none"])


def test_the_inside_of_a_mask_has_other_strengths(nodes, model):
    prediction = predict(nodes, model, images())
    strengths = {"pix": 1.0, "sem": 0.7, "lambda_pix_inside": 0.3, "lambda_sem_inside": 0.0}

    def masked(mask, **more):
        return decode(nodes, prediction, **strengths, mask=mask, **more)

    outside, inside = decode(nodes, prediction, 1.0, 0.7), decode(nodes, prediction, 0.3, 0.0)
    assert torch.equal(masked(None), outside)
    assert torch.equal(masked(torch.zeros(1, 64, 64)), outside)  # as Load Image gives for none
    assert torch.equal(masked(torch.ones(9, 12)), inside)
    each = torch.stack([torch.zeros(9, 12), torch.ones(9, 12)])
    assert torch.equal(masked(each), torch.stack([outside[0], inside[1]]))
    half = decode(nodes, prediction, 0.65, 0.35)
    torch.testing.assert_close(masked(torch.full((1, 9, 12), 0.5)), half, rtol=0, atol=1e-5)
    left = (torch.arange(12) < 6).float().expand(9, 12)
    with pytest.raises(ValueError, match="3 masks"):
        masked(torch.zeros(3, 9, 12))
    with pytest.raises(ValueError, match="9x12"):
        masked(left.T)


def test_comfyuis_manager_loads_what_is_needed_whole(nodes, model, comfy):
    pipe = model.pipe
    everything = {pipe.text_encoder, pipe.unet_pix, pipe.unet, pipe.vae}
    prediction = predict(nodes, model, images())
    decode(nodes, prediction)
    upscale(nodes, model, images())
    loaded = [{patcher.model.network for patcher in load.models} for load in comfy.loads]
    assert loaded == [everything, {pipe.vae}, everything]
    assert all(patcher.on_device for patcher in comfy.loads[0].models)
    assert comfy.loads[0].models[0].partially_unload(torch.device("cpu"), 1.0) == 0
    assert comfy.loads[0].memory > 0
    assert set(comfy.loads[0].models) == set(comfy.loads[2].models)  # else it loads twice


def test_progress_counts_pictures_and_tiles_and_a_stop_comes_between_tiles(
    nodes, model, comfy, passes, monkeypatch
):
    monkeypatch.setattr("pisasr.options.TILE_PX", 16)
    predict(nodes, model, images())
    assert comfy.progress == sorted(comfy.progress)
    assert comfy.progress[0] == 0 and comfy.progress[-1] == 1
    tiles = len(passes) // 2
    assert tiles > 4 and len(set(comfy.progress)) == 2 * tiles + 1
    passes.clear()
    comfy.progress.clear()
    comfy.stop_at = 0.25
    with pytest.raises(stub_comfyui.Interrupted):
        predict(nodes, model, images())
    assert 0 < len(passes) <= tiles / 2 + 1


def test_models_are_found_in_comfyuis_folders(nodes, base_folder, tmp_path):
    from pisasr.comfyui.models import adapters, bases, load

    for folder in ("diffusers", "pisasr"):
        (tmp_path / folder / "nothing").mkdir(parents=True)
    (tmp_path / "diffusers/sd").symlink_to(base_folder)
    (tmp_path / "pisasr/mine").symlink_to(base_folder / "adapters")
    (tmp_path / "pisasr/pisa_sr.pkl").touch()
    pipe = PiSASRPipeline.from_pretrained(base_folder)
    pipe.save_pretrained(tmp_path / "pisasr/light", adapters_only=True)
    assert list(bases()) == ["embedded", "light", "sd"]
    assert list(adapters()) == ["the base's own", "light", "mine", "pisa_sr.pkl"]
    expected = pipe.unet.state_dict()
    made = load("light", "mine", "fp16").pipe.unet.state_dict()
    assert all(torch.equal(made[name], expected[name].half()) for name in expected)


CORE = {  # nodes that come with ComfyUI: inputs and outputs
    "LoadImage": ({"image": "COMBO"}, ["IMAGE", "MASK"]),
    "SaveImage": ({"images": "IMAGE", "filename_prefix": "STRING"}, []),
}
WIDGETS = ("COMBO", "FLOAT", "STRING")


def workflow(name: str) -> tuple[dict, dict]:
    """(as the page has it, as the server takes it)"""
    folder = ROOM / "example_workflows"
    files = folder / f"{name}.json", folder / "api" / f"{name}.json"
    return tuple(json.loads(file.read_text()) for file in files)


@pytest.mark.parametrize("name", WORKFLOWS)
def test_an_example_fits_the_nodes_and_is_the_same_for_page_and_server(nodes, name):
    known = {kind: (ins, outs, set(ins)) for kind, (ins, outs) in CORE.items()}
    for node in (nodes.Load, nodes.Predict, nodes.MixAndDecode, nodes.Upscale):
        schema = node.define_schema()
        ins = {socket.id: socket.io_type for socket in schema.inputs}
        needed = {socket.id for socket in schema.inputs if not socket.optional}
        known[schema.node_id] = ins, [socket.io_type for socket in schema.outputs], needed
    page, served = workflow(name)
    links, from_page = {link[0]: link for link in page["links"]}, {}
    for node in page["nodes"]:
        ins, _, needed = known[node["type"]]
        widgets = [socket for socket, io_type in ins.items() if io_type in WIDGETS]
        values = dict(zip(widgets, node["widgets_values"], strict=False))  # LoadImage has a button
        for slot, socket in enumerate(node["inputs"]):
            if socket["link"] is not None:
                _, source, source_slot, *target = links[socket["link"]]
                assert target == [node["id"], slot, ins[socket["name"]]]
                assert known[served[str(source)]["class_type"]][1][source_slot] == target[2]
                values[socket["name"]] = [str(source), source_slot]
        assert needed <= set(values) <= set(ins)
        from_page[str(node["id"])] = {"class_type": node["type"], "inputs": values}
    assert from_page == served


def ask(path: str, **body):
    address = "http://127.0.0.1:18188" + path
    answer = httpx.post(address, json=body, timeout=60) if body else httpx.get(address, timeout=60)
    return answer.json()


def wait(question):
    """The answer, once there is one."""
    until = time.monotonic() + 240
    while time.monotonic() < until:
        try:
            if answer := question():
                return answer
        except httpx.ConnectError:
            pass
        time.sleep(0.5)
    raise AssertionError("ComfyUI does not answer")


@pytest.mark.slow
@pytest.mark.skipif("PISASR_COMFYUI" not in os.environ, reason="PISASR_COMFYUI is not set")
def test_a_real_comfyui_runs_the_examples_and_a_moved_strength_alone(tmp_path):
    for folder in ("input", "custom_nodes"):
        (tmp_path / folder).mkdir()
    (tmp_path / "custom_nodes/pisasr").symlink_to(ROOM)
    photo = Image.open(ROOM.parent / "demo/examples/chelsea.png").convert("RGB")
    levels, alpha = np.asarray(photo)[:64, :96], np.full((64, 96, 1), 255, np.uint8)
    alpha[20:50, 30:70] = 0  # Load Image gives 1 - alpha as its mask
    Image.fromarray(np.concatenate([levels, alpha], -1)).save(tmp_path / "input/photo.png")
    mask = (alpha[..., 0] == 0).astype(np.float32)
    pipe = PiSASRPipeline.from_pretrained(torch_dtype="auto")

    def run(name: str, **strengths) -> tuple[np.ndarray, set[str]]:
        """The picture that a workflow saved, and which of its nodes were cached."""
        _, served = workflow(name)
        served["1"]["inputs"]["image"] = "photo.png"
        for node in served.values():
            if node["class_type"] in ("PiSASRMixAndDecode", "PiSASRUpscale"):
                node["inputs"].update(strengths)
        number = ask("/prompt", prompt=served)["prompt_id"]
        done = wait(lambda: ask(f"/history/{number}").get(number))
        messages = dict(done["status"]["messages"])
        ((saved,),) = [out["images"] for out in done["outputs"].values()]
        image = Image.open(tmp_path / "output" / saved["filename"])
        return np.asarray(image), set(messages["execution_cached"]["nodes"])

    def same(made: np.ndarray, *lambdas) -> bool:
        (expected,) = pipe(levels.astype(np.float32) / 255, *lambdas, output_type="np").images
        return bool((np.abs(made - 255 * expected) < 1.01).all())  # ComfyUI truncates to 8 bits

    command = [sys.executable, "main.py", "--cpu", "--listen", "127.0.0.1", "--port", "18188"]
    command += ["--base-directory", str(tmp_path), "--disable-api-nodes"]
    with subprocess.Popen(command, cwd=os.environ["PISASR_COMFYUI"]) as server:
        try:
            assert set(NODES) <= set(wait(lambda: ask("/object_info")))
            assert same(run("upscale")[0], 1.0, 1.0)
            assert same(run("two_strengths")[0], 1.0, 0.5)
            made, cached = run("two_strengths", lambda_sem=1.25)
            assert same(made, 1.0, 1.25) and cached == {"1", "2", "3"}
            assert same(run("strengths_by_mask")[0], 1.0, 1 - mask)
        finally:
            server.terminate()
