"""Derives the keys and shapes of LoRA files from the rules of other programs, without autolora or diffusers.

    python -m tests.golden.derive

Layers: SD 1.x is the UNet of Rombach et al. (2022) in diffusers' names, which kohya's sd-scripts use; SD 2.x is the
same with linear projections. SDXL is the UNet of Podell et al. (2023) in the names of its own code, where an input
block is a resnet (0) and an attention (1), or a downsampler (`op`). The text encoders are OpenAI's ViT-L and
open_clip's ViT-H and ViT-bigG in transformers' names. The names of parts are LyCORIS'.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).parent
DIM, CONV_DIM = 4, 2
Shape = tuple[int, ...]
Layers = dict[str, Shape]
_RESNET = {
    "diffusers": ("conv1", "time_emb_proj", "conv2", "conv_shortcut"),
    "sgm": ("in_layers_2", "emb_layers_1", "out_layers_3", "skip_connection"),
}
ARCHITECTURES = ("sd1", "sd2", "sdxl")
KINDS = ("lora", "locon", "dylora", "dora", "loha", "lokr", "ia3")


def transformer(name: str, width: int, context: int, depth: int, linear: bool) -> Iterator[tuple[str, Shape]]:
    """A spatial transformer: projections around blocks of self-attention, cross-attention and gated feed-forward."""
    pixel = () if linear else (1, 1)
    yield f"{name}_proj_in", (width, width, *pixel)
    yield f"{name}_proj_out", (width, width, *pixel)
    for block in (f"{name}_transformer_blocks_{i}" for i in range(depth)):
        for attention, keys in (("attn1", width), ("attn2", context)):
            yield f"{block}_{attention}_to_q", (width, width)
            yield f"{block}_{attention}_to_k", (width, keys)
            yield f"{block}_{attention}_to_v", (width, keys)
            yield f"{block}_{attention}_to_out_0", (width, width)
        yield f"{block}_ff_net_0_proj", (8 * width, width)
        yield f"{block}_ff_net_2", (width, 4 * width)


def resnet(name: str, inside: int, outside: int, style: str) -> Iterator[tuple[str, Shape]]:
    """A resnet: two convolutions, the time projection, and a shortcut where the width changes."""
    first, time, second, shortcut = _RESNET[style]
    yield f"{name}_{first}", (outside, inside, 3, 3)
    yield f"{name}_{time}", (outside, 1280)
    yield f"{name}_{second}", (outside, outside, 3, 3)
    if inside != outside:
        yield f"{name}_{shortcut}", (outside, inside, 1, 1)


def sd1_unet(context: int = 768, linear: bool = False) -> Layers:
    """The UNet of SD 1.x: widths 320, 640, 1280 and 1280; of the innermost blocks only the middle one has attention."""
    layers: list[tuple[str, Shape]] = []
    widths, before = (320, 640, 1280, 1280), 320
    skipped = [320]
    for block, width in enumerate(widths):
        for index in range(2):
            layers += resnet(f"lora_unet_down_blocks_{block}_resnets_{index}", before, width, "diffusers")
            if block < 3:
                layers += transformer(f"lora_unet_down_blocks_{block}_attentions_{index}", width, context, 1, linear)
            before = width
            skipped.append(width)
        if block < 3:
            layers.append((f"lora_unet_down_blocks_{block}_downsamplers_0_conv", (width, width, 3, 3)))
            skipped.append(width)
    for index in range(2):
        layers += resnet(f"lora_unet_mid_block_resnets_{index}", 1280, 1280, "diffusers")
    layers += transformer("lora_unet_mid_block_attentions_0", 1280, context, 1, linear)
    for block, width in enumerate(reversed(widths)):
        for index in range(3):
            name = f"lora_unet_up_blocks_{block}_resnets_{index}"
            layers += resnet(name, before + skipped.pop(), width, "diffusers")
            if block > 0:
                layers += transformer(f"lora_unet_up_blocks_{block}_attentions_{index}", width, context, 1, linear)
            before = width
        if block < 3:
            layers.append((f"lora_unet_up_blocks_{block}_upsamplers_0_conv", (width, width, 3, 3)))
    return dict(layers)


def sdxl_unet() -> Layers:
    """The UNet of SDXL: widths 320, 640 and 1280 with 0, 2 and 10 transformer blocks; the modules are numbered."""
    layers: list[tuple[str, Shape]] = []
    levels, before, number = ((320, 0), (640, 2), (1280, 10)), 320, 1
    skipped = [320]
    for level, (width, depth) in enumerate(levels):
        for _ in range(2):
            name = f"lora_unet_input_blocks_{number}"
            layers += resnet(f"{name}_0", before, width, "sgm")
            if depth:
                layers += transformer(f"{name}_1", width, 2048, depth, True)
            before, number = width, number + 1
            skipped.append(width)
        if level < 2:
            layers.append((f"lora_unet_input_blocks_{number}_0_op", (width, width, 3, 3)))
            number += 1
            skipped.append(width)
    layers += resnet("lora_unet_middle_block_0", 1280, 1280, "sgm")
    layers += transformer("lora_unet_middle_block_1", 1280, 2048, 10, True)
    layers += resnet("lora_unet_middle_block_2", 1280, 1280, "sgm")
    number = 0
    for level, (width, depth) in enumerate(reversed(levels)):
        for index in range(3):
            name = f"lora_unet_output_blocks_{number}"
            layers += resnet(f"{name}_0", before + skipped.pop(), width, "sgm")
            if depth:
                layers += transformer(f"{name}_1", width, 2048, depth, True)
            if index == 2 and level < 2:
                layers.append((f"{name}_2_conv", (width, width, 3, 3)))
            before, number = width, number + 1
    return dict(layers)


def text_encoder(prefix: str, width: int, depth: int) -> Layers:
    """The layers of a CLIP text encoder."""
    layers: Layers = {}
    for layer in (f"{prefix}_text_model_encoder_layers_{i}" for i in range(depth)):
        layers |= {f"{layer}_self_attn_{part}_proj": (width, width) for part in ("q", "k", "v", "out")}
        layers |= {f"{layer}_mlp_fc1": (4 * width, width), f"{layer}_mlp_fc2": (width, 4 * width)}
    return layers


def layers_of(architecture: str) -> Layers:
    """Every layer that a file of that architecture may change."""
    if architecture == "sd1":
        return {**sd1_unet(), **text_encoder("lora_te", 768, 12)}
    if architecture == "sd2":
        return {**sd1_unet(1024, linear=True), **text_encoder("lora_te", 1024, 23)}
    return {**sdxl_unet(), **text_encoder("lora_te1", 768, 12), **text_encoder("lora_te2", 1280, 32)}


def is_convolutional(name: str) -> bool:
    """Whether a layer is in a resnet or sampler; plain LoRA does not train these."""
    names = (*_RESNET["diffusers"], *_RESNET["sgm"], "samplers_0_conv", "_op", "_2_conv")
    return name.endswith(names)


def low_rank(shape: Shape, dim: int) -> dict[str, Shape]:
    """The parts of LoRA in kohya's format: the first factor has the kernel."""
    pixel = (1,) * len(shape[2:])
    return {"lora_down.weight": (dim, *shape[1:]), "lora_up.weight": (shape[0], dim, *pixel), "alpha": ()}


