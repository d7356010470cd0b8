"""A trained LoRA is exported even if a copy of it cannot be made; what is left out is said."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image
from safetensors.torch import load_file

from autolora.adapters.deltas import has_output_norms
from autolora.adapters.read import read_lora
from autolora.errors import ExportError
from autolora.export.diffusers_copy import NAME
from autolora.export.settings import ExportSettings
from autolora.models.stable_diffusion import StableDiffusion
from autolora.publish import export, roundtrip
from autolora.publish.roundtrip import export_verified
from autolora.scoring.intervals import Estimate
from autolora.study.results.summary import describe_copies
from tests.adapters.test_contract import KINDS
from tests.export.test_kinds import FACTS, trained
from tests.export.world import dataset, run

pytestmark = pytest.mark.slow  # loads many pipelines


def export_with_copies(
    model: StableDiffusion, kind: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Any, Any, Any, list[str]]:
    """Export a random adapter that also changes the text encoder, with a copy for diffusers."""
    monkeypatch.setitem(KINDS, kind, replace(KINDS[kind], text_encoder=True))
    state, _ = trained(model, kind)
    monkeypatch.setattr(export, "export_facts", lambda *_: FACTS)
    monkeypatch.setattr(export, "_preview", lambda *_: Image.new("RGB", (8, 8)))
    monkeypatch.setattr(roundtrip, "check_renders", lambda *_: None)
    context = SimpleNamespace(adapter=SimpleNamespace(load=lambda _: None), model=model, dataset=dataset())
    score = SimpleNamespace(score=Estimate(0.5, 0.4, 0.6))
    session: Any = SimpleNamespace(context=context, export=ExportSettings("float32", True), score=lambda *_: score)
    trial: Any = SimpleNamespace(load=lambda _: state, run=run(KINDS[kind]))
    result: Any = SimpleNamespace(weight=0.7)
    logged: list[str] = []
    bars: Any = SimpleNamespace(log=logged.append)
    return *export_verified(trial, result, session, folder, "a study", SimpleNamespace(), bars), logged  # type: ignore[arg-type]


def test_the_plain_lora_of_a_dora_is_the_main_file_and_is_copied_for_diffusers(
    tiny_model: StableDiffusion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Diffusers leaves out the magnitudes of a text encoder, so the DoRA itself cannot be copied for it."""
    exported, plain, report, logged = export_with_copies(tiny_model, "dora", tmp_path, monkeypatch)
    assert exported.path == plain.path == tmp_path / "zorak.safetensors" and not logged
    assert report.dora == tmp_path / "zorak-dora.safetensors" and exported.diffusers == tmp_path / "diffusers" / NAME
    assert has_output_norms(read_lora(report.dora, tiny_model)) and not has_output_norms(load_file(exported.path))
    lines = describe_copies(plain, report, 0.71)
    assert "plain LoRA of a DoRA" in lines[0] and "score 0.500" in lines[0]
    assert f"{report.dora} (score 0.710), for LyCORIS" in lines[1]
    assert {path.name for path in tmp_path.glob("*.safetensors")} == {"zorak.safetensors", "zorak-dora.safetensors"}


def test_a_copy_that_diffusers_does_not_read_is_left_out(
    tiny_model: StableDiffusion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Diffusers does not know a text encoder of which only the second feed-forward layers are changed, as by IA3."""
    (tmp_path / "diffusers").mkdir()
    (tmp_path / "diffusers" / NAME).write_bytes(b"of an earlier export")
    exported, plain, report, logged = export_with_copies(tiny_model, "ia3", tmp_path, monkeypatch)
    assert exported.path.is_file() and plain.path.is_file() and exported.diffusers is None
    assert not (tmp_path / "diffusers" / NAME).exists() and str(tmp_path / ".new") not in "".join(logged)
    assert logged == list(report.left_out) and describe_copies(plain, report, None)[-1] == logged[0]
    assert logged[0].startswith("the copy for diffusers was left out, because it could not be verified: diffusers does")


def test_a_plain_lora_that_cannot_be_made_is_left_out(
    tiny_model: StableDiffusion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(*_: object) -> None:
        raise ExportError("a layer differs")

    monkeypatch.setattr(roundtrip, "verify_plain_lora", wrong)
    exported, plain, report, _ = export_with_copies(tiny_model, "loha", tmp_path, monkeypatch)
    assert plain is None and exported.diffusers is None
    assert [path.name for path in tmp_path.glob("*.safetensors")] == ["zorak.safetensors"]
    assert "plain LoRA was left out" in report.left_out[0] and "a layer differs" in report.left_out[0]
