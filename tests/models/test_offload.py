"""Parts of a model come to the device when used and leave afterwards; memory of its own stands in for a GPU's."""

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


class Card(OffloadManager):
    """Whatever is sent to the device lies in memory of its own."""

    def _to_device(self, home: Tensor) -> Tensor:
        return home.clone()

    def has(self, module: nn.Module) -> bool:
        """Whether a part is there; half of it is a mistake."""
        homes = {home.data_ptr() for part in self._cpu_copies.values() for _, home in part}
        (found,) = {tensor.data_ptr() not in homes for tensor in (*module.parameters(), *module.buffers())}
        return found


def part() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).to(memory_format=torch.channels_last)


def test_a_part_is_on_the_device_while_used_and_comes_back_unchanged() -> None:
    vae, text = part(), part()
    before = copy.deepcopy(vae.state_dict())
    card = Card(CPU, {"vae": vae, "text": text}, offload=True)
    assert not card.has(vae) and not card.has(text)
    with card.on_device("vae"):
        assert card.has(vae) and not card.has(text)
        assert vae[0].weight.is_contiguous(memory_format=torch.channels_last)
        with card.on_device("vae", "text"):
            assert card.has(text)
        assert card.has(vae) and not card.has(text)
    assert not card.has(vae)
    assert all(torch.equal(vae.state_dict()[name], tensor) for name, tensor in before.items())


def test_an_error_inside_lets_parts_leave_and_what_stays_never_does() -> None:
    vae, text = part(), part()
    card = Card(CPU, {"vae": vae, "text": text}, offload=True)
    card.keep_on_device("text", "unet")  # what never leaves anyway is no part of it
    with pytest.raises(InterruptedError), card.on_device("vae", "text"):
        raise InterruptedError
    assert not card.has(vae) and card.has(text)


def test_without_offloading_everything_is_on_the_device_from_the_start() -> None:
    vae = part()
    manager = OffloadManager(torch.device("meta"), {"vae": vae}, offload=False)
    with manager.on_device("vae"):
        pass
    assert {tensor.device.type for tensor in vae.parameters()} == {"meta"}


def test_weights_that_came_while_rendering_can_be_trained_through() -> None:
    text = nn.Linear(2, 2).requires_grad_(False)
    card = Card(CPU, {"text": text}, offload=True)
    with torch.inference_mode():
        card.keep_on_device("text")
    x = torch.ones(1, 2, requires_grad=True)
    text(x).square().sum().backward()
    assert x.grad is not None and x.grad.abs().sum() > 0


def test_only_small_gpus_are_made_room_on(monkeypatch: pytest.MonkeyPatch) -> None:
    class Properties:
        total_memory = 12 * 2**30

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Properties)
    cuda = torch.device("cuda")
    assert offloads(None, cuda) and not offloads(False, cuda) and not offloads(True, CPU)
    Properties.total_memory = 24 * 2**30
    assert not offloads(None, cuda) and offloads(True, cuda)


def test_rendering_brings_text_encoders_once_and_draws_without_them(
    tiny_model: StableDiffusion, monkeypatch: pytest.MonkeyPatch
) -> None:
    shots = [RenderRequest(prompt, 0, 0.0) for prompt in ("1girl", "1boy", "beach")]
    settings = RenderSettings(num_inference_steps=2, batch_size=1)
    plain = render(tiny_model, shots, settings)
    vae, text = tiny_model.vae, tiny_model.text_encoder
    card = Card(CPU, {"vae": vae, **tiny_model.text_encoders}, offload=True)
    seen: list[str] = []

    def watch(module: nn.Module, name: str, word: str) -> None:
        original = getattr(module, name)

        def watched(*args: object, **kwargs: object) -> object:
            seen.append(word + " text" * card.has(text) + " vae" * card.has(vae))
            return original(*args, **kwargs)

        monkeypatch.setattr(module, name, watched)

    monkeypatch.setattr(tiny_model, "on_device", card.on_device)
    watch(text, "forward", "read")
    watch(tiny_model.unet, "forward", "draw")
    watch(vae, "decode", "decode")
    assert (render(tiny_model, shots, settings) == plain).all()
    assert seen == ["read text"] * 3 + ["draw", "draw", "decode vae"] * 3
