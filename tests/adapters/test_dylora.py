"""DyLoRA: each step trains one unit of ranks, and every cut is a LoRA that works."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from autolora.adapters.adapter_set import AdapterSet, attach
from autolora.adapters.deltas import delta_weight, parts_by_layer
from autolora.adapters.kinds import DyLoRA
from autolora.adapters.low_rank import cut
from autolora.errors import ConfigError
from autolora.models.stable_diffusion import StableDiffusion
from tests.adapters.test_contract import move, predict


@pytest.fixture
def dylora(tiny_model: StableDiffusion) -> Iterator[AdapterSet]:
    """A DyLoRA with four units of two ranks and random parameters."""
    spec = DyLoRA(dim=8, alpha=4, unit=2)
    attached = attach(tiny_model.modules, spec)
    attached.start(0, spec, torch.Generator().manual_seed(0))
    move(attached)
    yield attached
    attached.detach()


def test_a_dylora_cut_to_a_rank_predicts_as_in_its_training_step(
    dylora: AdapterSet, tiny_model: StableDiffusion
) -> None:
    """The scale of a cut is min(alpha, rank) / rank, as in training, not alpha / dim of the uncut DyLoRA."""
    state, uncut, limited = dylora.state(0), predict(tiny_model), {}
    for rank in (2, 4, 6, 8):
        for delta in dylora.deltas:
            delta.limit_rank(0, rank)
        limited[rank] = predict(tiny_model)
    for rank, expected in limited.items():
        dylora.load(cut(state, rank))  # its shape differs, so new deltas replace those of the DyLoRA
        assert torch.allclose(predict(tiny_model), expected, atol=1e-5)
        assert rank == 8 or not torch.allclose(expected, uncut, atol=1e-3)


def test_a_step_of_a_dylora_trains_one_unit(dylora: AdapterSet, tiny_model: StableDiffusion) -> None:
    generator, trained_units = torch.Generator().manual_seed(1), set()
    for _ in range(12):
        dylora.clear_grads()
        dylora.draw_rank(0, generator)
        noisy = torch.randn(1, *tiny_model.latent_shape, generator=generator)
        tiny_model.predict(noisy, torch.tensor([50]), tiny_model.encode_prompts(["1girl"])).square().mean().backward()
        dylora.gather_grads()
        pairs = len(dylora.parameters(0)) // len(dylora.deltas)
        trained = {i % pairs // 2 for i, p in enumerate(dylora.parameters(0)) if p.grad is not None}
        assert len(trained) == 1
        trained_units |= trained
    assert trained_units == {0, 1, 2, 3}


def test_max_norm_limits_every_rank_of_a_dylora(dylora: AdapterSet) -> None:
    """Its middle ranks have a larger scale, so their norms exceed that of the full rank."""

    def norms() -> dict[str, list[float]]:
        state = dylora.state(0)
        cuts = [parts_by_layer(cut(state, rank)) for rank in (2, 4, 6, 8)]
        return {path: [float(delta_weight(parts[path]).norm()) for parts in cuts] for path in dylora.layers}

    before = norms()
    assert all(by_rank[1] > by_rank[3] for by_rank in before.values())
    limit = sorted(max(by_rank) for by_rank in before.values())[len(before) // 2]
    dylora.apply_max_norm(0, limit)
    for path, by_rank in norms().items():
        assert max(by_rank) == pytest.approx(min(max(before[path]), limit), rel=1e-3), path


@pytest.mark.parametrize("rank", [0, 5])
def test_impossible_cuts_are_refused(rank: int) -> None:
    state = {"a.lora_down.weight": torch.zeros(4, 8), "a.lora_up.weight": torch.zeros(8, 4)}
    with pytest.raises(ConfigError, match="can be cut to 1 to 4"):
        cut(state, rank)
