"""Infer, in ComfyUI: the folder that it loads, by a link or a copy in its custom_nodes; pisasr is
installed beside it.

ComfyUI gives this folder a module name of its own, so what belongs to it is imported by relative
names.
"""

import logging
import sys

WEB_DIRECTORY = "./web"  # ComfyUI shows web/docs/NODE.md when it is asked what a node is for

try:
    from .nodes import comfy_entrypoint  # noqa: F401
except ModuleNotFoundError as error:
    NODE_CLASS_MAPPINGS: dict[str, type] = {}  # else ComfyUI adds that the folder has none
    cure = (
        "update ComfyUI to 0.3.64 or newer"
        if (error.name or "").startswith("comfy")
        else f"run: {sys.executable} -m pip install FOLDER, where FOLDER is the repository of pisasr"
    )
    logging.error("pisasr: no nodes, since the module %s is missing; %s", error.name, cure)
