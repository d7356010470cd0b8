"""LyCORIS' own package loads an exported file and changes every layer as the adapter does."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lycoris.modules import get_module, make_module
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from autolora.adapters.formats import kohya_name, layers_of
from autolora.models.stable_diffusion import StableDiffusion
from tests.export.test_kinds import KINDS, export, trained

pytestmark = pytest.mark.slow  # trains, renders or loads many models

UNREAD = pytest.mark.xfail(
    raises=TypeError,
    strict=True,
    reason="LyCORIS 4.1 reads two tensors of an IA3 layer, but its make_module_from_state_dict takes one",
)
LOADED = [pytest.param(kind, marks=[UNREAD] if kind == "ia3" else []) for kind in KINDS]


def change_of(layer: nn.Linear | nn.Conv2d, x: Tensor, weight: Tensor) -> Tensor:
    """What a weight change adds to the output of a layer."""
    if isinstance(layer, nn.Linear):
        return F.linear(x, weight)
    return F.conv2d(x, weight, None, layer.stride, layer.padding)  # type: ignore[arg-type]


@pytest.mark.parametrize("model", ["tiny_model", "tiny_xl"])
@pytest.mark.parametrize("kind", LOADED)
@torch.no_grad()
def test_lycoris_changes_every_layer_the_same(
    model: str, kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Outputs are compared, because LyCORIS applies alpha / dim twice when it merges LoHa or LoKr into a weight."""
    base: StableDiffusion = request.getfixturevalue(model)
    state, changes = trained(base, kind)
    tensors = load_file(export(base, kind, state, tmp_path))
    layers = layers_of(base.modules)
    names = {kohya_name(path, base.architecture): path for path in changes}
    assert {key.partition(".")[0] for key in tensors} == names.keys()
    generator = torch.Generator().manual_seed(0)
    for name, path in names.items():
        layer = layers[path]
        x = torch.randn(2, layer.weight.shape[1], *(6,) * (layer.weight.dim() - 2), generator=generator)
        before = layer(x)
        loaded = make_module(*get_module(tensors, name), name, layer).eval()
        loaded.apply_to()
        try:
            added = layer(x) - before
        finally:
            loaded.restore()
            del layer.forward  # LyCORIS leaves it on the shared layer, where it hides the method of the class
        expected = change_of(layer, x, changes[path])
        assert torch.allclose(added, expected, atol=1e-5, rtol=1e-4), path
        assert expected.abs().max() > 1e-3
        assert torch.equal(layer(x), before)
