"""The memory estimate of a recipe: against the trainer's own steps on real tensors, and what must follow from what."""

from __future__ import annotations

import copy
from dataclasses import astuple, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from autolora.adapters.adapter_set import attach
from autolora.adapters.kinds import IA3, DoRA, LoHa, LoKr, LoRA
from autolora.data.concepts import Dataset, DatasetSettings, load_dataset
from autolora.models.base import BaseModel
from autolora.models.flow import FlowModel
from autolora.models.meta_device import MemoryCounter
from autolora.models.settings import RenderSettings
from autolora.models.stable_diffusion import StableDiffusion
from autolora.optim.base import Optimizer
from autolora.optim.optimizers import Adafactor, AdamW, AdamW8bit, Lion, Prodigy
from autolora.optim.schedules import Constant
from autolora.paperdoll.world import write_dataset
from autolora.preflight.memory import (
    WORKSPACE,
    MemoryEstimate,
    encoder_bytes,
    largest,
    memory_need,
    memory_section,
    state_bytes,
)
from autolora.progress import Bars
from autolora.sampling import RenderRequest, render
from autolora.scoring.encoders import OpenClip, VaeEncoder, load_encoder
from autolora.train.caches import LatentCache, PromptCache
from autolora.train.oom_fallback import memory_suggestions
from autolora.train.run import Run, TrainSettings
from autolora.train.slot import Job, TrainingContext, TrainingSlot
from autolora.train.step import train_step
from tests import tiny_flow
from tests.tiny import load_tiny, tiny_model

pytestmark = pytest.mark.slow  # trains, renders or loads many models

RUN = Run("adamw", LoRA(dim=8), AdamW(), Constant(), TrainSettings(epochs=1, images_per_concept=64, batch_size=8))
LOCON = LoRA(dim=64, conv_dim=32, targets=("attention", "feed_forward", "projections", "conv"))
LOOKING = 10**6
KINDS = {"lora": LoRA(dim=8), "text": LoRA(dim=8, text_encoder=True), "dora": DoRA(dim=8), "lokr": LoKr(dim=4)}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = tmp_path_factory.mktemp("memory") / "doll"
    write_dataset(folder, seed=1, outfits=1, images_per_outfit=10, size=32)
    return load_dataset(DatasetSettings(path=str(folder)))


def need(run: Run, dataset: Dataset, model: BaseModel, offload: bool = False, slots: int = 1) -> MemoryEstimate:
    found = memory_need(run, dataset, model, offload, slots, LOOKING)
    return MemoryEstimate(*(size - WORKSPACE for size in astuple(found)))


def taken(run: Run, dataset: Dataset, model: BaseModel, cache: Path) -> MemoryEstimate:
    """Bytes of real tensors at most while the trainer trains and the renderer renders, on a CPU."""
    meter = MemoryCounter()
    parts = {*model.modules.values(), *model.text_encoders.values(), model.vae}
    meter.count([tensor for part in parts for tensor in (*part.parameters(), *part.buffers())])
    latents = LatentCache(model, cache)
    with meter, torch.no_grad():
        model.encode_images(torch.zeros(1, 3, model.resolution, model.resolution))
    preparing = meter.peak
    prompts = PromptCache(model, size=1)  # what it may keep of others is bounded, and small beside a real model
    context = TrainingContext(model, attach(model.modules, run.adapter), dataset, latents, prompts)
    with meter:
        slot = TrainingSlot(0, Job(run), context)
        train_step(context, {0: slot})  # from here on the optimizer has its state
        context.adapter.clear_grads()
        meter.peak = meter.now
        train_step(context, {0: slot})
        assert all(parameter.grad is None for parameter in context.adapter.parameters(0))  # a render comes next
        training, meter.peak, held = meter.peak, 0, meter.now - prompts._bytes
        shots = [RenderRequest("1girl", seed, 1.0) for seed in range(model.settings.render.batch_size)]
        model.vae.enable_slicing()  # as on a GPU
        render(model, shots, model.settings.render, context.adapter)
    model.vae.disable_slicing()
    context.adapter.detach()
    return MemoryEstimate(training, meter.peak, held + LOOKING, preparing)


