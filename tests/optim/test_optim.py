"""Optimizers are those of their libraries, and schedules follow their formulas."""

from __future__ import annotations

import sys
import types
from dataclasses import replace
from itertools import pairwise

import prodigyopt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from autolora.errors import ConfigError
from autolora.optim import prodigy
from autolora.optim.base import Optimizer, OptimizerSpec, optional
from autolora.optim.optimizers import CAME, Adafactor, AdamW, AdamW8bit, Lion, Prodigy, ScheduleFree
from autolora.optim.prodigy import BatchedProdigy
from autolora.optim.schedules import AnnealedCosine, Constant, Cosine, CosineRestarts, Linear, Schedule


@given(
    st.sampled_from(
        [
            *(Constant(), Constant(0.1), Linear(), Linear(0.3), Cosine(), Cosine(0.99)),
            *(CosineRestarts(1), CosineRestarts(4), AnnealedCosine(3, 0.2, 0.5, 1.5)),
        ]
    ),
    st.integers(1, 500),
    st.data(),
)
def test_factors_lie_between_zero_and_one(schedule: Schedule, total: int, data: st.DataObject) -> None:
    assert 0 <= schedule.factor(data.draw(st.integers(0, total - 1)), total) <= 1


@pytest.mark.parametrize(
    ("schedule", "curve"),
    [
        (Constant(0.5), [0.25, 0.5, 0.75, 1, 1, 1, 1, 1]),
        (Linear(), [1, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125]),
        (Linear(0.5), [0.25, 0.5, 0.75, 1, 1, 0.75, 0.5, 0.25]),
        (Cosine(0.5), [0.25, 0.5, 0.75, 1, 1, 0.8536, 0.5, 0.1464]),
    ],
)
def test_a_schedule_warms_up_and_falls(schedule: Schedule, curve: list[float]) -> None:
    assert [schedule.factor(step, 8) for step in range(8)] == pytest.approx(curve, abs=1e-4)


def test_cosine_restarts_curve() -> None:
    factors = [CosineRestarts(2).factor(step, 8) for step in range(8)]
    assert factors == pytest.approx([1, 0.8536, 0.5, 0.1464] * 2, abs=1e-4)


def test_annealed_cosine_curve() -> None:
    schedule = AnnealedCosine(cycles=2, warmup=0.25, gamma=0.5)
    factors = [schedule.factor(step, 16) for step in range(16)]
    peak = [0.5, 1.0, 1.0, 0.933, 0.75, 0.5, 0.25, 0.067]
    assert factors == pytest.approx([*peak, *(p / 2 for p in peak)], abs=1e-3)


def test_the_multiplier_lengthens_each_cycle() -> None:
    """A cycle of L steps with w of warm-up is followed by round((L - w) * m) + w: 10 with 2 and m = 2 by 18."""
    schedule = AnnealedCosine(cycles=2, warmup=0.2, gamma=1.0, multiplier=2.0)
    peaks = [s for s in range(28) if schedule.factor(s, 28) == 1.0]
    assert peaks[0] == 1 and min(p for p in peaks if p > 9) == 11
    assert schedule.factor(27, 28) < 0.05


@given(
    st.builds(AnnealedCosine, st.integers(1, 5), st.floats(0, 0.4), st.floats(0.3, 1), st.floats(0.7, 2)),
    st.integers(1000, 3000),
)
def test_the_number_of_cycles_fits_into_the_run(schedule: AnnealedCosine, total: int) -> None:
    """Whatever the rounding of lengths: the last cycle is complete and falls to the floor."""
    factors = [schedule.factor(step, total) for step in range(total)]
    falls = [a > b for a, b in pairwise(factors)]
    assert sum(not before and now for before, now in pairwise([False, *falls])) == schedule.cycles
    assert all(falls[-10:]) and factors[-1] < 0.02


@pytest.mark.parametrize(
    "spec",
    [
        *(AdamW(lr=1e-2), Prodigy(), Lion(lr=1e-2), Adafactor(lr=1e-1), CAME(lr=1e-2), ScheduleFree(lr=1e-2)),
    ],
)
def test_optimizers_minimise(spec: Optimizer) -> None:
    parameter = torch.nn.Parameter(torch.ones(4))
    optimizer = spec.build([parameter])
    if isinstance(spec, ScheduleFree):
        optimizer.train()  # type: ignore[attr-defined]
    for _ in range(400):
        optimizer.zero_grad()
        parameter.square().sum().backward()
        optimizer.step()
    assert parameter.abs().max() < 0.1


