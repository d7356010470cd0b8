"""Key names of LoRA files: autolora's dotted paths to and from kohya's names, which every common program reads."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn

from autolora.adapters.base import State, shape_of
from autolora.adapters.deltas import FACTORS, PARTS, delta_weight, layer_scale, parts_by_layer, split_key
from autolora.adapters.sgm import sgm_path
from autolora.adapters.targets import in_text_encoder
from autolora.errors import ExportError

# The first part of a name, by architecture and root module of the model.
PREFIXES: dict[str, dict[str, str]] = {
    "sd1": {"unet": "lora_unet", "text_encoder": "lora_te"},
    "sd2": {"unet": "lora_unet", "text_encoder": "lora_te"},
    "sdxl": {"unet": "lora_unet", "text_encoder": "lora_te1", "text_encoder_2": "lora_te2"},
    "sd3": {"transformer": "lycoris", "text_encoder": "lora_te1", "text_encoder_2": "lora_te2"},
    "flux": {"transformer": "lycoris", "text_encoder": "lora_te1"},
    "z_image": {"transformer": "lycoris"},
}
_UNET_PATHS = {"sdxl": sgm_path}  # the rest of a UNet layer's name; other architectures use diffusers'
Shapes = Mapping[str, tuple[int, ...]]  # the weights' shapes by the layers' paths
Weights = Mapping[str, Tensor]  # the weights by the layers' paths

# What keys of the wrong files contain, by the architecture that they were given for.
_FOR_SDXL = tuple((mark, "a LoRA for SDXL") for mark in ("lora_te2_", "lora_te1_", "lora_unet_input_blocks_"))
_OTHER_KINDS = {
    "sd1": _FOR_SDXL,
    "sd2": _FOR_SDXL,
    "sdxl": (("lora_te_text_model_", "a LoRA for Stable Diffusion 1.x or 2.x"),),
}
_OTHER_FILES = (
    ("lora_unet_double_blocks_", "a LoRA for Flux"),
    ("lora_unet_joint_blocks_", "a LoRA for Stable Diffusion 3 in kohya's names"),
    ("emb_params", "a textual inversion embedding"),
    ("model.diffusion_model.", "a whole checkpoint"),
)


def is_transformer(architecture: str) -> bool:
    """Return whether a model has a transformer instead of a UNet: its LoRA files have diffusers' names, not kohya's."""
    return "transformer" in _prefixes(architecture)


def kohya_name(path: str, architecture: str) -> str:
    """Return a layer's name in files.

    `unet.mid_block.attentions.0.proj_in` becomes `lora_unet_mid_block_attentions_0_proj_in`, in SDXL's UNet
    `lora_unet_middle_block_1_proj_in`. Names of a text encoder's layers always contain `text_model`, which newer
    versions of transformers leave out of the path. Layers of transformers get LyCORIS' names
    (`lycoris_layers_0_attention_to_q`), because kohya's name the layers of the original code, where queries, keys and
    values are one layer.

    Raises:
        ExportError: the architecture has no names yet, or the layer lies in none of its adapted parts.
    """
    prefixes = _prefixes(architecture)
    root, _, rest = path.partition(".")
    if root not in prefixes or not rest:
        raise ExportError(f"layer {path!r} lies in none of {', '.join(prefixes)}")
    rest = with_text_model(path).partition(".")[2]
    if root == "unet":
        rest = _UNET_PATHS.get(architecture, str)(rest)
    return f"{prefixes[root]}_{rest.replace('.', '_')}"


def with_text_model(path: str) -> str:
    """Return a layer's path with the level `text_model` of a CLIP text encoder, which files always have."""
    root, _, rest = path.partition(".")
    return f"{root}.text_model.{rest}" if in_text_encoder(path) and rest.startswith("encoder.") else path


