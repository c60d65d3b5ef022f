"""The house: which room may know which, that nobody imports in a circle, and that every file says
what it is.
"""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted((ROOT / "pisasr").rglob("*.py"))

# What each room may import, beside itself and the ground floor. Nothing that stands below may know
# what stands above.
GROUND = {"errors", "files", "signals", "_compat", "__init__"}
MAY_KNOW = {
    "pictures": set(),
    "models": set(),
    "method": {"models"},  # adapters by their type alone
    "data": {"pictures"},
    "evaluation": {"pictures"},
    "config": {"data"},
    "options": {"method"},
    "pipeline": {"method", "models", "pictures", "options"},
    "comfyui": {"method", "options", "pipeline"},
    "hub": {"method", "models", "pictures", "pipeline"},
    "app": {"pictures", "options", "pipeline"},
    "training": {"method", "models", "pictures", "data", "evaluation", "config"},
    "commands": {
        *(
            "method",
            "models",
            "pictures",
            "data",
            "evaluation",
            "config",
            "options",
            "pipeline",
            "hub",
            "app",
        ),
        "training",
    },
}


def room_of(path: Path) -> str:
    return path.relative_to(ROOT / "pisasr").parts[0].removesuffix(".py")


def imported(tree: ast.Module) -> set[str]:
    """Rooms of pisasr that a file imports, wherever in it."""
    modules = [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    modules += [
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
    ]
    return {
        (name.split(".") + ["__init__"])[1] for name in modules if name.split(".")[0] == "pisasr"
    }


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_arrow_runs_back(path):
    room = room_of(path)
    if room not in GROUND:
        assert imported(ast.parse(path.read_text())) - GROUND - {room} <= MAY_KNOW[room]


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imported_modules(tree: ast.Module, modules: set[str]) -> set[str]:
    """Modules of pisasr that a file imports, wherever in it: in functions and for types alone,
    too.
    """
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names} & modules or {
                node.module or ""
            }
    return found & modules


def test_no_module_is_imported_in_a_circle():
    modules = {module_of(path) for path in FILES}
    arrows = {
        module_of(path): imported_modules(ast.parse(path.read_text()), modules) for path in FILES
    }
    assert sum(map(len, arrows.values())) > len(FILES)
    TopologicalSorter(arrows).prepare()  # a CycleError names the modules


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_file_says_what_it_is(path):
    assert ast.get_docstring(ast.parse(path.read_text()))


def test_the_ground_floor_knows_no_room():
    for path in FILES:
        if room_of(path) in GROUND - {"__init__"}:
            assert imported(ast.parse(path.read_text())) <= GROUND
