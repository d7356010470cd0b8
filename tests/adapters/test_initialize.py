"""A new adapter starts with exactly the changes of a file, whatever their rank and scale, or the file is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from autolora.adapters.adapter_set import attach
from autolora.adapters.base import State
from autolora.adapters.deltas import delta_weight, parts_by_layer
from autolora.adapters.formats import layer_weights
from autolora.adapters.initialize import start_from
from autolora.adapters.kinds import IA3, DoRA, DyLoRA, LoHa, LoKr, LoRA
from autolora.adapters.low_rank import cut
from autolora.adapters.read import read_lora
from autolora.errors import ConfigError
from autolora.models.stable_diffusion import StableDiffusion
from tests.adapters.test_contract import KINDS, WITH_CONV
from tests.export.test_kinds import export, trained

pytestmark = pytest.mark.slow  # trains, renders or loads many models

WIDER = {
    "lora": LoRA(dim=6, alpha=6, text_encoder=True),
    "rslora": LoRA(dim=4, alpha=2, rank_stabilized=True),
    "locon": LoRA(dim=8, alpha=1, conv_dim=4, conv_alpha=4, targets=WITH_CONV, text_encoder=True),
    "dora": DoRA(dim=4, alpha=4),
    "loha": LoHa(dim=4, alpha=3),
    "lokr": LoKr(dim=2, alpha=2),
    "lokr-whole": KINDS["lokr-whole"],
    "ia3": KINDS["ia3"],
}


def fresh_state(model: StableDiffusion, spec: LoRA | DyLoRA) -> State:
    adapter = attach(model.modules, spec)
    try:
        adapter.start(0, spec, torch.Generator().manual_seed(7))
        return adapter.state(0)
    finally:
        adapter.detach()


def assert_changes(state: State, expected: dict[str, Tensor], model: StableDiffusion) -> None:
    weights = layer_weights(model.modules)
    for path, parts in parts_by_layer(state).items():
        delta = expected.get(path, torch.zeros_like(weights[path])).flatten(1)
        assert torch.allclose(delta_weight(parts, weights[path]), delta, atol=2e-6, rtol=1e-4), path


@pytest.mark.parametrize("kind", WIDER)
def test_training_continues_from_an_exported_file(kind: str, tiny_model: StableDiffusion, tmp_path: Path) -> None:
    """An adapter of another rank and alpha makes the same changes as the file that it starts from."""
    state, changes = trained(tiny_model, kind)
    source, spec = read_lora(export(tiny_model, kind, state, tmp_path), tiny_model), WIDER[kind]
    started = start_from(fresh_state(tiny_model, spec), source, layer_weights(tiny_model.modules))
    assert_changes(started, changes, tiny_model)
    adapter = attach(tiny_model.modules, spec)
    try:
        parameters = adapter.start(0, spec, torch.Generator().manual_seed(7))
        before = adapter.state(0)
        adapter.load(started)
        assert_changes(adapter.state(0), changes, tiny_model)
        alphas = {key: float(value) for key, value in before.items() if key.endswith("alpha")}
        assert {key: float(adapter.state(0)[key]) for key in alphas} == pytest.approx(alphas)
        with torch.no_grad():
            parameters[0].add_(1.0)  # the optimizer's parameters hold the loaded values
        assert any(not torch.equal(adapter.state(0)[key], tensor) for key, tensor in started.items())
    finally:
        adapter.detach()


@pytest.mark.parametrize(
    "spec", [DoRA(dim=5, alpha=1, text_encoder=True), DyLoRA(dim=8, alpha=4, unit=2, text_encoder=True)]
)
def test_a_dora_or_a_dylora_can_start_from_a_lora(spec: DoRA | DyLoRA, tiny_model: StableDiffusion) -> None:
    state, changes = trained(tiny_model, "lora")
    ordered = isinstance(spec, DyLoRA)
    started = start_from(fresh_state(tiny_model, spec), state, layer_weights(tiny_model.modules), ordered)
    assert_changes(started, changes, tiny_model)
    if ordered:  # a cut keeps the largest singular values
        path = next(iter(changes))
        full = changes[path].flatten(1)
        half = delta_weight(parts_by_layer(cut(started, 2))[path])
        best = torch.linalg.svdvals(full)[:2].square().sum().sqrt()
        cosine = float((half * full).sum() / (half.norm() * full.norm()))
        assert cosine == pytest.approx(float(best / full.norm()), abs=1e-4)


def test_layers_that_the_file_does_not_change_start_at_zero(tiny_model: StableDiffusion) -> None:
    state, changes = trained(tiny_model, "ia3")
    unet_only = {key: tensor for key, tensor in state.items() if key.startswith("unet.")}
    spec = IA3(text_encoder=True)
    started = start_from(fresh_state(tiny_model, spec), unet_only, layer_weights(tiny_model.modules))
    assert_changes(started, {path: c for path, c in changes.items() if path.startswith("unet.")}, tiny_model)


@pytest.mark.parametrize(
    ("kind", "spec", "message"),
    [
        ("lora", LoRA(dim=3, alpha=1, text_encoder=True), r"rank 4 at .* this adapter 3: set adapter.dim=4"),
        ("locon", replace(KINDS["locon"], conv_dim=1), r"set adapter.conv_dim=2"),
        (
            "lora",
            LoRA(dim=4, alpha=1),
            r"layers that this adapter does not change, such as text_encoder\..*adapter.text_en",
        ),
        ("loha", LoRA(dim=4, alpha=2), "it holds loha .* set adapter=loha"),
        ("dora", LoRA(dim=4, alpha=2), "it holds dora .* set adapter=dora"),
        ("lora", LoHa(dim=4, text_encoder=True), "it holds lora .* set adapter=lora"),
        ("loha", LoHa(dim=8, alpha=2), "has other factors .* set adapter.dim=4"),
        ("lokr-factor", LoKr(dim=2, alpha=1), "has other factors"),
    ],
)
def test_a_file_that_does_not_fit_the_adapter_is_refused(
    kind: str, spec: LoRA, message: str, tiny_model: StableDiffusion
) -> None:
    state, _ = trained(tiny_model, kind)
    with pytest.raises(ConfigError, match=message):
        start_from(fresh_state(tiny_model, spec), state, layer_weights(tiny_model.modules))
