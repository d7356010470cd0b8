"""Every kind, trained for a few steps on SD1 and SDXL, predicts the same in diffusers after an export."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from autolora.adapters.base import State
from autolora.adapters.deltas import distance, is_plain
from autolora.adapters.formats import layer_weights
from autolora.adapters.read import lora_of
from autolora.adapters.settings import Adapter
from autolora.export.diffusers_copy import write_diffusers
from autolora.export.key_names import has_diffusers_format
from autolora.export.readers.diffusers import DiffusersReference
from autolora.export.verify import verify_deltas
from autolora.models.stable_diffusion import StableDiffusion
from autolora.paperdoll.world import write_dataset
from autolora.publish.export import PLAIN_LORA_DISTANCE, nearest_lora
from autolora.train.slot import Job
from tests import tiny
from tests.export.diffusers_log import warnings_at_loading
from tests.export.test_kinds import KINDS, assert_predicts_as, export
from tests.train.helpers import ADAMW, make_context, train_all

pytestmark = pytest.mark.slow  # trains, renders or loads many models


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("data") / "doll"
    write_dataset(out, seed=1, outfits=1, images_per_outfit=6, size=32)
    return out


@pytest.fixture(scope="module")
def narrow_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_tiny(tmp_path_factory.mktemp("narrow") / "model", unet=tiny.narrow_unet)


@pytest.fixture(scope="module")
def narrow(narrow_dir: Path) -> StableDiffusion:
    return tiny.load_tiny(narrow_dir)


def for_diffusers(kind: str, state: State, model: StableDiffusion, out: Path) -> tuple[Path, State, Adapter]:
    """The file that diffusers reads: the export, DoRA's copy in diffusers' names, or the nearest plain LoRA."""
    path = export(model, kind, state, out)
    verify_deltas(state, path, model)
    if is_plain(state):
        return path, state, KINDS[kind]
    if has_diffusers_format(state):
        return write_diffusers(state, out, torch.float32), state, KINDS[kind]
    plain, _, apart = nearest_lora(state, layer_weights(model.modules))
    assert apart == distance(plain, state, layer_weights(model.modules)) <= PLAIN_LORA_DISTANCE
    return export(model, "lora", plain, out), plain, lora_of(plain)


@pytest.mark.parametrize("base", ["narrow", "tiny_xl"])
@pytest.mark.parametrize("kind", ["lora", "locon", "dylora", "dora", "loha", "lokr", "ia3"])
def test_diffusers_predicts_the_same(
    kind: str,
    base: str,
    folder: Path,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    caplog: pytest.LogCaptureFixture,
) -> None:
    model, source = request.getfixturevalue(base), request.getfixturevalue(f"{base}_dir")
    run = replace(ADAMW, adapter=KINDS[kind])
    *_, last = train_all(make_context(model, folder, tmp_path / "cache", run), Job(run))
    path, state, spec = for_diffusers(kind, last.state, model, tmp_path)
    reference = DiffusersReference(path, source, model)
    reference.verify_deltas(state)
    assert_predicts_as(reference, model, spec, state)
    assert warnings_at_loading(path, source, model.architecture, caplog) == []
