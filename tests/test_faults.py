"""The table of faults, faults.md: every row has a test that is there. And what no row may need:
code that runs data.
"""

import ast
import re
import tomllib
from functools import cache
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
ROOT = TESTS.parent
ROWS = [
    [cell.strip() for cell in line.strip("|\n").split("|")]
    for line in (TESTS / "faults.md").read_text(encoding="utf-8").splitlines()
    if re.match(r"\| [A-Z]\d\d \|", line)
]


@cache
def names_in(module: str) -> dict[str, bool]:
    """Every test of a file, by name, and whether it is a long one."""
    path = TESTS / f"test_{module}.py"
    if not path.is_file():
        return {}
    functions = [
        node
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef)
    ]
    marks = {f.name: [ast.unparse(decorator) for decorator in f.decorator_list] for f in functions}
    return {
        name: "pytest.mark.slow" in of for name, of in marks.items() if name.startswith("test_")
    }


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_every_row_has_tests_that_are_there(row):
    number, fault, seen, named = row
    assert fault and seen and named, f"{number} has an empty cell"
    for name in named.split():
        module, _, test = name.removesuffix("*").partition("::")
        assert test in names_in(module), f"{number} names {name}, which is not there"
        assert names_in(module)[test] == name.endswith("*"), (
            f"{number}: a star marks the long tests, see {name}"
        )


def test_the_table_has_every_row_once():
    numbers = [row[0] for row in ROWS]
    assert len(set(numbers)) == len(numbers)
    assert [n for n in numbers if n.startswith("F")] == [f"F{n:02}" for n in range(1, 65)]
    for letter in "PNBX":
        own = [n for n in numbers if n.startswith(letter)]
        assert own == [f"{letter}{n:02}" for n in range(1, len(own) + 1)] and own


# --- supply chain ---------------------------------------------------------------------------------

CODE = [path for folder in ("pisasr", "scripts") for path in sorted((ROOT / folder).rglob("*.py"))]
RUNS = {
    "eval", "exec", "compile", "__import__", "pickle.load", "pickle.loads", "pickle.Unpickler", "marshal.loads",
    "marshal.load", "os.system", "os.popen", "shelve.open", "dill.load", "joblib.load", "runpy.run_path",
}  # fmt: skip
TRUSTING = ("shell", "trust_remote_code", "allow_pickle")
# A class of unpickler that knows arrays alone; its own test gives it something else.
ALLOWED = {("scripts/fetch_perceptual.py", "pickle.Unpickler")}


def dangers(tree: ast.AST) -> set[str]:
    """Calls, base classes and arguments that would run what is read."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            words = {word.arg: ast.unparse(word.value) for word in node.keywords if word.arg}
            found |= {name} & RUNS
            found |= {f"{key}=True" for key in TRUSTING if words.get(key) == "True"}
            if name == "torch.load" and words.get("weights_only") != "True":
                found.add("torch.load without weights_only=True")
            if name == "np.load" and words.get("allow_pickle") != "False":
                found.add("np.load without allow_pickle=False")
            if name.startswith("yaml.") and name.split(".")[1] in (
                "load",
                "load_all",
                "unsafe_load",
                "full_load",
            ):
                found.add(name)
        elif isinstance(node, ast.ClassDef):
            found |= {ast.unparse(base) for base in node.bases} & RUNS
    return found


def test_nothing_that_is_read_can_be_run():
    """Strings, such as a model card's example, are no code of ours."""
    found = {
        (str(path.relative_to(ROOT)), danger)
        for path in CODE
        for danger in dangers(ast.parse(path.read_text()))
    }
    assert found == ALLOWED


@pytest.mark.parametrize("line", [
    "eval(x)", "exec(x)", "pickle.load(f)", "torch.load(f)", "torch.load(f, weights_only=False)", "os.system(x)",
    "subprocess.run(x, shell=True)", "A.from_pretrained(x, trust_remote_code=True)", "np.load(f)", "yaml.load(f)",
    "np.load(f, allow_pickle=True)", "class A(pickle.Unpickler): pass",
])  # fmt: skip
def test_the_gate_sees_each_of_them(line):
    assert dangers(ast.parse(line))


def test_no_rule_of_security_is_lifted_for_the_package():
    """ruff's S rules; a single line may say why it is none of their business."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        lint = tomllib.load(file)["tool"]["ruff"]["lint"]
    lifted = {
        rule
        for files, rules in lint["per-file-ignores"].items()
        if files.startswith("pisasr")
        for rule in rules
    }
    assert "S" in lint["select"] and not {rule for rule in lint["ignore"] if rule.startswith("S")}
    assert {rule for rule in lifted if rule.startswith("S")} <= {
        "S101"
    }  # assertions that a type checker needs


def test_the_workflow_s_actions_are_pinned_by_hash():
    for path in (ROOT / ".github" / "workflows").glob("*.yml"):
        used = re.findall(r"uses: *(\S+)(.*)", path.read_text())
        assert used
        for action, comment in used:
            assert re.fullmatch(r"[\w./-]+@[0-9a-f]{40}", action), (
                f"{action} may change under its name"
            )
            assert re.search(r"# v\d", comment), f"which version is {action}?"