@pytest.mark.parametrize("kind", [AdamW, Lion, Adafactor, CAME, ScheduleFree])
def test_a_weight_of_zero_is_trained_at_the_full_rate(kind: type[OptimizerSpec]) -> None:
    """Half of every new LoRA is zero; an Adafactor that scales its rate by the weight's size would hardly train it."""
    parameter = torch.nn.Parameter(torch.zeros(4, 4))
    optimizer = kind(lr=1e-4, weight_decay=0.0).build([parameter])
    for _ in range(50):
        optimizer.zero_grad()
        (parameter - 1).square().sum().backward()
        optimizer.step()
    assert parameter.mean().item() > 0.3 * 50e-4  # CAME goes further, as these gradients are steady


def test_prodigy_has_the_documented_settings() -> None:
    group = Prodigy(d_coef=0.7).build([torch.nn.Parameter(torch.ones(1))]).param_groups[0]
    assert (group["lr"], group["d_coef"], group["betas"]) == (1.0, 0.7, (0.9, 0.99))
    assert group["safeguard_warmup"] and group["use_bias_correction"]


def test_prodigy_makes_the_same_steps_as_prodigyopt(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also for a parameter without a gradient, at a rate of 0, and from a state that prodigyopt saved."""
    source = torch.Generator().manual_seed(0)
    targets = [torch.randn(shape, generator=source) for shape in ((3, 4), (2, 5), (6,))]

    def train(*kinds: type[prodigyopt.Prodigy]) -> list[torch.Tensor]:
        params = [torch.nn.Parameter(0.1 * i * target) for i, target in enumerate(targets)]
        optimizer = None
        for step in range(60):
            if step % (60 // len(kinds)) == 0:
                monkeypatch.setattr(prodigy, "BatchedProdigy", kinds[step * len(kinds) // 60])
                before, optimizer = optimizer, Prodigy(d0=1e-3).build(params)
                if before:
                    optimizer.load_state_dict(before.state_dict())
            assert optimizer is not None
            optimizer.param_groups[0]["lr"] = 0.0 if step == 5 else 0.5
            for i, (param, target) in enumerate(zip(params, targets, strict=True)):
                param.grad = None if i == 2 and step < 3 else (i + 1) * (param - target).detach()
            optimizer.step()
        return [*params, torch.tensor(optimizer.param_groups[0]["d"])]

    expected = train(prodigyopt.Prodigy)
    assert expected[-1] > 1e-2  # the estimate d has grown
    for kinds in ((BatchedProdigy,), (prodigyopt.Prodigy, BatchedProdigy)):
        assert all(torch.allclose(a, b, rtol=1e-5) for a, b in zip(train(*kinds), expected, strict=True))


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"Prodigy finds its own rate: optimizer\.lr must be 1, got 0\.01"):
        Prodigy(lr=0.01)
    for make in (
        lambda: AdamW(lr=0),
        lambda: Prodigy(d_coef=0),
        lambda: CosineRestarts(0),
        lambda: AnnealedCosine(gamma=2),
        lambda: Linear(warmup=1),
        lambda: Cosine(warmup=-0.1),
    ):
        with pytest.raises(ConfigError):
            make()


@pytest.mark.parametrize("kind", [AdamW(), Lion(), Adafactor(), CAME(), ScheduleFree(), AdamW8bit()])
def test_the_text_encoder_can_have_its_own_rate(kind: OptimizerSpec) -> None:
    assert kind.for_text_encoder() == kind
    apart = replace(kind, text_encoder_lr=1e-5)
    assert apart.for_text_encoder().lr == 1e-5 and apart.lr == 1e-4
    assert Prodigy(text_encoder_d_coef=0.5).for_text_encoder().d_coef == 0.5
    with pytest.raises(ConfigError, match="text_encoder_lr must be above 0"):
        replace(kind, text_encoder_lr=0.0)


def test_a_missing_library_is_named() -> None:
    with pytest.raises(ConfigError, match=r"Thing needs no_such_library: pip install 'autolora\[things\]'"):
        optional("no_such_library", "things", "Thing")


def test_the_8_bit_optimizer_without_a_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", types.ModuleType("bitsandbytes"))
    with pytest.raises(ConfigError, match=r"NVIDIA GPUs only, the model is on the CPU: use optimizer=adamw"):
        AdamW8bit().check(torch.device("cpu"))


def test_the_8_bit_optimizer_without_its_library_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)  # as if it were not installed
    with pytest.raises(ConfigError, match=r"AdamW8bit needs bitsandbytes: pip install 'autolora\[8bit\]'"):
        AdamW8bit().check(torch.device("cpu"))