def assert_near(estimated: MemoryEstimate, real: MemoryEstimate) -> None:
    assert astuple(estimated) == pytest.approx(astuple(real), rel=0.1)


@pytest.mark.parametrize("kind", KINDS)
def test_the_estimate_is_what_real_tensors_take(
    kind: str, tiny_model: StableDiffusion, dataset: Dataset, tmp_path: Path
) -> None:
    run = replace(RUN, adapter=KINDS[kind])
    estimated, real = need(run, dataset, tiny_model), taken(run, dataset, tiny_model, tmp_path)
    assert_near(estimated, real)


def test_class_pictures_are_drawn_as_large_as_it_trains(tiny_model: StableDiffusion, dataset: Dataset) -> None:
    probes = RenderSettings(num_inference_steps=1, size=16, batch_size=16)
    model = copy.copy(tiny_model)
    model.settings = replace(tiny_model.settings, render=probes)
    run = replace(RUN, train=replace(RUN.train, prior_preservation_ratio=0.5))
    meter = MemoryCounter()
    meter.count([tensor for part in model.modules.values() for tensor in (*part.parameters(), *part.buffers())])
    meter.count([*model.vae.parameters(), *model.vae.buffers()])
    model.vae.enable_slicing()  # as on a GPU
    with meter:
        render(model, [RenderRequest("1girl", seed, 0.0) for seed in range(16)], replace(probes, size=None), None)
    model.vae.disable_slicing()
    found, without = need(run, dataset, model), need(RUN, dataset, model)
    assert found.preparing == pytest.approx(meter.peak, rel=0.1) and found.preparing > 1.2 * without.preparing
    assert found.rendering == without.rendering
    own = replace(dataset, regularization=dataset.pictures)
    assert need(run, own, model).preparing == without.preparing


@pytest.mark.parametrize("family", tiny_flow.FAMILIES)
def test_so_is_that_of_flow_matching(
    family: str, tiny_flows: dict[str, FlowModel], dataset: Dataset, tmp_path: Path
) -> None:
    model = tiny_flows[family]
    estimated, real = need(RUN, dataset, model), taken(RUN, dataset, model, tmp_path)
    assert_near(estimated, real)


def test_every_family_and_kind_can_be_estimated(tiny_xl: StableDiffusion, dataset: Dataset) -> None:
    for adapter in (LoRA(dim=2), LoHa(dim=2), IA3(), LoRA(dim=2, text_encoder=True)):
        found = need(replace(RUN, adapter=adapter), dataset, tiny_xl)
        assert min(found.training, found.rendering) > sum(p.nbytes for p in tiny_xl.unet.parameters())


def test_more_of_anything_takes_more(tiny_model: StableDiffusion, tiny_model_dir: Path, dataset: Dataset) -> None:
    plain = need(RUN, dataset, tiny_model)
    larger = replace(RUN, train=replace(RUN.train, batch_size=16))
    assert need(larger, dataset, tiny_model).training > 1.5 * plain.training - tiny_model.unet.num_parameters() * 4
    assert need(replace(RUN, adapter=LoRA(dim=64)), dataset, tiny_model).most > plain.most
    assert need(replace(RUN, optimizer=Prodigy()), dataset, tiny_model).training > plain.training
    assert need(RUN, dataset, tiny_model, slots=3).training > 2 * plain.training
    saved = load_tiny(tiny_model_dir, gradient_checkpointing=True)
    assert need(RUN, dataset, saved).training < plain.training
    away = need(RUN, dataset, tiny_model, offload=True)
    text, vae = (sum(p.nbytes for p in part.parameters()) for part in (tiny_model.text_encoder, tiny_model.vae))
    assert plain.training - away.training == pytest.approx(text + vae, rel=0.01)
    trained = replace(RUN, adapter=KINDS["text"])
    gone = need(trained, dataset, tiny_model).training - need(trained, dataset, tiny_model, offload=True).training
    assert gone == pytest.approx(vae, rel=0.01)  # text encoders that are trained stay


