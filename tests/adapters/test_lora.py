"""LoRA in K slots: it computes what peft computes, and its slots do not influence each other."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn

from autolora.adapters.adapter_set import AdapterSet, attach
from autolora.adapters.kinds import LoRA
from autolora.adapters.targets import LINEAR, TARGETS
from autolora.errors import ConfigError
from autolora.models.base import Context
from autolora.models.stable_diffusion import StableDiffusion

SPEC = LoRA(dim=4, alpha=2)


def inputs(model: StableDiffusion, batch: int = 4) -> tuple[Tensor, Tensor, Context]:
    generator = torch.Generator().manual_seed(5)
    noisy = torch.randn(batch, *model.latent_shape, generator=generator)
    with torch.no_grad():
        context = model.encode_prompts([f"1girl {i}" for i in range(batch)])
    return noisy, torch.arange(batch) * 100 + 50, context


def randomize(adapter: AdapterSet, slot: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in adapter.parameters(slot):
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.05)


@pytest.fixture
def adapter(tiny_model: StableDiffusion) -> Iterator[AdapterSet]:
    attached = attach(tiny_model.modules, SPEC)
    attached.start(0, SPEC, torch.Generator().manual_seed(0))
    yield attached
    attached.detach()


def test_a_new_lora_does_not_change_the_model_and_can_be_detached(tiny_model: StableDiffusion) -> None:
    call = inputs(tiny_model)
    before, names = tiny_model.predict(*call), [n for n, _ in tiny_model.unet.named_modules()]
    adapter = attach(tiny_model.modules, SPEC)
    adapter.start(0, SPEC, torch.Generator().manual_seed(0))
    assert torch.equal(tiny_model.predict(*call), before)
    adapter.detach()
    assert [n for n, _ in tiny_model.unet.named_modules()] == names


def test_forward_and_gradients_equal_those_of_peft(tiny_model: StableDiffusion, adapter: AdapterSet) -> None:
    randomize(adapter, 0, 1)
    call = inputs(tiny_model)
    ours = tiny_model.predict(*call)
    ours.square().mean().backward()
    adapter.gather_grads()
    gradients = {name: p.grad.clone() for name, p in parameters_by_name(adapter).items() if p.grad is not None}
    state = adapter.state(0)
    adapter.detach()
    twin: nn.Module = copy.deepcopy(tiny_model.unet)
    suffixes = [s for target in LINEAR for s in TARGETS[target]]
    inject_adapter_in_model(LoraConfig(r=4, lora_alpha=2, target_modules=suffixes), twin)
    modules = {n: m for n, m in twin.named_modules() if hasattr(m, "lora_A")}
    assert {f"unet.{name}" for name in modules} == {k.removesuffix(".alpha") for k in state if k.endswith(".alpha")}
    with torch.no_grad():
        for name, module in modules.items():
            module.lora_A["default"].weight.copy_(state[f"unet.{name}.lora_down.weight"])
            module.lora_B["default"].weight.copy_(state[f"unet.{name}.lora_up.weight"])
    theirs = twin(*call[:2], call[2].tokens, return_dict=False)[0]
    assert torch.allclose(ours, theirs, atol=1e-5)
    theirs.square().mean().backward()
    assert len(gradients) == 2 * len(modules)
    for name, module in modules.items():
        for part, layer in (("down", module.lora_A["default"]), ("up", module.lora_B["default"])):
            actual = gradients[f"unet.{name}.{part}"]
            expected = layer.weight.grad.reshape(layer.weight.shape[0], -1)
            expected = expected if part == "down" else expected.T
            assert torch.allclose(actual, expected, atol=1e-6, rtol=1e-3), (name, part)


def parameters_by_name(adapter: AdapterSet) -> dict[str, nn.Parameter]:
    views = iter(adapter.parameters(0))
    return {f"{path}.{part}": next(views) for path in adapter.layers for part in ("down", "up")}


def test_a_new_lora_has_the_distribution_of_peft(adapter: AdapterSet) -> None:
    """peft draws lora_A by kaiming_uniform_(a=sqrt(5)), whose bound is 1 / sqrt(inputs); lora_B is zero."""
    for name, parameter in parameters_by_name(adapter).items():
        if name.endswith("down"):
            bound = parameter.shape[1] ** -0.5
            assert parameter.abs().max() <= bound
            assert float(parameter.detach().std()) == pytest.approx(bound / 3**0.5, rel=0.25)
        else:
            assert parameter.count_nonzero() == 0


def test_lora_weights_are_per_sample_and_linear(tiny_model: StableDiffusion, adapter: AdapterSet) -> None:
    layer = next(iter(adapter.layers.values()))
    randomize(adapter, 0, 1)
    x = torch.randn(1, 4, 4, layer.base.weight.shape[1], generator=torch.Generator().manual_seed(0))
    x = x[0].repeat(3, 1, 1) if isinstance(layer.base, nn.Linear) else x.permute(0, 3, 1, 2).repeat(3, 1, 1, 1)
    with torch.no_grad():
        x = x[:1].repeat(3, *([1] * (x.dim() - 1)))
        with adapter.weighted(torch.tensor([0.0, 0.5, 1.0])):
            y = layer(x)
        base, full = layer.base(x), layer(x)
    assert torch.allclose(y[0], base[0])
    assert torch.allclose(y[1] - base[1], (y[2] - base[2]) / 2, atol=1e-6)
    assert not torch.allclose(y[2], base[2])
    assert torch.allclose(y[2], full[2], atol=1e-6)


def test_two_slots_train_as_two_separate_loras(tiny_model: StableDiffusion) -> None:
    """Each segment of a batch sees its own slot only, forward and backward; the smaller rank is padded with zeros."""
    specs = (LoRA(dim=4, alpha=2), LoRA(dim=2, alpha=8))
    noisy, steps, context = inputs(tiny_model)
    packed = attach(tiny_model.modules, specs[0], slots=2, max_dim=4)
    for slot, spec in enumerate(specs):
        packed.start(slot, spec, torch.Generator().manual_seed(slot))
        randomize(packed, slot, slot)
    together = tiny_model.predict(noisy, steps, context)
    (together[:2].square().mean() + together[2:].square().mean()).backward()
    packed.gather_grads()
    gradients = [[p.grad.clone() for p in packed.parameters(slot)] for slot in (0, 1)]
    packed.detach()
    for slot, spec in enumerate(specs):
        part = slice(2 * slot, 2 * slot + 2)
        single = attach(tiny_model.modules, spec)
        single.start(0, spec, torch.Generator().manual_seed(slot))
        randomize(single, 0, slot)
        alone = tiny_model.predict(noisy[part], steps[part], context[part])
        alone.square().mean().backward()
        single.gather_grads()
        assert torch.allclose(together[part], alone, atol=1e-5)
        for gradient, parameter in zip(gradients[slot], single.parameters(0), strict=True):
            assert torch.allclose(gradient, parameter.grad, rtol=1e-4, atol=1e-7)
        single.detach()


def test_a_batch_of_one_slot_of_two_predicts_as_a_single_adapter(tiny_model: StableDiffusion) -> None:
    call = inputs(tiny_model)
    pair = attach(tiny_model.modules, SPEC, slots=2)
    for slot in (0, 1):
        pair.start(slot, SPEC, torch.Generator().manual_seed(slot))
        randomize(pair, slot, slot)
    state = pair.state(1)
    with torch.no_grad(), pair.only(1), pair.weighted(torch.tensor([1.0, 0.5, 1.0, 0.0])):
        assert pair.slots == 1
        predicted = tiny_model.predict(*call)
    assert pair.slots == 2
    pair.detach()
    alone = attach(tiny_model.modules, SPEC)
    alone.load(state)
    with torch.no_grad(), alone.weighted(torch.tensor([1.0, 0.5, 1.0, 0.0])):
        assert torch.allclose(predicted, tiny_model.predict(*call), atol=1e-6)
    alone.detach()


@pytest.mark.parametrize("slots", [(0, 2), (2, 0), (1, 2), (2, 1)])
def test_a_batch_of_two_slots_of_three_trains_only_these(tiny_model: StableDiffusion, slots: tuple[int, int]) -> None:
    """The slots may be adjacent or not, in any order."""
    noisy, steps, context = inputs(tiny_model)
    three = attach(tiny_model.modules, SPEC, slots=3)
    for slot in range(3):
        three.start(slot, SPEC, torch.Generator().manual_seed(slot))
        randomize(three, slot, slot)
    with three.only(*slots):
        together = tiny_model.predict(noisy, steps, context)
        together.square().mean().backward()
    three.gather_grads()
    gradients = [[p.grad.clone() for p in three.parameters(slot)] for slot in range(3)]
    three.clear_grads()
    for place, slot in enumerate(slots):
        part = slice(2 * place, 2 * place + 2)
        with three.only(slot):
            alone = tiny_model.predict(noisy[part], steps[part], context[part])
            (alone.square().mean() / 2).backward()
        assert torch.allclose(together[part], alone, atol=1e-5)
    three.gather_grads()
    for slot, expected in enumerate(gradients):
        for gradient, p in zip(expected, three.parameters(slot), strict=True):
            assert torch.allclose(gradient, p.grad, rtol=1e-4, atol=1e-7) and bool(gradient.any()) == (slot in slots)
    three.detach()


def test_state_round_trips(tiny_model: StableDiffusion, adapter: AdapterSet) -> None:
    randomize(adapter, 0, 3)
    call, state = inputs(tiny_model), adapter.state(0)
    expected = tiny_model.predict(*call)
    randomize(adapter, 0, 4)
    assert not torch.allclose(tiny_model.predict(*call), expected, atol=1e-4)
    adapter.load(state)
    assert torch.equal(tiny_model.predict(*call), expected)
    assert all(torch.equal(value, state[key]) for key, value in adapter.state(0).items())


def test_an_adapter_of_alpha_zero_predicts_as_the_base_model(tiny_model: StableDiffusion, adapter: AdapterSet) -> None:
    randomize(adapter, 0, 1)
    state = adapter.state()
    before = tiny_model.predict(*inputs(tiny_model))
    adapter.load({key: torch.zeros(()) if key.endswith("alpha") else value for key, value in state.items()})
    after = tiny_model.predict(*inputs(tiny_model))
    with adapter.disabled():
        base = tiny_model.predict(*inputs(tiny_model))
    assert torch.equal(after, base) and not torch.allclose(before, base)


def test_a_state_of_another_model_is_refused(adapter: AdapterSet) -> None:
    with pytest.raises(ConfigError, match="does not fit this model"):
        adapter.load(
            {"unet.nowhere.lora_down.weight": torch.zeros(4, 8), "unet.nowhere.lora_up.weight": torch.zeros(8, 4)}
        )


def test_an_adapter_of_layers_that_are_not_wrapped_is_refused(adapter: AdapterSet) -> None:
    with pytest.raises(ConfigError, match=r"changes text_encoder\..*not built for"):
        adapter.start(0, LoRA(dim=4, text_encoder=True), torch.Generator())


def test_max_norm_limits_every_layer(adapter: AdapterSet) -> None:
    randomize(adapter, 0, 1)
    before = {k: v.clone() for k, v in adapter.state(0).items()}
    stats = adapter.apply_max_norm(0, 0.02)
    after = adapter.state(0)
    norms, scaled = [], 0
    for path in adapter.layers:
        old, new = (
            (
                s[f"{path}.lora_up.weight"].flatten(1)
                @ s[f"{path}.lora_down.weight"].flatten(1)
                * SPEC.alpha
                / SPEC.dim
            ).norm()
            for s in (before, after)
        )
        assert float(new) == pytest.approx(min(float(old), 0.02), rel=1e-4)
        norms.append(float(new))
        scaled += float(old) > 0.02
    assert stats.scaled == scaled > 0
    assert stats.max == pytest.approx(max(norms), rel=1e-4)


@pytest.mark.parametrize("wrong", [{"dim": 0}, {"alpha": 0}, {"targets": ("everything",)}, {"targets": ()}])
def test_impossible_adapters_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        LoRA(**wrong)  # type: ignore[arg-type]
