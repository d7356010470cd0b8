"""Key names of LoRA files: autolora's dotted paths to and from kohya's, which every common program reads."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn

from autolora.adapters.base import State, shape_of
from autolora.adapters.deltas import FACTORS, PARTS, delta_weight, layer_scale, parts_by_layer, split_key
from autolora.adapters.sgm import sgm_path
from autolora.adapters.targets import in_text_encoder
from autolora.errors import ExportError

# By architecture, then by the model's root module.
PREFIXES: dict[str, dict[str, str]] = {
    "sd1": {"unet": "lora_unet", "text_encoder": "lora_te"},
    "sd2": {"unet": "lora_unet", "text_encoder": "lora_te"},
    "sdxl": {"unet": "lora_unet", "text_encoder": "lora_te1", "text_encoder_2": "lora_te2"},
    "sd3": {"transformer": "lycoris", "text_encoder": "lora_te1", "text_encoder_2": "lora_te2"},
    "flux": {"transformer": "lycoris", "text_encoder": "lora_te1"},
    "z_image": {"transformer": "lycoris"},
}
_UNET_PATHS = {"sdxl": sgm_path}  # below the prefix; others keep diffusers'
Shapes = Mapping[str, tuple[int, ...]]  # a layer's path to its weight's shape
Weights = Mapping[str, Tensor]  # a layer's path to its weight

# Marks of files that are for something else than an architecture.
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
    """Whether it has a transformer in the place of a UNet: its LoRA files have diffusers' names, not kohya's."""
    return "transformer" in _prefixes(architecture)


def kohya_name(path: str, architecture: str) -> str:
    """The file's name of a layer: `unet.mid_block.attentions.0.proj_in` -> `lora_unet_mid_block_attentions_0_proj_in`.

    SDXL's UNet: `lora_unet_middle_block_1_proj_in`. Files always say `text_model` below a text encoder; newer
    transformers versions leave that level out. Transformers have LyCORIS' names, `lycoris_layers_0_attention_to_q`, as
    kohya's are of the original code, where queries, keys and values are one layer.

    Raises:
        ExportError: the architecture has no names yet, or the path belongs to no adapted part of it.
    """
    prefixes = _prefixes(architecture)
    root, _, rest = path.partition(".")
    if root not in prefixes or not rest:
        raise ExportError(f"layer {path!r} is in none of {', '.join(prefixes)}")
    if in_text_encoder(path) and not rest.startswith("text_model."):
        rest = f"text_model.{rest}"
    if root == "unet":
        rest = _UNET_PATHS.get(architecture, str)(rest)
    return f"{prefixes[root]}_{rest.replace('.', '_')}"


def paths_by_name(paths: Iterable[str], architecture: str) -> dict[str, str]:
    """The model's layers by every name that files have for them: some programs write SDXL's in diffusers' names."""
    prefixes = _prefixes(architecture)
    own = [path for path in paths if path.partition(".")[0] in prefixes]
    other = {f"lora_{path.replace('.', '_')}": path for path in own if not in_text_encoder(path)}
    return other | {kohya_name(path, architecture): path for path in own}


def to_kohya(state: State, architecture: str) -> State:
    """Rename an adapter's tensors for a file; values and shapes (convolutions as (r, in, 1, 1)) stay.

    Raises:
        ExportError: a key is no LoRA part, or two layers would share a name.
    """
    renamed: State = {}
    for key, tensor in state.items():
        path, part = split_key(key)
        name = f"{kohya_name(path, architecture)}.{part}"
        if name in renamed:
            raise ExportError(f"two layers would be called {name} in the file")
        renamed[name] = tensor
    return renamed


def from_kohya(tensors: Mapping[str, Tensor], architecture: str, shapes: Shapes) -> State:
    """Rename a file's tensors to the paths of a model's layers, in float32, each layer with an alpha.

    `shapes` comes from `layer_shapes`. A missing alpha means scale 1, so it becomes the rank. 1 x 1 convolutions
    and linear layers stand in for each other, as in the programs that load such files.

    Raises:
        ExportError: another kind of file, layers that the model does not have, or shapes that do not fit it.
    """
    paths = paths_by_name(shapes, architecture)
    names = dict.fromkeys(key.partition(".")[0] for key in tensors)
    strange = [key for key in tensors if key.partition(".")[0] not in paths or key.partition(".")[2] not in FACTORS]
    if strange or not tensors:
        raise ExportError(_why_unknown(tensors, strange, len(names), architecture))
    state: State = {}
    for name in names:
        path = paths[name]
        down, up, alpha = (tensors.get(f"{name}.{part}") for part in FACTORS)
        if down is None or up is None:
            missing = FACTORS[0] if down is None else FACTORS[1]
            raise ExportError(f"{name} has no {missing}: the file is incomplete; export or download it again")
        if f"{path}.alpha" in state:
            raise ExportError(f"{name} is in the file under two names; programs read either, so export it again")
        state |= fit_to_layer(name, path, down, up, alpha, shapes[path])
    return state


