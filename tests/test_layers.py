"""Imports point only upward in the list of layers, in no circle, and the config path imports nothing heavy."""

from __future__ import annotations

import ast
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

import autolora
from autolora.models.load import FAMILIES

LAYERS = [
    ("errors", "files", "progress", "provenance", "received", "stop"),
    ("config", "config_values", "overrides", "renamed_keys"),
    ("data",),
    ("models",),
    ("adapters",),
    ("optim",),
    ("train",),
    ("sampling",),
    ("scoring",),
    ("prepare",),
    ("export",),
    ("report",),
    ("settings", "presets"),
    ("evaluation",),
    ("preflight", "publish"),
    ("study",),
    ("api",),
    ("commands",),
    ("cli",),
]
STUDY_LAYERS = [("",), ("search",), ("finals",), ("results",), ("full_study",)]
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
STUDY_RANK = {name: rank for rank, names in enumerate(STUDY_LAYERS) for name in names}
ROOT = Path(autolora.__file__).parent
MODULES = sorted(ROOT.rglob("*.py"))
# The synthetic test world stands beside the layers: they know only where its files are, it knows only errors and files.
BESIDE = {"paperdoll"}
HEAVY = ("bitsandbytes", "diffusers", "optuna", "peft", "scipy", "torch", "transformers")


def imports_of(path: Path, module_level: bool = False) -> list[tuple[list[str], list[str]]]:
    """What a file imports from autolora: the parts of the module's name, and the names that are taken from it."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = tree.body if module_level else list(ast.walk(tree))
    return [
        (node.module.split("."), [alias.name for alias in node.names])
        for node in nodes
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("autolora") and node.module
    ]


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_upward(path: Path) -> None:
    layer = path.relative_to(ROOT).parts[0].removesuffix(".py")
    for parts, names in imports_of(path):
        for used in [parts[1]] if len(parts) > 1 else [name for name in names if name in RANK]:
            if layer in BESIDE:
                assert used in {*BESIDE, "errors", "files"}, f"{path} imports {used}"
            elif used in BESIDE:
                assert parts[2] == "weights" or layer == "commands", f"{path} imports {'.'.join(parts)}"
            elif layer in RANK:
                assert RANK[used] <= RANK[layer], f"{path} imports {used}, which stands above {layer}"


@pytest.mark.parametrize("path", sorted((ROOT / "study").rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_the_rooms_of_a_study_point_upward_too(path: Path) -> None:
    parts = path.relative_to(ROOT / "study").parts
    room = parts[0] if len(parts) > 1 else path.stem if path.stem in STUDY_RANK else ""
    for module, _ in imports_of(path):
        if module[1:2] == ["study"] and len(module) > 2:
            used = module[2] if module[2] in STUDY_RANK else ""
            assert STUDY_RANK[used] <= STUDY_RANK[room], f"{path} imports {'.'.join(module)}"


def test_no_import_circle() -> None:
    modules = {".".join(("autolora", *p.relative_to(ROOT).with_suffix("").parts)): p for p in MODULES}
    graph: dict[str, set[str]] = {}
    for name, path in modules.items():
        graph[name] = set()
        for parts, names in imports_of(path, module_level=True):
            module = ".".join(parts)
            graph[name] |= {module} if module in modules else set()
            graph[name] |= {f"{module}.{item}" for item in names if f"{module}.{item}" in modules}
    done: set[str] = set()

    def visit(name: str, above: tuple[str, ...]) -> None:
        assert name not in above, " -> ".join((*above, name))
        if name not in done:
            for used in graph[name]:
                visit(used, (*above, name))
            done.add(name)

    for name in graph:
        visit(name, ())


@pytest.mark.parametrize("room", ["evaluation", "publish", "preflight", "report"])
def test_what_scores_and_publishes_knows_no_optuna(room: str) -> None:
    for path in (ROOT / room).rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert "import optuna" not in text and "from optuna" not in text, path


def test_home_folders_are_found_in_one_place() -> None:
    """Path.expanduser ends in a traceback for the name of an unknown user."""
    assert [path.name for path in MODULES if "expanduser(" in path.read_text(encoding="utf-8")] == ["files.py"]


def test_files_are_short() -> None:
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in MODULES}
    assert {path: length for path, length in lengths.items() if length > 300} == {}
    assert statistics.median(lengths.values()) <= 120
    assert len(list((ROOT / "study").glob("*.py"))) <= 16


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_nothing_but_models_asks_which_family_a_model_is(path: Path) -> None:
    """Others look a family up in a table."""
    if path.relative_to(ROOT).parts[0] == "models":
        return
    tree = ast.parse(path.read_text(encoding="utf-8"))
    compared = [node for node in ast.walk(tree) if isinstance(node, ast.Compare | ast.match_case)]
    values = [part.value for node in compared for part in ast.walk(node) if isinstance(part, ast.Constant)]
    assert not set(FAMILIES) & {value for value in values if isinstance(value, str)}


def test_every_module_has_a_place() -> None:
    names = {
        p.stem if p.is_file() else p.name for p in ROOT.iterdir() if p.suffix == ".py" or (p / "__init__.py").is_file()
    }
    assert names - {"__init__"} == set(RANK) | BESIDE


@pytest.mark.parametrize(
    "code",
    [
        "import autolora",
        "import autolora.api",
        "from autolora.cli import main; main(['--help'])",
        "from autolora.cli import main; main(['tune', 'quickstart', '--cfg', 'job'])",
        "from autolora.cli import main; main(['tune', 'quickstart', 'train.epochz=1'])",
        "from autolora.cli import main; main(['tune', 'quickstart', 'dataset.path=/nowhere'])",
        "import autolora; autolora.recipe('guide-prodigy', dim=16)",
    ],
)
def test_the_config_path_imports_nothing_heavy(code: str) -> None:
    check = f"import sys; print([name for name in {HEAVY} if name in sys.modules], file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", f"{code}; {check}"], capture_output=True, text=True, check=True)
    assert done.stderr.splitlines()[-1] == "[]"


def test_a_base_model_that_is_missing_is_told_before_torch_is_imported() -> None:
    code = (
        "import sys; from autolora.cli import main; "
        "code = main(['tune', 'quickstart', 'model.path=/nowhere']); "
        "sys.exit(code if 'torch' not in sys.modules else 1)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 4


def test_importing_the_package_changes_nothing_in_the_process() -> None:
    code = (
        "import logging, os, sys, warnings\n"
        "import numpy  # which adds filters of its own\n"
        "before = dict(os.environ), list(warnings.filters), logging.root.level, logging.root.handlers[:]\n"
        "import autolora, autolora.api, autolora.settings\n"
        "after = dict(os.environ), list(warnings.filters), logging.root.level, logging.root.handlers[:]\n"
        "sys.exit(before != after)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
