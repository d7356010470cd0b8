"""Properties that every kind of adapter has."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autolora.adapters.adapter_set import AdapterSet, attach
from autolora.adapters.base import AdaptedLayer
from autolora.adapters.kinds import IA3, DoRA, DyLoRA, LoHa, LoKr, LoRA
from autolora.errors import ConfigError
from autolora.models.stable_diffusion import StableDiffusion

pytestmark = pytest.mark.slow  # trains, renders or loads many models

WITH_CONV = ("attention", "feed_forward", "projections", "conv")
KINDS: dict[str, LoRA | DyLoRA] = {
    "lora": LoRA(dim=4, alpha=2, text_encoder=True),
    "rslora": LoRA(dim=4, alpha=2, rank_stabilized=True),
    "locon": LoRA(dim=4, alpha=2, conv_dim=2, conv_alpha=4, targets=WITH_CONV),
    "dylora": DyLoRA(dim=4, alpha=2, unit=2),
    "dora": DoRA(dim=4, alpha=2),
    "dora-conv": DoRA(dim=4, alpha=2, conv_dim=2, targets=WITH_CONV),
    "loha": LoHa(dim=4, alpha=2),
    "loha-conv": LoHa(dim=4, alpha=2, conv_dim=2, targets=WITH_CONV),
    "lokr": LoKr(dim=2, alpha=1),
    "lokr-conv": LoKr(dim=2, alpha=1, targets=WITH_CONV),
    "lokr-factor": LoKr(dim=2, alpha=1, factor=4),
    "lokr-whole": LoKr(dim=1000, alpha=1),
    "ia3": IA3(text_encoder=True),
}
# DoRA divides norms in 32-bit floats.
TOLERANCE = 1e-4


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def adapter(kind: str, tiny_model: StableDiffusion) -> Iterator[AdapterSet]:
    attached = attach(tiny_model.modules, KINDS[kind])
    attached.start(0, KINDS[kind], torch.Generator().manual_seed(0))
    yield attached
    attached.detach()


def move(adapter: AdapterSet, seed: int = 1, size: float = 0.2) -> None:
    """Change an adapter's parameters at random, as if it had been trained."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in adapter.parameters(0):
            parameter.add_(torch.randn(parameter.shape, generator=generator) * size)


def predict(model: StableDiffusion) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    noisy = torch.randn(3, *model.latent_shape, generator=generator)
    with torch.no_grad():
        return model.predict(noisy, torch.arange(3) * 100 + 50, model.encode_prompts(["1girl", "hat", "1boy"]))


def random_input(layer: AdaptedLayer, batch: int = 3) -> Tensor:
    """Return a random input that fits a layer."""
    weight, generator = layer.base.weight, torch.Generator().manual_seed(2)
    if isinstance(layer.base, nn.Linear):
        return torch.randn(batch, 5, weight.shape[1], generator=generator)
    return torch.randn(batch, weight.shape[1], 6, 6, generator=generator)


def test_a_new_adapter_does_not_change_the_base_model(kind: str, tiny_model: StableDiffusion) -> None:
    before = predict(tiny_model)
    adapter = attach(tiny_model.modules, KINDS[kind])
    adapter.start(0, KINDS[kind], torch.Generator().manual_seed(0))
    assert torch.allclose(predict(tiny_model), before, atol=1e-5)
    move(adapter)
    assert not torch.allclose(predict(tiny_model), before, atol=1e-3)
    adapter.detach()
    assert torch.equal(predict(tiny_model), before)


def test_exactly_the_target_layers_are_adapted(kind: str, adapter: AdapterSet) -> None:
    spec = KINDS[kind]
    assert adapter.layers and all(spec.adapts(path) for path in adapter.layers)
    assert any(layer.kernel for layer in adapter.layers.values()) == ("conv" in spec.targets)
    assert any(path.startswith("text_encoder.") for path in adapter.layers) == spec.text_encoder
    assert len(adapter.deltas) == len(adapter.layers)


def test_an_adapted_layer_computes_base_weight_plus_delta(adapter: AdapterSet) -> None:
    move(adapter)
    with torch.no_grad():
        for path, layer in adapter.layers.items():
            assert layer.delta is not None
            x, base = random_input(layer), layer.base
            weight = base.weight + layer.delta.dense(0)
            if isinstance(base, nn.Linear):
                expected = F.linear(x, weight, base.bias)
            else:
                expected = F.conv2d(x, weight, base.bias, base.stride, base.padding)  # type: ignore[arg-type]
            assert torch.allclose(layer(x), expected, atol=TOLERANCE, rtol=TOLERANCE), path


