"""What every family does alike: large pictures are decoded tile by tile where memory is short, and never encoded so."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from autolora.models.base_denoiser import TILE_PX
from autolora.models.load import load_model
from autolora.models.settings import ModelSettings


@pytest.fixture(scope="module")
def model() -> Any:
    return load_model(ModelSettings(path="paperdoll"))


def latents(model: Any, pixels: int) -> torch.Tensor:
    """Of a picture that changes slowly, as pictures do."""
    ramp = torch.linspace(-1, 1, pixels)
    return model.encode_images(
        torch.stack([ramp.expand(pixels, -1), ramp[:, None].expand(-1, pixels), ramp.expand(pixels, -1)])[None]
    )


def decoded(model: Any, pixels: int, tiles: bool) -> torch.Tensor:
    model.tiled_decoding = tiles
    return model.decode_latents(latents(model, pixels))


@torch.no_grad()
def test_tiles_give_the_same_picture_up_to_their_edges(model: Any) -> None:
    pieces: list[int] = []
    handle = model.vae.decoder.register_forward_hook(lambda module, given, made: pieces.append(made.shape[-1]))
    small = [decoded(model, TILE_PX // 2, tiles) for tiles in (False, True)]
    assert torch.equal(*small)
    pieces.clear()
    whole, tiled = (decoded(model, TILE_PX + 128, tiles) for tiles in (False, True))
    handle.remove()
    assert pieces[0] == TILE_PX + 128 and max(pieces[1:]) == TILE_PX and len(pieces) == 5
    assert whole.shape == tiled.shape
    assert (whole - tiled).abs().mean() < 0.2 * whole.std()  # norms are of a tile, not of the picture


@torch.no_grad()
def test_training_pictures_are_encoded_in_one_piece(model: Any) -> None:
    decoded(model, TILE_PX + 128, tiles=True)
    before = latents(model, TILE_PX + 128)
    model.tiled_decoding = False
    assert torch.equal(latents(model, TILE_PX + 128), before)
