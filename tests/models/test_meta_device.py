"""Memory that is counted on tensors without content equals that of real tensors."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from autolora.models.meta_device import META, AutocastEmulator, MemoryCounter, backward, on_meta_device
from autolora.models.stable_diffusion import StableDiffusion


def test_a_copy_on_the_meta_device_has_the_same_shapes_and_shares_nothing(tiny_model: StableDiffusion) -> None:
    before = {name: tensor.clone() for name, tensor in tiny_model.unet.state_dict().items()}
    copy = on_meta_device(tiny_model)
    assert {tensor.device for tensor in copy.unet.parameters()} == {META} == {copy.vae.device, copy._signal.device}
    for name, tensor in copy.unet.state_dict().items():
        original = before[name]
        assert (tensor.shape, tensor.dtype, tensor.stride()) == (original.shape, original.dtype, original.stride())
    assert all(torch.equal(tiny_model.unet.state_dict()[name], tensor) for name, tensor in before.items())
    assert copy.text_encoder is copy.modules["text_encoder"] is not tiny_model.text_encoder


def test_the_counter_knows_the_living_bytes_and_their_maximum() -> None:
    counter, weight = MemoryCounter(), torch.empty(256, device=META)
    counter.count([weight, weight[:10]])
    assert counter.now == 1024
    with counter:
        product = weight * weight
        view = product[3:].view(11, 23)
        assert counter.now == 2048
        del product, view
        assert (counter.now, counter.peak) == (1024, 2048)
        small = torch.empty(1, device=META)
        assert counter.now == 1024 + 512 and small.numel() == 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_dtypes_are_those_of_autocast_on_a_gpu(dtype: torch.dtype) -> None:
    x, weight = torch.empty(2, 4, 8, 8, device=META, dtype=dtype), torch.ones(4, device=META, dtype=dtype)
    rows = torch.empty(2, 3, 8, device=META)
    with AutocastEmulator(dtype):
        for output in (F.group_norm(x, 2, weight, weight), F.layer_norm(x, (8,)), F.interpolate(x, scale_factor=2.0)):
            assert output.dtype == torch.float32
        for output in (F.linear(rows, torch.empty(5, 8, device=META)), rows @ rows.mT, torch.bmm(rows, rows.mT)):
            assert output.dtype == dtype
        assert F.silu(x).dtype == F.gelu(x).dtype == dtype


def test_attention_stores_no_score_matrix() -> None:
    query = torch.empty(1, 2, 1024, 8, device=META, requires_grad=True)
    with AutocastEmulator(torch.float32), MemoryCounter() as counter:
        out = F.scaled_dot_product_attention(query, query, query)
        assert counter.peak < 2 * query.nbytes < 1024 * 1024 * 2 * 4
        backward(out.sum())
    assert query.grad is not None and query.grad.shape == query.shape


def test_checkpointed_layers_are_counted_in_the_backward_pass() -> None:
    """With checkpointing, little is stored in the forward pass, and more is alive for a while in the backward pass."""
    layers = nn.Sequential(*(nn.Sequential(nn.Linear(64, 64), nn.LayerNorm(64), nn.GELU()) for _ in range(8)))
    layers = on_meta_device(layers.bfloat16())

    def stored_and_peak(checkpointed: bool) -> tuple[int, int]:
        counter, x = MemoryCounter(), torch.empty(512, 64, device=META, requires_grad=True)
        counter.count([*layers.parameters(), x])
        with AutocastEmulator(torch.bfloat16), counter:
            base = counter.now
            for layer in layers:
                x = checkpoint(layer, x, use_reentrant=False) if checkpointed else layer(x)
            stored = counter.now - base
            backward(x.float().square().mean())
            return stored, counter.peak - base

    (stored, peak), (stored_less, lower_peak) = stored_and_peak(False), stored_and_peak(True)
    assert stored_less < stored / 2 and stored_less < lower_peak < peak
