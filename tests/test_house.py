"""The house: which room may import which, no circles, and limits that keep it small."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted((ROOT / "pisasr").rglob("*.py"))
ROOMS, ARROWS, LINES = 14, 50, 10_500  # at most; README.md draws the map

# What each room may import beside itself and the ground floor.
GROUND = {"errors", "files", "__init__"}
MAY_IMPORT = {
    "pictures": set(),
    "models": {"options"},
    "method": {"models"},
    "data": {"pictures"},
    "evaluation": {"pictures"},
    "options": set(),
    "pipeline": {"method", "models", "pictures", "options"},
    "comfyui": {"method", "models", "options", "pipeline"},
    "hub": {"method", "models", "pictures", "options", "pipeline"},
    "app": {"method", "models", "pictures", "options", "pipeline"},
    "training": {"method", "models", "pictures", "data", "evaluation"},
    "commands": {
        *("method", "models", "pictures", "data", "evaluation", "options", "pipeline"),
        *("hub", "app", "training"),
    },
}


def room_of(path: Path) -> str:
    return path.relative_to(ROOT / "pisasr").parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    """List the rooms of pisasr that a file imports, wherever in it."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    modules = [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)]
    modules += [a.name for node in nodes if isinstance(node, ast.Import) for a in node.names]
    return {
        (name.split(".") + ["__init__"])[1] for name in modules if name.split(".")[0] == "pisasr"
    }


def arrows() -> set[tuple[str, str]]:
    pairs = {(room_of(path), room) for path in FILES for room in imported(path)}
    return {(a, b) for a, b in pairs if a != b and "__init__" not in (a, b)}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_arrow_runs_back(path):
    room = room_of(path)
    allowed = GROUND if room in GROUND else GROUND | MAY_IMPORT[room] | {room}
    if path != ROOT / "pisasr" / "__init__.py":
        assert imported(path) <= allowed


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_file_says_what_it_does(path):
    assert ast.get_docstring(ast.parse(path.read_text()))


def test_the_house_stays_small():
    rooms = {room_of(path) for path in FILES} - {"__init__"}
    lines = sum(len(path.read_text().splitlines()) for path in FILES)
    assert len(rooms) <= ROOMS and len(arrows()) <= ARROWS and lines <= LINES, (
        f"{len(rooms)} rooms, {len(arrows())} arrows, {lines} lines; {sorted(arrows())}"
    )


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imported_modules(path: Path, modules: set[str]) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= names & modules or {node.module or ""}
    return found & modules


def test_no_module_is_imported_in_a_circle():
    modules = {module_of(path) for path in FILES}
    graph = {module_of(path): imported_modules(path, modules) for path in FILES}
    assert sum(map(len, graph.values())) > len(FILES)
    TopologicalSorter(graph).prepare()  # a CycleError names the modules
