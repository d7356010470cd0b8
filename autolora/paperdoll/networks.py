"""The architectures of the synthetic test world: VAE, UNet, text encoder, scheduler and CLIP."""

from __future__ import annotations

from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel

from autolora.paperdoll.tokenizer import MAX_TOKENS

LATENT_CHANNELS = 16
CLIP_CONFIG = {
    "embed_dim": 128,
    "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 24, "patch_size": None},
    "text_cfg": {
        "context_length": MAX_TOKENS,
        "vocab_size": 0,
        "hf_tokenizer_name": "tokenizer",
        "tokenizer_kwargs": {"strip_sep_token": False},
        "width": 128,
        "heads": 4,
        "layers": 3,
    },
}


def make_vae() -> AutoencoderKL:
    """Build a small 8x VAE: 64 px -> 8 x 8 latents."""
    return AutoencoderKL(
        block_out_channels=(16, 32, 64, 96),
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        norm_num_groups=8,
        sample_size=64,
        mid_block_add_attention=False,
    )


def make_scheduler() -> DDIMScheduler:
    """Build a scheduler for v-prediction with zero terminal SNR, so that few sampling steps reach every brightness."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=True,
        steps_offset=1,
    )


def text_encoder_of(clip: dict[str, Tensor]) -> CLIPTextModel:
    """Convert the text tower of an open_clip CLIP to the text encoder of diffusers and transformers."""
    vocabulary, width = clip["token_embedding.weight"].shape
    layers = sum(key.endswith("ln_1.weight") and key.startswith("transformer.") for key in clip)
    config = CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=MAX_TOKENS,
        projection_dim=width,
        hidden_act="gelu",
        bos_token_id=vocabulary - 2,
        eos_token_id=vocabulary - 1,
        pad_token_id=vocabulary - 1,
    )
    model = CLIPTextModel(config)
    state = {
        "embeddings.token_embedding.weight": clip["token_embedding.weight"],
        "embeddings.position_embedding.weight": clip["positional_embedding"],
    }
    pairs = {"ln_1": "layer_norm1", "ln_2": "layer_norm2", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}
    pairs["attn.out_proj"] = "self_attn.out_proj"
    for kind in ("weight", "bias"):
        state[f"final_layer_norm.{kind}"] = clip[f"ln_final.{kind}"]
        for index in range(layers):
            source, target = f"transformer.resblocks.{index}", f"encoder.layers.{index}"
            parts = clip[f"{source}.attn.in_proj_{kind}"].chunk(3)
            for name, part in zip(("q_proj", "k_proj", "v_proj"), parts, strict=True):
                state[f"{target}.self_attn.{name}.{kind}"] = part
            for theirs, ours in pairs.items():
                state[f"{target}.{ours}.{kind}"] = clip[f"{source}.{theirs}.{kind}"]
    model.load_state_dict({key: value.float() for key, value in state.items()})
    return model


def make_unet() -> UNet2DConditionModel:
    """Build a UNet with two levels on 8 x 8 latents and cross-attention at both levels."""
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        block_out_channels=(64, 128),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2,
        cross_attention_dim=128,
        attention_head_dim=4,
        norm_num_groups=16,
    )
