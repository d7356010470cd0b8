"""The keys of LoRA files: which layer and which part of an adapter each names, and which are not read."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping

from torch import Tensor

from autolora.adapters.base import State
from autolora.adapters.deltas import LOW_RANK, PARTS, parts_by_layer, split_key
from autolora.adapters.other_kinds import OTHER_PARTS
from autolora.errors import ExportError

PEFT = "base_model.model."  # the prefix of the keys in peft's own files
_FACTOR = re.compile(r"(.+?)\.lora(?:\.(down|up)|_(A|B)(?:\.\w+)?)(?:\.weight)?")
_DOTTED_FACTOR = re.compile(r"(.+?\..+)\.lora_(down|up)\.weight")
_XLABS = re.compile(r"(.+_blocks\.\d+)\.processor\.(qkv|proj)_lora([12]?)\.(down|up)\.weight")
_MAGNITUDE = re.compile(r"(.+?)\.(?:lora_magnitude_vector(?:\.\w+)*|lora\.dora_scale)")
_PEFT_MAGNITUDE = "magnitude"  # peft's, which has another shape than LyCORIS' `dora_scale`
_OTHER = re.compile(r"(.+?\..+)\.(hada_\w+|lokr_\w+|dora_scale|ia3_l|alpha)")
_HALVES = {
    "down": "lora_down.weight",
    "A": "lora_down.weight",
    "up": "lora_up.weight",
    "B": "lora_up.weight",
}
_XLABS_LAYERS = {
    "qkv1": "img_attn.qkv",
    "qkv2": "txt_attn.qkv",
    "proj1": "img_attn.proj",
    "proj2": "txt_attn.proj",
    "qkv": "linear1_qkv",
    "proj": "linear2",
}
# What other programs read and autolora does not, by what the keys look like.
_UNREAD = (
    ("embeddings of a trigger (bundle_emb)", re.compile(r"bundle_emb\..+")),
    (
        "layers of the T5 text encoder",
        re.compile(r"(?:lora_te\d_|text_encoder_\d\.|text_encoders\.t5\w+\.).*encoder.block.+"),
    ),
    ("norms", re.compile(r".+\.[wb]_norm|.+norm\.(?:set_weight|scale)")),
    ("biases", re.compile(r".+\.(?:diff_b|bias_(?:indices|values|size)|lora_(?:B|up)\.bias)")),
    ("layers of a different size (reshape_weight)", re.compile(r".+\.reshape_weight")),
)


def unread_keys(tensors: Mapping[str, Tensor], has_text_encoder: bool) -> Counter[str]:
    """Count the keys that autolora does not read, by what they change.

    Args:
        tensors: the content of a file.
        has_text_encoder: whether files for this model may hold layers of a CLIP text encoder.
    """
    kinds = (_unread_kind(key, tensor, has_text_encoder) for key, tensor in tensors.items())
    return Counter(kind for kind in kinds if kind)


def without_unread(tensors: Mapping[str, Tensor], has_text_encoder: bool) -> State:
    """Return the tensors that autolora reads.

    Raises:
        ExportError: there are none, though other programs read the file.
    """
    read = {key: t for key, t in tensors.items() if not _unread_kind(key, t, has_text_encoder)}
    if tensors and not read:
        kinds = describe_unread(unread_keys(tensors, has_text_encoder))
        raise ExportError(f"it changes nothing but {kinds}, which autolora does not read")
    return read


def describe_unread(kinds: Mapping[str, int]) -> str:
    """Return the kinds that are not read in words; empty if there are none."""
    return ", ".join(f"{kind} ({count} tensors)" for kind, count in kinds.items())


def _unread_kind(key: str, tensor: Tensor, has_text_encoder: bool) -> str:
    for kind, pattern in _UNREAD:
        if pattern.fullmatch(key):
            return kind
    if key.endswith(".diff") and tensor.dim() == 1:
        return "norms"
    if not has_text_encoder and key.startswith(("lora_te", "text_encoder")):
        return "layers of the text encoder"
    return ""


def in_diffusers_names(tensors: Iterable[str]) -> bool:
    """Return whether a file uses diffusers' or peft's key names."""
    return any((split_dotted(key) or ("", "alpha"))[1] != "alpha" for key in tensors)


def in_lycoris_parts(tensors: Iterable[str]) -> bool:
    """Return whether a file holds other parts than those of LoRA and LoCon under LyCORIS' names."""
    return any(_is_lycoris_part(key) for key in tensors)


def _is_lycoris_part(key: str) -> bool:
    """Return whether a key is LyCORIS' alone; diffusers and peft have some of its parts too, in names with dots."""
    part = next((part for part in PARTS if key.endswith(f".{part}") and part != "weight"), "alpha")
    only_lycoris = part in (*OTHER_PARTS, "lora_mid.weight", "on_input")
    return only_lycoris or (part not in LOW_RANK and "." not in key.removesuffix(f".{part}"))


def layers_by_name(tensors: Mapping[str, Tensor]) -> dict[str, State]:
    """Group a file's tensors by the name of the layer in the file, then by the part's LyCORIS name.

    Raises:
        ExportError: a key names no part of an adapter.
    """
    layers = parts_by_layer(tensors, split_any)
    for parts in layers.values():
        if _PEFT_MAGNITUDE in parts:  # (out,), or (1, out, 1, 1)
            dims = parts["lora_up.weight"].dim() if "lora_up.weight" in parts else 2
            parts["dora_scale"] = parts.pop(_PEFT_MAGNITUDE).reshape(-1, *(1,) * (dims - 1))
    return layers


def split_any(key: str) -> tuple[str, str]:
    """Return the layer of a key in any program's names, and the LyCORIS name of its part.

    Raises:
        ExportError: the key names no part of an adapter.
    """
    return split_dotted(key) or split_key(key)


def split_dotted(key: str) -> tuple[str, str] | None:
    """Return the layer of a key in diffusers' or peft's names and the LyCORIS name of its part (`ia3_l` stays).

    None means that it is no key of that format.
    """
    if (processor := _XLABS.fullmatch(key)) is not None:
        return f"{processor[1]}.{_XLABS_LAYERS[processor[2] + processor[3]]}", _HALVES[processor[4]]
    name = _modern(key)
    if (factor := _FACTOR.fullmatch(name)) is not None:
        return factor[1], _HALVES[factor[2] or factor[3]]
    if (factor := _DOTTED_FACTOR.fullmatch(name)) is not None:
        return factor[1], _HALVES[factor[2]]
    if (magnitude := _MAGNITUDE.fullmatch(name)) is not None and "." in magnitude[1]:
        return magnitude[1], _PEFT_MAGNITUDE
    other = _OTHER.fullmatch(name)
    return (other[1], other[2]) if other else None


def _modern(key: str) -> str:
    """Return the key of any version of diffusers or peft as `<layer>.lora.down.weight` or `<layer>.lora_A.weight`."""
    key = key.removeprefix(PEFT)
    key = re.sub(r"\.processor\.to_out_lora\.", ".to_out.0.lora.", key)
    key = re.sub(r"\.processor\.(to_[qkv])_lora\.", r".\1.lora.", key)
    key = key.replace(".to_out_lora.", ".out_proj.lora.").replace(".lora_linear_layer.", ".lora.")
    return re.sub(r"(\.self_attn)\.to_([qkv])_lora\.", r"\1.\2_proj.lora.", key)
