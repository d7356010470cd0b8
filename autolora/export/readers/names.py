"""Which layer names each program finds in a file, by the map of names in its own code."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from autolora.adapters.sgm import sgm_path
from autolora.adapters.targets import in_text_encoder

_IN_BLOCK = re.compile(r"(down_blocks|mid_block|up_blocks)\b.*\.(attentions|resnets|downsamplers|upsamplers)\..+")
_TIME_AND_ENDS = re.compile(r"conv_in|conv_out|time_embedding\..+")
_IN_CLIP = re.compile(r"(text_encoder(?:_2)?)\.(?:text_model\.)?(encoder\.layers\.\d+\.(?:self_attn|mlp)\.\w+)")
_CLIP_ONE = {"text_encoder": ("lora_te_",)}
_CLIP_TWO = {"text_encoder": ("lora_te1_",), "text_encoder_2": ("lora_te2_",)}


@dataclass(frozen=True)
class Names:
    """The beginnings of the names of one base model's layers that a program finds.

    Names have `_` for every dot; a beginning that ends with a dot stands for a name with dots.
    """

    denoiser: tuple[str, ...] = ()  # before diffusers' names
    original: tuple[str, ...] = ()  # before the names of the model's original code
    clip: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # of CLIP text encoders, by root
    dotted_clip: bool = False  # whether it finds diffusers' names of text encoders, with `text_model`
    projections: bool = False  # whether it finds the projections of CLIP text encoders
    outside: re.Pattern[str] | None = re.compile(".*")  # UNet layers outside of blocks that it finds
    missed: str = ""  # UNet layers that it does not find under diffusers' names
    strict: bool = False  # whether it reads nothing of a file with a name that it does not find
    processors: bool = False  # whether it expects attention under the names of old versions of diffusers

    def find(self, name: str, path: str) -> bool:
        """Return whether the program finds a name of the model's layer at `path`."""
        rest = path.partition(".")[2]
        if in_text_encoder(path):
            return self._find_clip(name, path)
        inside = path.startswith("transformer.") or _IN_BLOCK.fullmatch(rest)
        if not inside and not (self.outside and self.outside.fullmatch(rest)):
            return False
        for spelling in (rest, _flat(rest)):
            if name.endswith(spelling) and name.removesuffix(spelling) in self.denoiser:
                if self.missed and self.missed in path:
                    return False
                return not (self.processors and "." in name and ".to_" in name)
        if path.startswith("transformer."):
            return name.startswith(self.original) and not name.endswith((rest, _flat(rest)))
        sgm = sgm_path(rest)
        return any(name == f"{prefix}{sgm if prefix.endswith('.') else _flat(sgm)}" for prefix in self.original)

    def _find_clip(self, name: str, path: str) -> bool:
        match = _IN_CLIP.fullmatch(path)
        if match is None:
            number = "2" if path.startswith("text_encoder_2") else "1"
            return self.projections and name == f"lora_te{number}_text_projection"
        if self.dotted_clip and name == f"{match[1]}.text_model.{match[2]}":
            return True
        return any(name == f"{prefix}text_model_{_flat(match[2])}" for prefix in self.clip.get(match[1], ()))


def _flat(name: str) -> str:
    return name.replace(".", "_")


_KOHYA = ("lora_unet_",)
_ORIGINAL = ("lora_unet_", "diffusion_model.")
_COMFY_UNET = ("lora_unet_", "lycoris_", "unet.", "")
_COMFY_CLIP = {"text_encoder": ("lora_te_", "lora_te1_"), "text_encoder_2": ("lora_te2_",)}
_COMFY_SDXL = Names(_COMFY_UNET, _ORIGINAL, _COMFY_CLIP, True, True, processors=True)
_COMFY_SD = Names(_COMFY_UNET, (), _COMFY_CLIP, True, processors=True)
_COMFY_FLUX = Names(("transformer.", "lycoris_", "lora_transformer_"), _ORIGINAL, _COMFY_CLIP, True)
_COMFY_SD3 = Names(
    ("transformer.", "lycoris_", "lora_transformer_", "base_model.model."), _ORIGINAL, _COMFY_CLIP, True, True
)
NAMES: dict[str, dict[str, Names]] = {
    "A1111": {
        "sd1": Names(_KOHYA, (), {"text_encoder": ("lora_te_", "lora_te1_")}, outside=_TIME_AND_ENDS),
        "sd2": Names(_KOHYA, (), _CLIP_ONE, outside=_TIME_AND_ENDS),
        # It looks for that convolution where SD 1.x has it.
        "sdxl": Names(_KOHYA, _KOHYA, _CLIP_TWO, missed="up_blocks.0.upsamplers"),
    },
    "ComfyUI": {
        "sd1": _COMFY_SD,
        "sd2": _COMFY_SD,
        "sdxl": _COMFY_SDXL,
        "sd3": _COMFY_SD3,
        "flux": _COMFY_FLUX,
        "z_image": Names(("transformer.", "lycoris_", "diffusion_model.", ""), _ORIGINAL),
    },
    # It has ComfyUI's names of 2024, without diffusers' names of SD3, and does not know Z-Image.
    "Forge": {
        "sd1": _COMFY_SD,
        "sd2": _COMFY_SD,
        "sdxl": _COMFY_SDXL,
        "sd3": Names((), _ORIGINAL, _COMFY_CLIP, True, True),
        "flux": _COMFY_FLUX,
    },
    "InvokeAI": {
        "sd1": Names(_KOHYA, (), _CLIP_ONE),
        "sd2": Names(_KOHYA, (), _CLIP_ONE),
        "sdxl": Names(_KOHYA, _KOHYA, _CLIP_TWO),
        "flux": Names(
            ("transformer.", "base_model.model.", "lora_transformer_"),
            (*_ORIGINAL, "base_model.model.", "double_blocks."),
            {"text_encoder": ("lora_te1_",)},
            strict=True,
        ),
        "z_image": Names((), ("diffusion_model.", "transformer.")),
    },
    # It changes only layers inside of blocks; `networks.lora_flux` and `networks.lora_sd3` are its others.
    "kohya sd-scripts": {
        "sd1": Names(_KOHYA, (), _CLIP_ONE, outside=None),
        "sd2": Names(_KOHYA, (), _CLIP_ONE, outside=None),
        "sdxl": Names(_KOHYA, _KOHYA, _CLIP_TWO, outside=None),
        "sd3": Names((), ("lora_unet_joint_blocks_",), _CLIP_TWO),
        "flux": Names((), ("lora_unet_double_blocks_", "lora_unet_single_blocks_"), {"text_encoder": ("lora_te1_",)}),
    },
}


def knows(program: str, name: str, path: str, architecture: str) -> bool:
    """Whether a program finds a layer's name in a file for a base model of this architecture."""
    names = NAMES[program].get(architecture)
    return names is not None and names.find(name, path)
