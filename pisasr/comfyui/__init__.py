"""PiSA-SR nodes for ComfyUI: link or copy this folder into custom_nodes, and install pisasr.

ComfyUI gives this folder a module name of its own, so its files import each other relatively.
"""

import logging
import sys

WEB_DIRECTORY = "./web"  # ComfyUI shows web/docs/NODE.md as a node's help

try:
    from .nodes import comfy_entrypoint  # noqa: F401
except ModuleNotFoundError as error:
    NODE_CLASS_MAPPINGS: dict[str, type] = {}  # else ComfyUI adds that the folder has none
    cure = (
        "update ComfyUI to 0.3.64 or newer"
        if (error.name or "").startswith("comfy")
        else f"run: {sys.executable} -m pip install FOLDER, the repository of pisasr"
    )
    logging.error("pisasr: no nodes, since the module %s is missing; %s", error.name, cure)
