"""Optimizers are the libraries' own; schedules are the curves they say they are."""

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
from autolora.optim.optimizers import (
    CAME,
    Adafactor,
    AdamW,
    AdamW8bit,
    Lion,
    Optimizer,
    OptimizerSpec,
    Prodigy,
    ScheduleFree,
    optional,
)
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


def test_cycles_grow_by_their_multiplier() -> None:
    """L -> round((L - w) * m) + w: from cycles of 10 with 2 of warm-up and m = 2 comes one of 18."""
    schedule = AnnealedCosine(cycles=2, warmup=0.2, gamma=1.0, multiplier=2.0)
    peaks = [s for s in range(28) if schedule.factor(s, 28) == 1.0]
    assert peaks[0] == 1 and min(p for p in peaks if p > 9) == 11
    assert schedule.factor(27, 28) < 0.05


@given(
    st.builds(AnnealedCosine, st.integers(1, 5), st.floats(0, 0.4), st.floats(0.3, 1), st.floats(0.7, 2)),
    st.integers(1000, 3000),
)
def test_as_many_cycles_as_asked_for_end_with_the_run(schedule: AnnealedCosine, total: int) -> None:
    """However the lengths round: none is begun that has no room left, and the last one falls to the floor."""
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
def test_a_weight_leaves_zero_at_its_rate(kind: type[OptimizerSpec]) -> None:
    """As one half of every LoRA must: an Adafactor that scales its rate by the weight's size hardly would."""
    parameter = torch.nn.Parameter(torch.zeros(4, 4))
    optimizer = kind(lr=1e-4, weight_decay=0.0).build([parameter])
    for _ in range(50):
        optimizer.zero_grad()
        (parameter - 1).square().sum().backward()
        optimizer.step()
    assert parameter.mean().item() > 0.3 * 50e-4  # CAME goes further, as these gradients are steady


def test_prodigy_is_set_up_as_documented() -> None:
    group = Prodigy(d_coef=0.7).build([torch.nn.Parameter(torch.ones(1))]).param_groups[0]
    assert (group["lr"], group["d_coef"], group["betas"]) == (1.0, 0.7, (0.9, 0.99))
    assert group["safeguard_warmup"] and group["use_bias_correction"]


def test_prodigy_steps_as_prodigyopt_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a parameter has no gradient yet, at a rate of 0, and going on from a state that prodigyopt saved."""
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

    ours, theirs = BatchedProdigy, prodigyopt.Prodigy
    expected = train(theirs)
    assert expected[-1] > 1e-2  # the estimate has grown
    for kinds in ((ours,), (theirs, ours)):
        assert all(torch.allclose(a, b, rtol=1e-5) for a, b in zip(train(*kinds), expected, strict=True))


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"Prodigy finds its own rate: optimizer\.lr must be 1, got 0\.01"):
        Prodigy(lr=0.01)
    for wrong in (
        lambda: AdamW(lr=0),
        lambda: Prodigy(d_coef=0),
        lambda: CosineRestarts(0),
        lambda: AnnealedCosine(gamma=2),
        lambda: Linear(warmup=1),
        lambda: Cosine(warmup=-0.1),
    ):
        with pytest.raises(ConfigError):
            wrong()


@pytest.mark.parametrize("kind", [AdamW(), Lion(), Adafactor(), CAME(), ScheduleFree(), AdamW8bit()])
def test_the_text_encoder_has_a_rate_of_its_own(kind: OptimizerSpec) -> None:
    assert kind.for_text_encoder() == kind
    apart = replace(kind, text_encoder_lr=1e-5)
    assert apart.for_text_encoder().lr == 1e-5 and apart.lr == 1e-4
    assert Prodigy(text_encoder_d_coef=0.5).for_text_encoder().d_coef == 0.5
    with pytest.raises(ConfigError, match="text_encoder_lr must be above 0"):
        replace(kind, text_encoder_lr=0.0)


def test_a_library_that_is_missing_is_named() -> None:
    with pytest.raises(ConfigError, match=r"Thing needs no_such_library: pip install 'autolora\[things\]'"):
        optional("no_such_library", "things", "Thing")


def test_eight_bits_without_a_gpu_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", types.ModuleType("bitsandbytes"))
    with pytest.raises(ConfigError, match=r"NVIDIA GPUs only, the model is on the CPU: use optimizer=adamw"):
        AdamW8bit().check(torch.device("cpu"))


def test_eight_bits_without_their_library_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)  # as if it were not there
    with pytest.raises(ConfigError, match=r"AdamW8bit needs bitsandbytes: pip install 'autolora\[8bit\]'"):
        AdamW8bit().check(torch.device("cpu"))
