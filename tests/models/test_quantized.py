"""A base model in 4 or 8 bits predicts nearly the same, a LoRA trains on it, and its export is verified."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from autolora.adapters.adapter_set import attach
from autolora.adapters.formats import layer_paths, layer_shapes, layer_weights
from autolora.adapters.kinds import IA3, DoRA, LoHa, LoKr, LoRA
from autolora.adapters.settings import Adapter
from autolora.data.concepts import DatasetSettings, load_dataset
from autolora.errors import ConfigError
from autolora.export.metadata import ExportFacts
from autolora.export.readers.diffusers import DiffusersReference
from autolora.export.verify import verify_deltas
from autolora.export.write import export_lora
from autolora.models.meta_device import META, AutocastEmulator, MemoryCounter, backward, on_meta_device
from autolora.models.quantized import QuantizedLinear
from autolora.models.settings import ModelSettings
from autolora.models.stable_diffusion import StableDiffusion
from autolora.paperdoll.world import write_dataset
from autolora.preflight.memory import memory_need
from autolora.train.caches import LatentCache, PromptCache
from autolora.train.loop import train_one
from autolora.train.run import Run, TrainSettings
from autolora.train.slot import TrainingContext
from tests.tiny import load_tiny

pytestmark = pytest.mark.slow  # trains, renders or loads many models

KINDS = {"nf4": (4, 0.12), "int8": (8, 0.01)}  # bits per weight, and the allowed relative error
ADAPTERS: list[Adapter] = [LoRA(dim=2, text_encoder=True), DoRA(dim=2), LoHa(dim=2), LoKr(dim=2), IA3()]

TRAINED = [*((adapter, "nf4") for adapter in ADAPTERS), (ADAPTERS[0], "int8")]


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_layer_uses_its_dequantized_weight_forward_and_backward(kind: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(128, 48).to(dtype)
    packed = QuantizedLinear(layer, kind, torch.device("cpu"))
    bits, error = KINDS[kind]
    assert packed.packed.nbytes * 8 == bits * layer.weight.numel()
    assert F.mse_loss(packed.weight.float(), layer.weight.float()) < (error * layer.weight.float().std()) ** 2
    x = torch.randn(2, 5, 128, dtype=dtype, requires_grad=True)
    gradient = torch.autograd.grad(packed(x).float().square().sum(), x)[0]
    expected = torch.autograd.grad(F.linear(x, packed.weight, layer.bias).float().square().sum(), x)[0]
    torch.testing.assert_close(gradient, expected)
    assert not any(parameter.requires_grad for parameter in packed.parameters())


def test_a_quantized_layer_can_be_on_the_meta_device(kind: str) -> None:
    layer = on_meta_device(QuantizedLinear(nn.Linear(64, 48).bfloat16(), kind, torch.device("cpu")))
    x = torch.empty(3, 64, device=META, requires_grad=True)
    with AutocastEmulator(torch.bfloat16), MemoryCounter():
        out = layer(x)
        backward(out.float().sum())
    assert out.shape == (3, 48) and out.dtype == torch.bfloat16 and x.grad is not None


def test_a_quantized_base_model_predicts_nearly_the_same(
    kind: str, tiny_model: StableDiffusion, tiny_model_dir: Path
) -> None:
    small = load_tiny(tiny_model_dir, quantize=kind)
    generator = torch.Generator().manual_seed(0)
    noisy, steps = torch.randn(2, *tiny_model.latent_shape, generator=generator), torch.tensor([100, 900])
    with torch.no_grad():
        context = tiny_model.encode_prompts(["1girl", "beach"])
        plain, quantized = (model.predict(noisy, steps, context) for model in (tiny_model, small))
    error = float((quantized - plain).norm() / plain.norm())
    assert 0 < error < 2 * KINDS[kind][1]
    assert layer_shapes(small.modules) == layer_shapes(tiny_model.modules)
    weights, plain_weights = layer_weights(small.modules), layer_weights(tiny_model.modules)
    assert all(weights[path].shape == plain_weights[path].shape for path in plain_weights)
    assert len(weights) == len(plain_weights)


@pytest.mark.parametrize(
    ("adapter", "kind"), TRAINED, ids=lambda value: value if isinstance(value, str) else type(value).__name__
)
def test_every_adapter_trains_on_it_and_its_export_is_verified(
    adapter: LoRA, kind: str, tiny_model_dir: Path, tmp_path: Path
) -> None:
    model = load_tiny(tiny_model_dir, quantize=kind, gradient_checkpointing=True)
    write_dataset(tmp_path / "doll", seed=1, outfits=1, images_per_outfit=6, size=32)
    dataset = load_dataset(DatasetSettings(path=str(tmp_path / "doll")))
    run = Run("small", adapter, train=TrainSettings(epochs=1, images_per_concept=8, scale_weight_norms=0.5))
    context = TrainingContext(
        model, attach(model.modules, adapter), dataset, LatentCache(model, tmp_path / "cache"), PromptCache(model)
    )
    (done,) = train_one(run, context)
    context.adapter.detach()
    trained = [tensor for name, tensor in done.state.items() if not name.endswith(("alpha", "on_input", "down.weight"))]
    assert done.train_loss < 10 and any(tensor.abs().sum() > 0 for tensor in trained)
    written = export_lora(
        done.state, run, dataset, model, tmp_path, "small", facts=ExportFacts("1girl", 1.0, "small", 8)
    )
    assert verify_deltas(done.state, written.path, model).layers == len(layer_paths(done.state))
    if type(adapter) is LoRA:
        reference = DiffusersReference(written.path, tiny_model_dir, model)
        assert not reference.can_render and reference.verify_deltas(done.state).delta_error < 1e-2
        plain = load_tiny(tiny_model_dir, gradient_checkpointing=True)
        needs = [memory_need(run, dataset, base, offload=False).training for base in (model, plain)]
        assert needs[0] < needs[1]


def test_without_bitsandbytes_the_error_says_what_to_install(
    tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes.functional", None)  # as if it were not installed
    with pytest.raises(ConfigError, match=r"model\.quantize=nf4 needs bitsandbytes: pip install 'autolora\[8bit\]'"):
        load_tiny(tiny_model_dir, quantize="nf4")
    with pytest.raises(ConfigError, match="must be one of nf4, int8 or null, got fp4"):
        replace(ModelSettings(), quantize="fp4")