@pytest.mark.parametrize(
    ("optimizer", "bytes_each"),
    [(AdamW(), 8), (Prodigy(), 16), (Lion(), 4), (Adafactor(), 0.1), (AdamW8bit(), 2)],
)
def test_what_optimizers_keep(optimizer: Optimizer, bytes_each: float) -> None:
    assert state_bytes(optimizer) == pytest.approx(bytes_each, abs=0.1)


def test_check_says_what_will_not_fit_and_what_to_set(
    tiny_model: StableDiffusion, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [RUN, replace(RUN, name="wide", adapter=LOCON)]
    plain = memory_section(runs, dataset, tiny_model, 1, "no such encoder", Bars(quiet=True))
    assert plain.words[0] == "tiny, 32 px, wide (lora of dim 64 + 32 conv, batch 8): at most 0.3 GB of a GPU's memory"
    assert "without what the scoring encoder takes" in plain.words[3]
    assert [row[:4] for row in plain.rows] == [("adamw", "lora", "8", 8), ("wide", "lora", "64 + 32 conv", 8)]
    seen = memory_section([RUN], dataset, tiny_model, 1, load_encoder("paperdoll"), Bars(quiet=True))
    assert seen.rows[0][6] > plain.rows[0][6] and len(seen.words) == 3  # type: ignore[operator]

    class Card:
        total_memory = 10**8

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Card)
    monkeypatch.setattr(tiny_model, "device", torch.device("cuda"))
    small = memory_section([RUN], dataset, tiny_model, 1, "no such encoder", Bars(quiet=True))
    assert "of this card's 0.1" in small.words[0]
    said = "adamw (lora of dim 8, batch 8) will not fit: set model.gradient_checkpointing=true or train.batch_size=4"
    assert small.words[4].startswith(said)


def test_an_encoder_takes_what_it_looks_with() -> None:
    encoder, meter = load_encoder("paperdoll"), MemoryCounter()
    assert isinstance(encoder, OpenClip)
    meter.count([*encoder.model.parameters(), *encoder.model.buffers()])
    with meter:
        encoder.embed(np.zeros((100, *encoder.side, 3), np.uint8))
    assert encoder_bytes(encoder) == pytest.approx(meter.peak, rel=0.1)
    assert encoder_bytes(VaeEncoder(tiny_model())) == 0


def test_of_a_study_the_recipes_are_estimated_and_the_largest_of_their_ranges() -> None:
    narrow, wide = (replace(RUN, adapter=LoRA(dim=dim, alpha=4)) for dim in (4, 64))
    text = replace(RUN, adapter=LoRA(dim=8, text_encoder=True))
    other = replace(RUN, name="other", adapter=LOCON)
    conv = replace(other, adapter=replace(LOCON, conv_dim=64))
    same = replace(wide, train=replace(wide.train, epochs=9))
    drawn = replace(narrow, train=replace(narrow.train, prior_preservation_ratio=0.5))
    assert largest([RUN, other, narrow, wide, same, text, conv, drawn]) == [RUN, wide, text, drawn, other, conv]


def test_savings_are_what_is_not_set_yet(tiny_model: StableDiffusion, monkeypatch: pytest.MonkeyPatch) -> None:
    assert memory_suggestions(RUN, tiny_model)[:3] == [
        "model.gradient_checkpointing=true",
        "train.batch_size=4",
        "optimizer=adamw8bit",
    ]
    settings = replace(tiny_model.settings, gradient_checkpointing=True, offload=False)
    monkeypatch.setattr(tiny_model, "settings", settings)
    run = replace(RUN, optimizer=AdamW8bit(), train=replace(RUN.train, batch_size=1))
    assert memory_suggestions(run, tiny_model) == [
        "model.offload=true",
        "model.dtype=bfloat16",
        "a model.resolution below 32",
    ]
