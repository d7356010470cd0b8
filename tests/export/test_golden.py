"""Files for full-size SD 1.x, SD 2.x and SDXL have the keys and shapes of kohya's and LyCORIS' rules (tests/golden)."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from peft.tuners.lora.dora import DoraLinearLayer
from torch import Tensor, nn

from autolora.adapters.adapter_set import attach
from autolora.adapters.formats import from_kohya, layer_shapes, to_kohya
from autolora.adapters.kinds import IA3, DoRA, DyLoRA, LoHa, LoKr, LoRA
from tests.golden import derive
from tests.models.test_configs import CONFIGS, KINDS

pytestmark = pytest.mark.slow  # trains, renders or loads many models

CONV = ("attention", "feed_forward", "projections", "conv")
ADAPTERS: dict[str, LoRA | DyLoRA] = {
    "lora": LoRA(dim=derive.DIM, alpha=2),
    "locon": LoRA(dim=derive.DIM, alpha=2, conv_dim=derive.CONV_DIM, conv_alpha=1, targets=CONV),
    "dylora": DyLoRA(dim=derive.DIM, alpha=2, unit=1),
    "dora": DoRA(dim=derive.DIM, alpha=2),
    "loha": LoHa(dim=derive.DIM, alpha=2),
    "lokr": LoKr(dim=derive.DIM, alpha=2),
    "ia3": IA3(),
}


@pytest.fixture(scope="module", params=derive.ARCHITECTURES)
def architecture(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def modules(architecture: str) -> dict[str, nn.Module]:
    """Full-size networks whose weights are views of a single number, so that they take no memory."""
    with torch.device("meta"):
        roots = {part: KINDS[part](config) for part, config in CONFIGS[architecture].items() if part != "vae"}
    for root in roots.values():
        for module in root.modules():
            for name, weight in module.named_parameters(recurse=False):
                setattr(module, name, nn.Parameter(torch.zeros(1).expand(weight.shape), requires_grad=False))
    return roots


@pytest.mark.parametrize("kind", derive.KINDS)
def test_keys_and_shapes(
    kind: str, architecture: str, modules: dict[str, nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DoraLinearLayer, "update_layer", magnitude)
    spec = replace(ADAPTERS[kind], text_encoder=True)
    adapter = attach(modules, spec)
    try:
        adapter.start(0, spec, torch.Generator().manual_seed(0))
        state = adapter.state(0)
    finally:
        adapter.detach()
    tensors = to_kohya(state, architecture)
    lines = [f"{key} {'x'.join(map(str, tensor.shape))}".rstrip() for key, tensor in tensors.items()]
    assert sorted(lines) == derive.read(architecture, kind).splitlines()
    if kind in ("lora", "locon", "dylora"):
        assert from_kohya(tensors, architecture, layer_shapes(modules)).keys() == state.keys()


def magnitude(layer: DoraLinearLayer, *, base_layer: nn.Module, **_: object) -> None:
    """Skip the norms of billions of weights, which this test does not need."""
    weight = base_layer.weight
    assert isinstance(weight, Tensor)
    layer.weight = nn.Parameter(torch.ones(len(weight) if weight.dim() == 2 else (1, len(weight), 1, 1)))


@pytest.mark.parametrize("kind", derive.KINDS)
def test_the_stored_lists_follow_the_rules(kind: str, architecture: str) -> None:
    assert derive.read(architecture, kind) == derive.derive(architecture, kind)


def test_layer_counts_are_those_of_kohyas_files() -> None:
    """SD 1.x: 192 UNet and 72 text encoder modules, SD 2.x 192 and 138, SDXL 722, 72 and 192, as sd-scripts reports."""
    expected = {
        "sd1": {"unet": 192, "te": 72},
        "sd2": {"unet": 192, "te": 138},
        "sdxl": {"unet": 722, "te1": 72, "te2": 192},
    }
    for architecture, counts in expected.items():
        names = [line.split(".")[0] for line in derive.read(architecture, "lora").splitlines() if ".alpha" in line]
        assert {part: sum(name.startswith(f"lora_{part}_") for name in names) for part in counts} == counts
        assert len(names) == sum(counts.values())
