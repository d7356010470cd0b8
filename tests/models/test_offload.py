"""Parts of a model move to the device when they are used and back afterwards; a copy stands in for a GPU."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from autolora.models.offload import OffloadManager, offloads
from autolora.models.stable_diffusion import StableDiffusion
from autolora.sampling import RenderRequest, render
from tests.tiny import RenderSettings

CPU = torch.device("cpu")


class FakeGpu(OffloadManager):
    """Copies what is moved to the device."""

    def _to_device(self, copy: Tensor) -> Tensor:
        return copy.clone()

    def has(self, module: nn.Module) -> bool:
        """Return whether a part is on the device; all of it must be in one place."""
        copies = {copy.data_ptr() for part in self._cpu_copies.values() for _, copy in part}
        (moved,) = {tensor.data_ptr() not in copies for tensor in (*module.parameters(), *module.buffers())}
        return moved


def part() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).to(memory_format=torch.channels_last)


def test_a_part_is_on_the_device_while_it_is_used_and_unchanged_afterwards() -> None:
    vae, text = part(), part()
    before = copy.deepcopy(vae.state_dict())
    gpu = FakeGpu(CPU, {"vae": vae, "text": text}, offload=True)
    assert not gpu.has(vae) and not gpu.has(text)
    with gpu.on_device("vae"):
        assert gpu.has(vae) and not gpu.has(text)
        assert vae[0].weight.is_contiguous(memory_format=torch.channels_last)
        with gpu.on_device("vae", "text"):
            assert gpu.has(text)
        assert gpu.has(vae) and not gpu.has(text)
    assert not gpu.has(vae)
    assert all(torch.equal(vae.state_dict()[name], tensor) for name, tensor in before.items())


def test_after_an_error_parts_move_back_except_those_kept_on_the_device() -> None:
    vae, text = part(), part()
    gpu = FakeGpu(CPU, {"vae": vae, "text": text}, offload=True)
    gpu.keep_on_device("text", "unet")  # the unet is not among the parts, as it is never offloaded
    with pytest.raises(InterruptedError), gpu.on_device("vae", "text"):
        raise InterruptedError
    assert not gpu.has(vae) and gpu.has(text)


def test_without_offloading_everything_is_on_the_device_from_the_start() -> None:
    vae = part()
    manager = OffloadManager(torch.device("meta"), {"vae": vae}, offload=False)
    with manager.on_device("vae"):
        pass
    assert {tensor.device.type for tensor in vae.parameters()} == {"meta"}


def test_gradients_flow_through_weights_that_moved_in_inference_mode() -> None:
    text = nn.Linear(2, 2).requires_grad_(False)
    gpu = FakeGpu(CPU, {"text": text}, offload=True)
    with torch.inference_mode():
        gpu.keep_on_device("text")
    x = torch.ones(1, 2, requires_grad=True)
    text(x).square().sum().backward()
    assert x.grad is not None and x.grad.abs().sum() > 0


def test_parts_are_offloaded_only_on_small_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    class Properties:
        total_memory = 12 * 2**30

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Properties)
    cuda = torch.device("cuda")
    assert offloads(None, cuda) and not offloads(False, cuda) and not offloads(True, CPU)
    Properties.total_memory = 24 * 2**30
    assert not offloads(None, cuda) and offloads(True, cuda)


def test_rendering_moves_text_encoders_to_the_device_only_before_denoising(
    tiny_model: StableDiffusion, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = [RenderRequest(prompt, 0, 0.0) for prompt in ("1girl", "1boy", "beach")]
    settings = RenderSettings(num_inference_steps=2, batch_size=1)
    plain = render(tiny_model, requests, settings)
    vae, text = tiny_model.vae, tiny_model.text_encoder
    gpu = FakeGpu(CPU, {"vae": vae, **tiny_model.text_encoders}, offload=True)
    calls: list[str] = []

    def watch(module: nn.Module, name: str, word: str) -> None:
        original = getattr(module, name)

        def watched(*args: object, **kwargs: object) -> object:
            calls.append(word + " text" * gpu.has(text) + " vae" * gpu.has(vae))
            return original(*args, **kwargs)

        monkeypatch.setattr(module, name, watched)

    monkeypatch.setattr(tiny_model, "on_device", gpu.on_device)
    watch(text, "forward", "encode")
    watch(tiny_model.unet, "forward", "denoise")
    watch(vae, "decode", "decode")
    assert (render(tiny_model, requests, settings) == plain).all()
    assert calls == ["encode text"] * 3 + ["denoise", "denoise", "decode vae"] * 3