def loha(shape: Shape, dim: int) -> dict[str, Shape]:
    """The parts of LoHa: the second factors hold inputs times kernel pixels."""
    columns = flat(shape)
    first = {"hada_w1_a": (shape[0], dim), "hada_w1_b": (dim, columns)}
    return {**first, "hada_w2_a": (shape[0], dim), "hada_w2_b": (dim, columns), "alpha": ()}


def near_root(number: int) -> tuple[int, int]:
    """LyCORIS' factorization: the two divisors nearest to the square root, the smaller one first."""
    small = next(d for d in range(int(number**0.5), 0, -1) if number % d == 0)
    return small, number // small


def lokr(shape: Shape, dim: int) -> dict[str, Shape]:
    """The parts of LoKr: the large factor is split if twice the dim is less than its longer side."""
    (small_out, large_out), (small_in, large_in) = near_root(shape[0]), near_root(shape[1])
    parts: dict[str, Shape] = {"lokr_w1": (small_out, small_in)}
    kernel = shape[2:]
    if dim < max(large_out, large_in) / 2:
        parts |= {"lokr_w2_a": (large_out, dim), "lokr_w2_b": (dim, flat((0, large_in, *kernel)))}
    else:
        parts["lokr_w2"] = (large_out, large_in, *kernel)
    return parts | {"alpha": ()}


def ia3(name: str, shape: Shape) -> dict[str, Shape]:
    """The parts of IA3: a factor per output of keys and values, per input of a feed-forward's second layer."""
    if name.endswith(("_to_k", "_to_v")):
        return {"weight": shape[:1], "on_input": ()}
    if name.endswith(("_ff_net_2", "_mlp_fc2")):
        return {"weight": shape[1:2], "on_input": ()}
    return {}


def flat(shape: Shape) -> int:
    """The number of inputs times the pixels of a kernel."""
    count = 1
    for side in shape[1:]:
        count *= side
    return count


def parts_of(kind: str, name: str, shape: Shape) -> dict[str, Shape]:
    """The parts of a layer in a file of a kind of adapter."""
    if kind != "locon" and is_convolutional(name):
        return {}
    dim = CONV_DIM if shape[2:] == (3, 3) else DIM
    if kind == "dora":
        return {**low_rank(shape, dim), "dora_scale": (shape[0], *(1,) * (len(shape) - 1))}
    if kind == "ia3":
        return ia3(name, shape)
    return {"loha": loha, "lokr": lokr}.get(kind, low_rank)(shape, dim)


def derive(architecture: str, kind: str) -> str:
    """One line per key, sorted: `key 4x320`; a scalar has no sides."""
    lines = [
        f"{name}.{part} {'x'.join(map(str, sides))}".rstrip()
        for name, shape in layers_of(architecture).items()
        for part, sides in parts_of(kind, name, shape).items()
    ]
    return "\n".join(sorted(lines)) + "\n"


def read(architecture: str, kind: str) -> str:
    """The stored list."""
    return gzip.decompress((HERE / f"{architecture}-{kind}.txt.gz").read_bytes()).decode()


def main() -> None:
    """Write all lists."""
    for architecture in ARCHITECTURES:
        for kind in KINDS:
            content = gzip.compress(derive(architecture, kind).encode(), mtime=0)
            (HERE / f"{architecture}-{kind}.txt.gz").write_bytes(content)


if __name__ == "__main__":
    main()