def paths_by_name(paths: Iterable[str], architecture: str) -> dict[str, str]:
    """Return a model's layers by every name that files have for them.

    Some programs write the layers of SDXL in diffusers' names.
    """
    prefixes = _prefixes(architecture)
    named = [path for path in paths if path.partition(".")[0] in prefixes]
    names: dict[str, str] = {}
    for path in named:
        kohya, bare = kohya_name(path, architecture), path.replace(".", "_")
        if in_text_encoder(path):
            names[kohya.replace("_text_model_text_projection", "_text_projection")] = path
            if "text_encoder_2" not in prefixes:
                names[kohya.replace("lora_te_", "lora_te1_")] = path  # as other programs read it too
        else:
            names |= {f"lora_{bare}": path}
    return names | {kohya_name(path, architecture): path for path in named}


def has_text_encoder(architecture: str) -> bool:
    """Return whether LoRA files for a model may hold layers of a CLIP text encoder."""
    return any(in_text_encoder(root) for root in _prefixes(architecture))


def to_kohya(state: State, architecture: str) -> State:
    """Rename an adapter's tensors for a file; values and shapes stay the same.

    Raises:
        ExportError: a key names no part of an adapter, or two layers would share a name.
    """
    renamed: State = {}
    for key, tensor in state.items():
        path, part = split_key(key)
        name = f"{kohya_name(path, architecture)}.{part}"
        if name in renamed:
            raise ExportError(f"two layers would get the name {name} in the file")
        renamed[name] = tensor
    return renamed


def from_kohya(tensors: Mapping[str, Tensor], architecture: str, shapes: Shapes) -> State:
    """Rename a file's tensors to the paths of a model's layers, in float32.

    Each layer gets an alpha; where the file has none the scale is 1, so alpha is the rank. A 1x1 convolution can be
    loaded into a linear layer and the other way round, as in other programs.

    Args:
        tensors: the file's tensors.
        architecture: the model's.
        shapes: what `layer_shapes` returns for the model.

    Raises:
        ExportError: another kind of file, layers that the model does not have, or shapes that do not fit it.
    """
    paths = paths_by_name(shapes, architecture)
    names = dict.fromkeys(key.partition(".")[0] for key in tensors)
    unknown = [key for key in tensors if key.partition(".")[0] not in paths or key.partition(".")[2] not in FACTORS]
    if unknown or not tensors:
        raise ExportError(explain_unknown(tensors, unknown, len(names), architecture))
    state: State = {}
    for name in names:
        path = paths[name]
        down, up, alpha = (tensors.get(f"{name}.{part}") for part in FACTORS)
        if down is None or up is None:
            missing = FACTORS[0] if down is None else FACTORS[1]
            raise ExportError(f"{name} has no {missing}: the file is incomplete; export or download it again")
        if f"{path}.alpha" in state:
            raise ExportError(f"{name} is in the file under two names, and programs may read either: export it again")
        state |= fit_to_layer(name, path, down, up, alpha, shapes[path])
    return state


def layers_of(modules: Mapping[str, nn.Module]) -> dict[str, nn.Linear | nn.Conv2d]:
    """Return every linear and convolution layer by path, whether or not an adapter is attached."""
    return {
        f"{root_name}.{name}".removesuffix(".base"): module
        for root_name, root in modules.items()
        for name, module in root.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d)
    }


class LayerWeights(Mapping[str, Tensor]):
    """The weights of a model's layers by path; a quantized weight is dequantized each time it is read."""

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        self._layers = layers_of(modules)

    def __getitem__(self, path: str) -> Tensor:
        return self._layers[path].weight.detach()

    def __iter__(self) -> Iterator[str]:
        return iter(self._layers)

    def __len__(self) -> int:
        return len(self._layers)


def layer_weights(modules: Mapping[str, nn.Module]) -> Weights:
    """Return the weights of a model's layers by path."""
    return LayerWeights(modules)