def layers_of(modules: Mapping[str, nn.Module]) -> dict[str, nn.Linear | nn.Conv2d]:
    """Every linear and convolution layer by path, whether or not an adapter is attached."""
    return {
        f"{root_name}.{name}".removesuffix(".base"): module
        for root_name, root in modules.items()
        for name, module in root.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d)
    }


class LayerWeights(Mapping[str, Tensor]):
    """The weights of the same, each when it is asked for: quantized ones are restored then."""

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        self._layers = layers_of(modules)

    def __getitem__(self, path: str) -> Tensor:
        return self._layers[path].weight.detach()

    def __iter__(self) -> Iterator[str]:
        return iter(self._layers)

    def __len__(self) -> int:
        return len(self._layers)


def layer_weights(modules: Mapping[str, nn.Module]) -> Mapping[str, Tensor]:
    """The weights of the same."""
    return LayerWeights(modules)


def layer_shapes(modules: Mapping[str, nn.Module]) -> dict[str, tuple[int, ...]]:
    """The shapes of the same."""
    return {path: shape_of(layer) for path, layer in layers_of(modules).items()}


def layer_delta(state: State, path: str, weight: Tensor | None = None) -> Tensor:
    """A layer's change of weight in float32, (out, in) or (out, in * k * k), as in every program that loads it."""
    return delta_weight(_of_layer(state, path), weight)


def _of_layer(state: State, path: str) -> State:
    return {part: state[f"{path}.{part}"] for part in PARTS if f"{path}.{part}" in state}


def _rank(state: State, path: str) -> int:
    return state[f"{path}.lora_down.weight"].shape[0]


def scaled(state: State, weight: float) -> State:
    """The same adapter times a weight, by its alphas; every layer has one afterwards."""
    alphas = {
        f"{p}.alpha": layer_scale(_of_layer(state, p), _rank(state, p)) * weight * _rank(state, p)
        for p in layer_paths(state)
    }
    return {**state, **{key: torch.tensor(alpha, dtype=torch.float64) for key, alpha in alphas.items()}}


def layer_paths(state: State) -> list[str]:
    """The layers that an adapter changes."""
    return list(parts_by_layer(state))


def _prefixes(architecture: str) -> dict[str, str]:
    if architecture not in PREFIXES:
        known = ", ".join(PREFIXES)
        raise ExportError(f"no LoRA file names are known for architecture {architecture!r}; known: {known}")
    return PREFIXES[architecture]


def fit_to_layer(name: str, path: str, down: Tensor, up: Tensor, alpha: Tensor | None, shape: tuple[int, ...]) -> State:
    """One layer's tensors with the dimensions of the model's layer; `shape` is its weight's."""
    rank = down.shape[0] if down.dim() >= 2 else 0
    shaped = rank > 0 and up.dim() >= 2 and up.shape[1] == rank and up.numel() == rank * up.shape[0]
    if not shaped or up.shape[0] != shape[0] or not same_weights(down.shape[1:], shape[1:]):
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
    """Whether two shapes behind the outputs are alike but for sides of one pixel."""

    def significant(shape: tuple[int, ...]) -> tuple[int, ...]:
        return shape[:1] if all(side == 1 for side in shape[1:]) else shape

    return significant(tuple(down)) == significant(tuple(layer))


def _why_unknown(tensors: Mapping[str, Tensor], strange: list[str], layers: int, architecture: str) -> str:
    """What kind of file has such keys, as far as they tell."""
    names = " and ".join(f"{prefix}_..." for prefix in _prefixes(architecture).values())
    style = "diffusers' (transformer. keys) or LyCORIS'" if is_transformer(architecture) else "kohya-format"
    expected = f"expected a {style} LoRA for {architecture} ({names} keys)"
    if not tensors:
        return f"the file holds no tensors; {expected}"
    for mark, kind in (*_OTHER_KINDS.get(architecture, ()), *_OTHER_FILES):
        if any(mark in key for key in tensors):
            return f"this is {kind}, which this base model cannot take; {expected}"
    some = ", ".join(strange[:3]) + (", ..." if len(strange) > 3 else "")
    if any(key.startswith(("lora_unet_", "lora_te")) for key in tensors):
        return f"the base model has no layers for {some} ({layers} layers in the file): it was made for another model"
    return f"this is no LoRA file (it holds {some}); {expected}"
