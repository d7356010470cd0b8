"""The losses and the weights of timesteps equal their formulas."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from autolora.errors import ConfigError
from autolora.models.stable_diffusion import StableDiffusion
from autolora.train.loss import PLAIN, diffusion_loss, timestep_weights
from autolora.train.run import TrainSettings


@given(st.floats(-5, 5), st.floats(0.01, 2))
def test_huber_is_squared_for_small_errors_and_linear_for_large_ones(error: float, delta: float) -> None:
    predicted, target = torch.full((1, 4, 2, 2), error), torch.zeros(1, 4, 2, 2)
    settings = replace(PLAIN, loss_type="huber", huber_delta=delta)
    loss = float(diffusion_loss(None, predicted, target, torch.tensor([0]), settings))  # type: ignore[arg-type]
    assert loss <= min(error**2, 2 * delta * abs(error)) + 1e-5
    assert loss == pytest.approx(2 * delta * ((error**2 + delta**2) ** 0.5 - delta), abs=1e-5)


@pytest.mark.parametrize(
    ("settings", "prediction", "weight"),
    [
        (PLAIN, "epsilon", lambda snr: torch.ones_like(snr)),
        (TrainSettings(), "epsilon", lambda snr: snr.clamp(max=5) / snr),
        (TrainSettings(), "v_prediction", lambda snr: snr.clamp(max=5) / (snr + 1)),
        (replace(PLAIN, debiased_estimation_loss=True), "epsilon", lambda snr: 1 / snr.clamp(max=1000).sqrt()),
        (replace(PLAIN, debiased_estimation_loss=True), "v_prediction", lambda snr: 1 / (snr.clamp(max=1000) + 1)),
    ],
)
def test_weights_of_timesteps(
    tiny_model: StableDiffusion, monkeypatch: pytest.MonkeyPatch, settings: TrainSettings, prediction: str, weight: Any
) -> None:
    monkeypatch.setattr(tiny_model, "prediction_type", prediction)
    steps = torch.tensor([0, 100, 500, 900])
    expected = weight(tiny_model.snr(steps))
    assert torch.allclose(timestep_weights(tiny_model, steps, settings), expected, rtol=1e-5)
    ones, zeros = torch.ones(4, 4, 2, 2), torch.zeros(4, 4, 2, 2)
    assert torch.allclose(diffusion_loss(tiny_model, ones, zeros, steps, settings), expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"loss_type": "l3"}, "train.loss_type must be one of l2, huber, got l3"),
        ({"huber_delta": 0}, "train.huber_delta must be above 0"),
        ({"noise_offset": 2}, "train.noise_offset must be from 0"),
        ({"debiased_estimation_loss": True}, "set train.min_snr_gamma=null"),
    ],
)
def test_impossible_settings_are_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TrainSettings(**values)  # type: ignore[arg-type]
