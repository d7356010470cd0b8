"""Imports point only upward in the list of layers."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import autolora
from autolora.models.load import FAMILIES

LAYERS = [
    ("errors", "files", "progress", "provenance", "stop"),
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
    ("config",),
    ("study",),
    ("cli",),
]
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
ROOT = Path(autolora.__file__).parent
# The embedded world stands beside the layers: they know only where its files lie, it knows only errors and files.
BESIDE = {"paperdoll"}


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_upward(path: Path) -> None:
    layer = path.relative_to(ROOT).parts[0].removesuffix(".py")
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith("autolora"):
            continue
        parts = (node.module or "").split(".")
        used = [parts[1]] if len(parts) > 1 else [a.name for a in node.names if a.name in RANK]
        for name in used:
            if layer in BESIDE:
                assert name in {*BESIDE, "errors", "files"}, f"{path} imports {name}"
            elif name in BESIDE:
                assert parts[2] == "weights" or layer == "cli", f"{path} imports {node.module}"
            elif layer in RANK:
                assert RANK[name] <= RANK[layer], f"{path} imports {name}, which stands above {layer}"


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_nothing_but_models_asks_which_family_a_model_is(path: Path) -> None:
    """Others look a family up in a table."""
    if path.relative_to(ROOT).parts[0] == "models":
        return
    tree = ast.parse(path.read_text(encoding="utf-8"))
    asked = [node for node in ast.walk(tree) if isinstance(node, ast.Compare | ast.match_case)]
    said = [part.value for node in asked for part in ast.walk(node) if isinstance(part, ast.Constant)]
    assert not set(FAMILIES) & {value for value in said if isinstance(value, str)}


def test_every_module_has_a_place() -> None:
    names = {
        p.stem if p.is_file() else p.name for p in ROOT.iterdir() if p.suffix == ".py" or (p / "__init__.py").is_file()
    }
    assert names - {"__init__"} == set(RANK) | BESIDE