def test_gradients_reach_every_tensor(adapter: AdapterSet, tiny_model: StableDiffusion) -> None:
    move(adapter)
    with torch.no_grad():
        noisy, steps = torch.randn(1, *tiny_model.latent_shape), torch.tensor([50])
    context = tiny_model.encode_prompts(["1girl"])
    tiny_model.predict(noisy, steps, context).square().mean().backward()
    adapter.gather_grads()
    for parameter in adapter.parameters(0):
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all()
    nonzero = sum(bool(p.grad.any()) for p in adapter.parameters(0) if p.grad is not None)
    assert nonzero > 0.9 * len(adapter.parameters(0))
    adapter.clear_grads()
    adapter.gather_grads()
    assert all(parameter.grad is None for parameter in adapter.parameters(0))


def test_a_saved_adapter_loads_into_a_set_of_another_kind(
    kind: str, adapter: AdapterSet, tiny_model: StableDiffusion
) -> None:
    move(adapter)
    expected, state = predict(tiny_model), adapter.state(0)
    adapter.detach()
    other = LoRA(dim=3, alpha=1, targets=WITH_CONV, text_encoder=True)
    fresh = attach(tiny_model.modules, other, KINDS[kind])
    try:
        fresh.start(0, other, torch.Generator().manual_seed(9))
        move(fresh)
        fresh.load(state)
        assert torch.allclose(predict(tiny_model), expected, atol=1e-5)
        again = fresh.state(0)
        assert again.keys() == state.keys()
        assert all(torch.allclose(again[key], tensor) for key, tensor in state.items())
    finally:
        fresh.detach()


def test_after_a_resume_the_optimizer_trains_the_loaded_parameters(kind: str, adapter: AdapterSet) -> None:
    """The optimizer is built before the checkpoint is loaded, so loading must write into the same parameters."""
    move(adapter)
    state = adapter.state(0)
    parameters = adapter.start(0, KINDS[kind], torch.Generator().manual_seed(3))
    adapter.load(state)
    loaded = adapter.state(0)
    assert all(torch.allclose(loaded[key], tensor) for key, tensor in state.items())
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(0.5)
    after = adapter.state(0)
    changed = [k for k, tensor in state.items() if not torch.allclose(after[k], tensor)]
    assert sorted(changed) == sorted(k for k in state if not k.endswith((".alpha", ".on_input")))


def test_lora_weights_are_per_sample_and_linear(adapter: AdapterSet) -> None:
    move(adapter)
    with torch.no_grad():
        for layer in adapter.layers.values():
            x = random_input(layer, 1)
            x = x.repeat(4, *(1,) * (x.dim() - 1))
            with adapter.weighted(torch.tensor([0.0, 0.5, 1.0, 1.5])):
                y = layer(x)
            base, full = layer.base(x), layer(x)
            step = full[0] - base[0]
            for i, weight in enumerate((0.0, 0.5, 1.0, 1.5)):
                assert torch.allclose(y[i] - base[i], weight * step, atol=TOLERANCE, rtol=TOLERANCE)


