"""A base in 4 or 8 bits: it answers nearly the same, a LoRA trains on it, and its export is proved as any other."""

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

KINDS = {"nf4": (4, 0.12), "int8": (8, 0.01)}  # bits of a weight, and how far it may move
ADAPTERS: list[Adapter] = [LoRA(dim=2, text_encoder=True), DoRA(dim=2), LoHa(dim=2), LoKr(dim=2), IA3()]

TRAINED = [*((adapter, "nf4") for adapter in ADAPTERS), (ADAPTERS[0], "int8")]


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_layer_computes_with_its_restored_weight_back_and_forth(kind: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(128, 48).to(dtype)
    packed = QuantizedLinear(layer, kind, torch.device("cpu"))
    bits, apart = KINDS[kind]
    assert packed.packed.nbytes * 8 == bits * layer.weight.numel()
    assert F.mse_loss(packed.weight.float(), layer.weight.float()) < (apart * layer.weight.float().std()) ** 2
    x = torch.randn(2, 5, 128, dtype=dtype, requires_grad=True)
    own = torch.autograd.grad(packed(x).float().square().sum(), x)[0]
    wanted = torch.autograd.grad(F.linear(x, packed.weight, layer.bias).float().square().sum(), x)[0]
    torch.testing.assert_close(own, wanted)
    assert not any(parameter.requires_grad for parameter in packed.parameters())


def test_a_quantized_layer_can_be_hollow(kind: str) -> None:
    layer = on_meta_device(QuantizedLinear(nn.Linear(64, 48).bfloat16(), kind, torch.device("cpu")))
    x = torch.empty(3, 64, device=META, requires_grad=True)
    with AutocastEmulator(torch.bfloat16), MemoryCounter():
        out = layer(x)
        backward(out.float().sum())
    assert out.shape == (3, 48) and out.dtype == torch.bfloat16 and x.grad is not None


def test_a_quantized_base_answers_nearly_the_same_in_less_memory(
    kind: str, tiny_model: StableDiffusion, tiny_model_dir: Path
) -> None:
    small = load_tiny(tiny_model_dir, quantize=kind)
    generator = torch.Generator().manual_seed(0)
    noisy, steps = torch.randn(2, *tiny_model.latent_shape, generator=generator), torch.tensor([100, 900])
    with torch.no_grad():
        context = tiny_model.encode_prompts(["1girl", "beach"])
        plain, own = (model.predict(noisy, steps, context) for model in (tiny_model, small))
    apart = float((own - plain).norm() / plain.norm())
    assert 0 < apart < 2 * KINDS[kind][1]
    assert layer_shapes(small.modules) == layer_shapes(tiny_model.modules)
    weights, whole = layer_weights(small.modules), layer_weights(tiny_model.modules)
    assert all(weights[path].shape == whole[path].shape for path in whole) and len(weights) == len(whole)


@pytest.mark.parametrize(
    ("adapter", "kind"), TRAINED, ids=lambda one: one if isinstance(one, str) else type(one).__name__
)
def test_every_kind_trains_on_it_and_its_export_is_proved(
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
        twin = DiffusersReference(written.path, tiny_model_dir, model)
        assert not twin.can_render and twin.verify_deltas(done.state).delta_error < 1e-2
        plain = load_tiny(tiny_model_dir, gradient_checkpointing=True)
        needs = [memory_need(run, dataset, one, offload=False).training for one in (model, plain)]
        assert needs[0] < needs[1]


def test_without_bitsandbytes_it_is_said_what_to_install(tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes.functional", None)  # as if it were not there
    with pytest.raises(ConfigError, match=r"model\.quantize=nf4 needs bitsandbytes: pip install 'autolora\[8bit\]'"):
        load_tiny(tiny_model_dir, quantize="nf4")
    with pytest.raises(ConfigError, match="must be one of nf4, int8 or null, got fp4"):
        replace(ModelSettings(), quantize="fp4")
