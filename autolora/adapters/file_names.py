"""Which layers of a model a layer's name in a LoRA file means, in the names of any program."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from autolora.adapters.formats import PREFIXES, kohya_name, with_text_model
from autolora.adapters.original_names import Rows, original_layers
from autolora.adapters.targets import in_text_encoder

# What a name begins with, with `_` for every dot; "" stands for peft's files, which name no part of the model.
_DENOISER = (
    "lora_unet_",
    "lora_transformer_",
    "lycoris_",
    "diffusion_model_",
    "unet_",
    "transformer_",
    "oft_unet_",
    "",
)
_ENCODERS = {
    "text_encoder": ("lora_te1_", "text_encoder_", "text_encoders_clip_l_transformer_", ""),
    "text_encoder_2": ("lora_te2_", "text_encoder_2_", "text_encoders_clip_g_transformer_"),
}
_ONLY_ENCODER = ("lora_te_", "text_encoders_clip_h_transformer_")  # where the model has no second CLIP text encoder


class LayerNames:
    """The layers of a model by all names that programs give them in LoRA files."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], architecture: str) -> None:
        """List the names.

        Args:
            shapes: the shapes of the layers' weights by path.
            architecture: the model's.
        """
        self._rows: dict[str, tuple[Rows, ...]] = {}
        roots = PREFIXES.get(architecture, {})
        for path, shape in shapes.items():
            root, _, rest = path.partition(".")
            whole = (Rows(path, 0, shape[0]),)
            if root in roots:
                for name in (flat(path), kohya_name(path, architecture), *_names(root, rest, roots)):
                    self._rows.setdefault(name, whole)
        denoiser = next(iter(roots), "")
        inside = {path.removeprefix(f"{denoiser}."): shape[0] for path, shape in shapes.items()}
        for name, rows in original_layers(architecture, inside).items():
            placed = tuple(Rows(f"{denoiser}.{row.path}", row.first, row.count, row.target) for row in rows)
            for prefix in _DENOISER:
                # Names such as proj_out exist in both, for other layers; those with a diffusers prefix are diffusers'.
                self._rows.setdefault(f"{prefix}{flat(name)}", placed)

    def find(self, name: str) -> tuple[Rows, ...] | None:
        """Return the rows of a file's layer in the model's layers; None if the model has no such layer."""
        return self._rows.get(flat(name))


def flat(name: str) -> str:
    """Return a layer's name with `_` for every dot and without the prefixes that only wrap others."""
    for prefix in ("base_model.model.", "model."):
        name = name.removeprefix(prefix)
    return name.replace(".", "_").replace("lora_unet__", "lora_unet_")


def _names(root: str, rest: str, roots: Mapping[str, str]) -> Iterator[str]:
    """Yield a layer's names in all programs but those of the original code."""
    if not in_text_encoder(root):
        yield from (f"{prefix}{flat(rest)}" for prefix in _DENOISER)
        return
    short = rest.removeprefix("text_model.")
    spellings = {flat(rest), flat(short), flat(f"text_model.{short}"), flat(with_text_model(f"{root}.{rest}"))}
    prefixes = _ENCODERS[root] + (() if "text_encoder_2" in roots else _ONLY_ENCODER)
    yield from (f"{prefix}{spelling}" for prefix in prefixes for spelling in spellings)
