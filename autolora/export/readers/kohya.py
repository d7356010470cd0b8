"""How `networks.lora` of kohya's sd-scripts reads a layer."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from autolora.export.readers.formulas import Parts


def read_layer(parts: Parts, weight: Tensor) -> Tensor:
    """The weight change of a LoRA or LoCon layer, of the weight's shape; a convolution applies its two factors in turn.

    Raises:
        NotImplementedError: another kind of adapter.
    """
    if set(parts) - {"lora_down.weight", "lora_up.weight", "alpha"}:
        raise NotImplementedError("its networks.lora reads LoRA and LoCon only")
    down, up = parts["lora_down.weight"].float(), parts["lora_up.weight"].float()
    scale = parts["alpha"].item() / down.shape[0] if "alpha" in parts else 1.0
    if weight.dim() == 2:
        return up.flatten(1) @ down.flatten(1) * scale
    if down.shape[2:] == (1, 1):
        return (up.flatten(1) @ down.flatten(1))[:, :, None, None] * scale
    return F.conv2d(down.permute(1, 0, 2, 3), up).permute(1, 0, 2, 3) * scale
