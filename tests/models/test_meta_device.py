"""Work on tensors without content counts what the same work on real ones takes."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from autolora.models.meta_device import META, AutocastEmulator, MemoryCounter, backward, on_meta_device
from autolora.models.stable_diffusion import StableDiffusion


def test_a_hollow_copy_has_the_same_shapes_and_shares_nothing(tiny_model: StableDiffusion) -> None:
    before = {name: tensor.clone() for name, tensor in tiny_model.unet.state_dict().items()}
    twin = on_meta_device(tiny_model)
    assert {tensor.device for tensor in twin.unet.parameters()} == {META} == {twin.vae.device, twin._signal.device}
    for name, tensor in twin.unet.state_dict().items():
        own = before[name]
        assert (tensor.shape, tensor.dtype, tensor.stride()) == (own.shape, own.dtype, own.stride())
    assert all(torch.equal(tiny_model.unet.state_dict()[name], tensor) for name, tensor in before.items())
    assert twin.text_encoder is twin.modules["text_encoder"] is not tiny_model.text_encoder


def test_the_meter_knows_what_is_alive_and_the_most_there_was() -> None:
    meter, weight = MemoryCounter(), torch.empty(256, device=META)
    meter.count([weight, weight[:10]])
    assert meter.now == 1024
    with meter:
        product = weight * weight
        view = product[3:].view(11, 23)
        assert meter.now == 2048
        del product, view
        assert (meter.now, meter.peak) == (1024, 2048)
        small = torch.empty(1, device=META)
        assert meter.now == 1024 + 512 and small.numel() == 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_dtypes_are_those_of_autocast_on_a_gpu(dtype: torch.dtype) -> None:
    x, weight = torch.empty(2, 4, 8, 8, device=META, dtype=dtype), torch.ones(4, device=META, dtype=dtype)
    whole = torch.empty(2, 3, 8, device=META)
    with AutocastEmulator(dtype):
        for found in (F.group_norm(x, 2, weight, weight), F.layer_norm(x, (8,)), F.interpolate(x, scale_factor=2.0)):
            assert found.dtype == torch.float32
        for found in (F.linear(whole, torch.empty(5, 8, device=META)), whole @ whole.mT, torch.bmm(whole, whole.mT)):
            assert found.dtype == dtype
        assert F.silu(x).dtype == F.gelu(x).dtype == dtype


def test_attention_keeps_no_matrix_of_all_pairs() -> None:
    query = torch.empty(1, 2, 1024, 8, device=META, requires_grad=True)
    with AutocastEmulator(torch.float32), MemoryCounter() as meter:
        out = F.scaled_dot_product_attention(query, query, query)
        assert meter.peak < 2 * query.nbytes < 1024 * 1024 * 2 * 4
        backward(out.sum())
    assert query.grad is not None and query.grad.shape == query.shape


def test_layers_computed_again_on_the_way_back_are_counted_there() -> None:
    """As real training does: with checkpointing, little is kept, and more is alive for a while on the way back."""
    layers = nn.Sequential(*(nn.Sequential(nn.Linear(64, 64), nn.LayerNorm(64), nn.GELU()) for _ in range(8)))
    layers = on_meta_device(layers.bfloat16())

    def kept_and_most(checkpointed: bool) -> tuple[int, int]:
        meter, x = MemoryCounter(), torch.empty(512, 64, device=META, requires_grad=True)
        meter.count([*layers.parameters(), x])
        with AutocastEmulator(torch.bfloat16), meter:
            base = meter.now
            for layer in layers:
                x = checkpoint(layer, x, use_reentrant=False) if checkpointed else layer(x)
            kept = meter.now - base
            backward(x.float().square().mean())
            return kept, meter.peak - base

    (kept, most), (few, fewest) = kept_and_most(False), kept_and_most(True)
    assert few < kept / 2 and few < fewest < most
