"""What all families share: large latents are decoded in tiles if memory is short; images are never encoded in tiles."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from autolora.models.base_denoiser import TILE_PX
from autolora.models.load import load_model
from autolora.models.settings import ModelSettings

pytestmark = pytest.mark.slow  # trains, renders or loads many models


@pytest.fixture(scope="module")
def model() -> Any:
    return load_model(ModelSettings(path="paperdoll"))


def latents(model: Any, pixels: int) -> torch.Tensor:
    """Encode an image that changes slowly, as images do."""
    ramp = torch.linspace(-1, 1, pixels)
    return model.encode_images(
        torch.stack([ramp.expand(pixels, -1), ramp[:, None].expand(-1, pixels), ramp.expand(pixels, -1)])[None]
    )


def decode(model: Any, pixels: int, tiles: bool) -> torch.Tensor:
    model.tiled_decoding = tiles
    return model.decode_latents(latents(model, pixels))


@torch.no_grad()
def test_tiles_give_the_same_image_except_at_their_edges(model: Any) -> None:
    tile_sizes: list[int] = []
    handle = model.vae.decoder.register_forward_hook(lambda _, inputs, output: tile_sizes.append(output.shape[-1]))
    small = [decode(model, TILE_PX // 2, tiles) for tiles in (False, True)]
    assert torch.equal(*small)
    tile_sizes.clear()
    plain, tiled = (decode(model, TILE_PX + 128, tiles) for tiles in (False, True))
    handle.remove()
    assert tile_sizes[0] == TILE_PX + 128 and max(tile_sizes[1:]) == TILE_PX and len(tile_sizes) == 5
    assert plain.shape == tiled.shape
    assert (plain - tiled).abs().mean() < 0.2 * plain.std()  # group norms see a tile instead of the image


@torch.no_grad()
def test_images_are_encoded_without_tiles(model: Any) -> None:
    decode(model, TILE_PX + 128, tiles=True)
    before = latents(model, TILE_PX + 128)
    model.tiled_decoding = False
    assert torch.equal(latents(model, TILE_PX + 128), before)
