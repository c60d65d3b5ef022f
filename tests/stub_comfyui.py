"""A ComfyUI of a few lines: the names that pisasr/comfyui imports, behaving as they do there."""

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import torch


class Interrupted(Exception):
    """ComfyUI's InterruptProcessingException."""


class Socket:
    """An input or an output of a node."""

    def __init__(self, io_type: str, id: str | None = None, **told: Any):
        self.io_type, self.id, self.told = io_type, id, told
        self.optional = told.pop("optional", False)


def kind(io_type: str) -> SimpleNamespace:
    def socket(id: str | None = None, **told: Any) -> Socket:
        return Socket(io_type, id, **told)

    return SimpleNamespace(Input=socket, Output=socket)


class NodeOutput:
    def __init__(self, *args: Any):
        self.args = args


class ModelPatcher:
    def __init__(self, model: torch.nn.Module, load_device: Any, offload_device: Any):
        self.model, self.load_device = model, load_device
        self.model.device = offload_device  # the real one writes it, too

    def model_size(self) -> int:
        return sum(weight.nbytes for weight in self.model.parameters())

    def partially_load(
        self, device: torch.device, extra_memory: float = 0, force_patch_weights: bool = False
    ) -> float:
        """The real one leaves behind what has no room, of any network."""
        self.on_device = self.model_size() < extra_memory
        return extra_memory


def modules(folder: Any) -> tuple[dict[str, ModuleType], SimpleNamespace]:
    """The modules by name, and a record of loads and progress; at `stop_at` the user interrupts.

    folder: ComfyUI's models folder.
    """
    seen = SimpleNamespace(loads=[], progress=[], stop_at=float("inf"))
    folders: dict[str, list[str]] = {"diffusers": [str(folder / "diffusers")]}

    def load_models_gpu(models: list[ModelPatcher], memory_required: float = 0) -> None:
        for model in models:
            model.partially_load(model.load_device, 0.1, force_patch_weights=False)  # --novram
        seen.loads.append(SimpleNamespace(models=models, memory=memory_required))

    def throw() -> None:
        if seen.progress and seen.progress[-1] >= seen.stop_at:
            raise Interrupted

    class ProgressBar:
        def __init__(self, total: int):
            self.total = total

        def update_absolute(self, value: float) -> None:
            seen.progress.append(value / self.total)

    cpu = torch.device("cpu")
    contents = {
        "comfy": {},
        "comfy.model_management": {
            "get_torch_device": lambda: cpu,
            "unet_offload_device": lambda: cpu,
            "intermediate_device": lambda: cpu,
            "should_use_fp16": lambda device: False,
            "load_models_gpu": load_models_gpu,
            "throw_exception_if_processing_interrupted": throw,
        },
        "comfy.model_patcher": {"ModelPatcher": ModelPatcher},
        "comfy.utils": {"ProgressBar": ProgressBar},
        "comfy_api": {},
        "comfy_api.latest": {
            "ComfyExtension": type("ComfyExtension", (), {}),
            "io": SimpleNamespace(
                ComfyNode=type("ComfyNode", (), {}),
                Schema=SimpleNamespace,
                NodeOutput=NodeOutput,
                NumberDisplay=SimpleNamespace(slider="slider"),
                Custom=kind,
                **{n.capitalize(): kind(n) for n in ("IMAGE", "MASK", "FLOAT", "STRING", "COMBO")},
            ),
        },
        "folder_paths": {
            "models_dir": str(folder),
            "add_model_folder_path": lambda kind, path: folders.setdefault(kind, []).append(path),
            "get_folder_paths": lambda kind: list(folders[kind]),
        },
    }
    made = {}
    for name, names in contents.items():
        made[name] = ModuleType(name)
        vars(made[name]).update(names)
    for name in made:
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(made[parent], child, made[name])
    return made, seen


def forget() -> None:
    """Have the nodes imported anew."""
    for name in [name for name in sys.modules if name.startswith("pisasr.comfyui")]:
        del sys.modules[name]
