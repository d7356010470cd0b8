"""Prompts longer than the text encoder's window: they fill several windows and do not depend on other prompts."""

from __future__ import annotations

import torch

from autolora.models.base import MAX_CHUNKS, stack_contexts
from autolora.models.prompts import prompt_windows
from autolora.models.stable_diffusion import StableDiffusion

WINDOW = 75  # tokens; the tiny tokenizer has one per byte
LONG = ", ".join(f"tag{i:02}" for i in range(20))  # 5 letters and a comma each: about two windows


def test_a_long_prompt_is_encoded_in_windows_cut_after_a_comma(tiny_model: StableDiffusion) -> None:
    windows = prompt_windows(tiny_model.tokenizer, LONG, WINDOW)
    special = (windows[0][0], tiny_model.tokenizer.pad_token_id)
    letters = [len([token for token in window if token not in special]) for window in windows]
    assert len(windows) == 2 and all(len(window) == tiny_model.max_tokens for window in windows)
    assert letters[0] % 6 == 0 and sum(letters) == len(LONG.replace(" ", ""))
    halves = LONG[: LONG.index("tag12")], LONG[LONG.index("tag12") :]
    expected = torch.cat([tiny_model.encode_prompts([half]).tokens[0] for half in halves])
    assert torch.equal(tiny_model.encode_prompts([LONG]).tokens[0], expected)


def test_a_prompt_without_commas_is_cut_at_the_window_and_after_the_last_one(tiny_model: StableDiffusion) -> None:
    assert tiny_model.encode_prompts(["a" * 76]).tokens.shape[1] == 2 * tiny_model.max_tokens
    longest = tiny_model.encode_prompts(["a" * (MAX_CHUNKS * WINDOW + 1)]).tokens
    assert longest.shape[1] == MAX_CHUNKS * tiny_model.max_tokens
    assert torch.equal(longest, tiny_model.encode_prompts(["a" * 1000]).tokens)


def test_a_prompt_does_not_depend_on_the_prompts_that_it_is_stacked_with(tiny_model: StableDiffusion) -> None:
    prompts = ["1girl", LONG, "x" * 200]
    alone = [tiny_model.encode_prompts([prompt]) for prompt in prompts]
    assert [context.tokens.shape[1] // tiny_model.max_tokens for context in alone] == [1, 2, 3]
    stacked = stack_contexts(alone)
    noisy = torch.randn(3, *tiny_model.latent_shape, generator=torch.Generator().manual_seed(0))
    steps = torch.tensor([100, 500, 900])
    together = tiny_model.predict(noisy, steps, stacked)
    for i, context in enumerate(alone):
        expected = tiny_model.predict(noisy[i : i + 1], steps[i : i + 1], context)
        assert torch.allclose(expected[0], together[i], atol=1e-5)
    assert not torch.allclose(alone[1].tokens[0, : WINDOW + 2], alone[0].tokens[0])
