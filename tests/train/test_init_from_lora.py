"""Training that starts from a LoRA file."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from autolora.adapters.base import AdaptedLayer
from autolora.adapters.kinds import LoHa, LoRA
from autolora.adapters.read import read_lora
from autolora.errors import ConfigError
from autolora.export.metadata import ExportFacts
from autolora.export.write import export_lora
from autolora.models.stable_diffusion import StableDiffusion
from autolora.train import checkpoint
from autolora.train.init_from_lora import check_start
from autolora.train.run import InitFile, Run
from autolora.train.slot import Job, TrainingSlot
from tests.export.world import dataset as world
from tests.export.world import random_state
from tests.export.world import run as world_run
from tests.train.helpers import ADAMW, make_context, same_state, train_all

FACTS = ExportFacts("1girl", 1.0, "a file to start from", 10)


@pytest.fixture
def init(tiny_model: StableDiffusion, tmp_path: Path) -> Path:
    """A LoRA file in kohya's names with a smaller rank and another scale than the run's."""
    spec = LoRA(dim=1, alpha=0.7)
    return export_lora(
        random_state(tiny_model, spec), world_run(spec), world(), tiny_model, tmp_path, "init", facts=FACTS
    ).path


def starting_from(path: Path) -> Run:
    return replace(ADAMW, init_lora=InitFile(str(path), hashlib.sha256(path.read_bytes()).hexdigest()))


def test_training_starts_from_a_file(tiny_model: StableDiffusion, folder: Path, tmp_path: Path, init: Path) -> None:
    """Before the first step the model predicts as with the file; training and resuming continue from there."""
    run, noisy = (
        starting_from(init),
        torch.randn(1, *tiny_model.latent_shape, generator=torch.Generator().manual_seed(0)),
    )
    timesteps, conditioning = torch.tensor([500]), tiny_model.encode_prompts(["1girl"])
    context = make_context(tiny_model, folder, tmp_path, run)
    with torch.no_grad():
        base = tiny_model.predict(noisy, timesteps, conditioning)
        context.adapter.load(read_lora(init, tiny_model))
        expected = tiny_model.predict(noisy, timesteps, conditioning)
        TrainingSlot(0, Job(run), context)
        predicted = tiny_model.predict(noisy, timesteps, conditioning)
    context.adapter.detach()
    assert torch.allclose(predicted, expected, atol=1e-5) and not torch.allclose(predicted, base, atol=1e-3)
    uninterrupted = train_all(make_context(tiny_model, folder, tmp_path, run), Job(run))
    plain = train_all(make_context(tiny_model, folder, tmp_path), Job(ADAMW))
    assert not same_state(uninterrupted[0], plain[0])
    checkpoint.save(uninterrupted[0], tmp_path / "latest.pt")
    resumed = train_all(
        make_context(tiny_model, folder, tmp_path), Job(run, checkpoint.load(tmp_path / "latest.pt", run))
    )
    assert all(same_state(a, b) and a.train_loss == b.train_loss for a, b in zip(uninterrupted, resumed, strict=True))


def test_the_content_of_the_file_is_part_of_a_runs_identity(tmp_path: Path) -> None:
    for name, content in (("a", b"one"), ("b", b"one"), ("c", b"two")):
        (tmp_path / name).write_bytes(content)
    a, b, c = (starting_from(tmp_path / name) for name in "abc")
    assert a.fingerprint() == b.fingerprint() != c.fingerprint()
    assert ADAMW.fingerprint() not in (a.fingerprint(), c.fingerprint())
    assert str(tmp_path) not in json.dumps(a.settings())


def test_a_file_that_does_not_fit_is_refused_before_training(tiny_model: StableDiffusion, init: Path) -> None:
    run = starting_from(init)
    check_start(run, tiny_model)
    with pytest.raises(ConfigError, match=r"init_lora=.*init\.safetensors with recipe adamw: it holds lora"):
        check_start(replace(run, adapter=LoHa(dim=2, alpha=1)), tiny_model)
    assert not any(isinstance(module, AdaptedLayer) for module in tiny_model.unet.modules())
