"""The groups of layers that an adapter can change; `adapter.targets` in the config names some of them.

A new group is one more entry of `TARGETS`.
"""

from __future__ import annotations

# Suffixes of layer paths: diffusers' names in UNets and transformers, transformers' names in CLIP text encoders.
TARGETS: dict[str, tuple[str, ...]] = {
    "attention": ("to_q", "to_k", "to_v", "to_out.0", "to_add_out", "q_proj", "k_proj", "v_proj", "out_proj"),
    "feed_forward": (
        *("ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2", "fc1", "fc2"),
        *("proj_mlp", "feed_forward.w1", "feed_forward.w2", "feed_forward.w3"),
    ),
    "projections": ("proj_in", "proj_out"),
    "conv": ("conv1", "conv2", "conv_shortcut", "time_emb_proj", "samplers.0.conv"),
}
LINEAR = ("attention", "feed_forward", "projections")  # the default: linear layers and 1x1 convolutions


def in_text_encoder(path: str) -> bool:
    """Return whether a layer belongs to a text encoder; a model may have several."""
    return path.startswith("text_encoder")