def layer_shapes(modules: Mapping[str, nn.Module]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the weights of a model's layers by path."""
    return {path: shape_of(layer) for path, layer in layers_of(modules).items()}


def layer_delta(state: State, path: str, weight: Tensor | None = None) -> Tensor:
    """Return a layer's change of weight as `delta_weight` does."""
    return delta_weight(_parts_of(state, path), weight)


def _parts_of(state: State, path: str) -> State:
    return {part: state[f"{path}.{part}"] for part in PARTS if f"{path}.{part}" in state}


def _rank(state: State, path: str) -> int:
    return state[f"{path}.lora_down.weight"].shape[0]


def scaled(state: State, weight: float) -> State:
    """Return an adapter whose changes are multiplied by a weight; every layer gets an alpha."""
    alphas = {
        f"{p}.alpha": layer_scale(_parts_of(state, p), _rank(state, p)) * weight * _rank(state, p)
        for p in layer_paths(state)
    }
    return {**state, **{key: torch.tensor(alpha, dtype=torch.float64) for key, alpha in alphas.items()}}


def layer_paths(state: State) -> list[str]:
    """Return the paths of the layers that an adapter changes."""
    return list(parts_by_layer(state))


def _prefixes(architecture: str) -> dict[str, str]:
    if architecture not in PREFIXES:
        supported = ", ".join(PREFIXES)
        raise ExportError(f"architecture {architecture!r} has no LoRA key names yet; supported: {supported}")
    return PREFIXES[architecture]


def fit_to_layer(name: str, path: str, down: Tensor, up: Tensor, alpha: Tensor | None, shape: tuple[int, ...]) -> State:
    """Return one layer's tensors by path, reshaped for the model's layer.

    Args:
        name: the layer's name in the file, for messages.
        path: the layer's path.
        down: (r, in, ...).
        up: (out, r, ...).
        alpha: the file's alpha; None: the rank.
        shape: the shape of the layer's weight.

    Raises:
        ExportError: the factors do not fit the layer.
    """
    rank = down.shape[0] if down.dim() >= 2 else 0
    is_pair = rank > 0 and up.dim() >= 2 and up.shape[1] == rank and up.numel() == rank * up.shape[0]
    if not is_pair or up.shape[0] != shape[0] or not same_weights(down.shape[1:], shape[1:]):
        raise ExportError(
            f"{name} does not fit the model: up {tuple(up.shape)} and down {tuple(down.shape)} for a layer of "
            f"{' x '.join(map(str, shape))}; the file was made for another base model"
        )
    return {
        f"{path}.lora_down.weight": down.float().reshape(rank, *shape[1:]),
        f"{path}.lora_up.weight": up.float().reshape(shape[0], rank, *(1,) * (len(shape) - 2)),
        f"{path}.alpha": torch.tensor(float(rank) if alpha is None else float(alpha)),
    }


def same_weights(down: tuple[int, ...], layer: tuple[int, ...]) -> bool:
    """Return whether two shapes (in, ...) are equal apart from a 1x1 kernel."""

    def significant(shape: tuple[int, ...]) -> tuple[int, ...]:
        return shape[:1] if all(side == 1 for side in shape[1:]) else shape

    return significant(tuple(down)) == significant(tuple(layer))


def explain_unknown(tensors: Mapping[str, Tensor], unknown: list[str], layers: int, architecture: str) -> str:
    """Return a message that says what kind of file has such keys."""
    names = " and ".join(f"{prefix}_..." for prefix in _prefixes(architecture).values())
    style = "diffusers' (transformer. keys) or LyCORIS'" if is_transformer(architecture) else "kohya-format"
    expected = f"expected a {style} LoRA for {architecture} ({names} keys)"
    if not tensors:
        return f"the file holds no tensors; {expected}"
    for mark, kind in (*_OTHER_KINDS.get(architecture, ()), *_OTHER_FILES):
        if any(mark in key for key in tensors):
            return f"this is {kind}, which this base model cannot load; {expected}"
    examples = ", ".join(unknown[:3]) + (", ..." if len(unknown) > 3 else "")
    if any(key.startswith(("lora_unet_", "lora_te")) for key in tensors):
        return (
            f"the base model has no layers for {examples} ({layers} layers in the file): it was made for another model"
        )
    return f"this is no LoRA file (it holds {examples}); {expected}"