def test_max_norm_scales_every_delta_without_changing_its_direction(kind: str, adapter: AdapterSet) -> None:
    move(adapter)
    before = {path: layer.delta.dense(0).detach().clone() for path, layer in adapter.layers.items() if layer.delta}
    limit = sorted(float(old.norm()) for old in before.values())[len(before) // 2]
    adapter.apply_max_norm(0, limit)
    for path, old in before.items():
        delta = adapter.layers[path].delta
        assert delta is not None
        new, length = delta.dense(0).detach(), float(old.norm())
        assert float(new.norm()) <= limit * (1 + TOLERANCE)
        if kind != "dylora":  # a smaller rank of a DyLoRA may have the larger norm
            assert float(new.norm()) == pytest.approx(min(length, limit), rel=1e-3)
        cosine = float((new * old).sum() / (new.norm() * length))
        assert cosine == pytest.approx(1, abs=1e-4), path


@pytest.mark.parametrize("factor", [0.8, 1.5])
def test_rescaling_multiplies_every_delta_by_the_factor(factor: float, adapter: AdapterSet) -> None:
    move(adapter)
    before = {path: layer.delta.dense(0).detach().clone() for path, layer in adapter.layers.items() if layer.delta}
    state = adapter.state()
    for layer in adapter.layers.values():
        layer.delta = None
    adapter.load(state)  # the finals rescale loaded adapters that were not trained in this process
    adapter.rescale(factor)
    for path, old in before.items():
        delta = adapter.layers[path].delta
        assert delta is not None
        assert torch.allclose(delta.dense(0), factor * old, atol=TOLERANCE, rtol=1e-3), path


def test_the_seed_alone_decides_how_an_adapter_starts(
    kind: str, adapter: AdapterSet, tiny_model: StableDiffusion
) -> None:
    first, global_state = adapter.state(0), torch.random.get_rng_state()
    move(adapter, size=1.0)
    adapter.start(0, KINDS[kind], torch.Generator().manual_seed(1))
    other = adapter.state(0)
    adapter.start(0, KINDS[kind], torch.Generator().manual_seed(0))
    again = adapter.state(0)
    assert all(torch.equal(again[key], tensor) for key, tensor in first.items())
    assert kind == "ia3" or any(not torch.equal(other[key], tensor) for key, tensor in first.items())
    assert torch.equal(torch.random.get_rng_state(), global_state)


def test_one_set_can_train_different_kinds_one_after_another(kind: str, tiny_model: StableDiffusion) -> None:
    """Layers that a kind does not adapt compute the base model, whatever the kind before it left there."""
    alone = attach(tiny_model.modules, KINDS[kind])
    alone.start(0, KINDS[kind], torch.Generator().manual_seed(0))
    move(alone)
    expected = predict(tiny_model)
    alone.detach()
    shared = attach(tiny_model.modules, *KINDS.values())
    shared.start(0, KINDS["locon"], torch.Generator().manual_seed(4))
    move(shared)
    shared.start(0, KINDS[kind], torch.Generator().manual_seed(0))
    move(shared)
    assert torch.allclose(predict(tiny_model), expected, atol=1e-5)
    shared.detach()


def test_kinds_that_cannot_share_a_set_are_refused(kind: str, tiny_model: StableDiffusion) -> None:
    adapter = attach(tiny_model.modules, KINDS[kind], slots=2)
    try:
        if isinstance(KINDS[kind], DoRA | LoHa | LoKr | IA3):
            with pytest.raises(ConfigError, match="trains one at a time"):
                adapter.start(0, KINDS[kind], torch.Generator().manual_seed(0))
        else:
            adapter.start(0, KINDS[kind], torch.Generator().manual_seed(0))
    finally:
        adapter.detach()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LoRA(conv_dim=0), "conv_dim must be at least 1"),
        (lambda: LoRA(conv_alpha=-1.0), "conv_alpha must be above 0"),
        (lambda: DyLoRA(dim=10, unit=4), "divisible by adapter.unit=4"),
        (lambda: DyLoRA(targets=WITH_CONV), "cannot adapt convolutions"),
        (lambda: LoHa(rank_stabilized=True), "rank_stabilized works with LoRA and DoRA only"),
    ],
)
def test_impossible_settings_are_refused(make: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()  # type: ignore[operator]


def test_settings_beyond_the_guides_limits_get_a_note() -> None:
    assert LoRA(dim=128, alpha=64).notes() == ()
    assert "above 64 and 32" in LoRA(dim=32, conv_dim=128, targets=WITH_CONV).notes()[0]
    assert "LoHa of dim 64" in LoHa(dim=64).notes()[0]
    assert "LoKr of dim 33" in LoKr(dim=33).notes()[0]
    for kind in (LoHa, LoKr):
        (note,) = kind(dim=8, conv_dim=48, targets=WITH_CONV).notes()
        assert f"{kind.__name__} of conv_dim 48: above 32" in note
        assert kind(dim=8, conv_dim=48).notes() == ()  # conv_dim is not used without the target `conv`
    assert "neither rank nor alpha" in IA3().notes()[0]
    assert LoHa(dim=32).notes() == LoKr(dim=32).notes() == DoRA().notes() == DyLoRA().notes() == ()
