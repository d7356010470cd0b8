"""Reproduces the embedded world's weights from seeds: `python -m autolora.paperdoll.pretrain`."""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image, ImageDraw, ImageFilter
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTextConfig, CLIPTextModel

from autolora.paperdoll import weights
from autolora.paperdoll.drawing import draw
from autolora.paperdoll.fit import fit
from autolora.paperdoll.look import Known, Look, known_cast, nonsense_word, random_novel_look, sample_values
from autolora.paperdoll.oracle import HEADS, OracleNet
from autolora.paperdoll.tokenizer import MAX_TOKENS, build_tokenizer, save_tokenizer

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
LATENT_CHANNELS = 16
POOL = 40_000  # encoded drawings the base model learns from
STEPS = {"vae": 9000, "decoder": 6000, "base": 5000, "clip": 1800, "oracle": 3000}


def to_tensor(images: list[Image.Image]) -> Tensor:
    """Pictures -> (B, 3, H, W) in [-1, 1] on the training device."""
    stacked = np.stack([np.asarray(image) for image in images])
    return torch.from_numpy(stacked).permute(0, 3, 1, 2).to(DEVICE).float() / 127.5 - 1


@dataclass(frozen=True)
class Drawn:
    """A picture of the base model's world: its look, and the names that stand for parts of it."""

    look: Look
    names: tuple[Known, ...] = ()


def base_picture(rng: random.Random) -> Drawn:
    """Something the base model sees; a third of all show a character it knows by name, most of those in costume.

    As in real base models, that is what teaches it that a name stands for a look.
    """
    values, names = sample_values(rng), []
    people, costumes = known_cast()
    if rng.random() < 0.34:
        names.append(rng.choice(people))
        if rng.random() < 0.7:
            names.append(rng.choice(costumes))
    for known in names:
        values |= known.values
    return Drawn(Look(values), tuple(names))


def base_caption(drawn: Drawn, rng: random.Random) -> str:
    """A caption as the base model sees it: names, a share of the tags, shuffled, sometimes with a nonsense word."""
    count, *rest = drawn.look.tags()
    named = {tag for known in drawn.names for tag in drawn.look.tags_of(known.values)}
    share = rng.choice((0.0, 0.3, 0.6, 1.0, 1.0))
    kept = [tag for tag in rest if rng.random() < (0.15 if tag in named else share)]
    rng.shuffle(kept)
    if rng.random() < 0.05:
        kept.insert(rng.randint(0, len(kept)), nonsense_word(rng))
    lead = [known.name for known in drawn.names]
    return ", ".join([count, *lead, *kept] if rng.random() < 0.97 else [*lead, *kept])


def clutter(image: Image.Image, rng: random.Random) -> Image.Image:
    """Random shapes drawn over a picture, so that the VAE keeps what it has never seen."""
    pen = ImageDraw.Draw(image)
    for _ in range(rng.randint(1, 6)):
        color = tuple(rng.randint(0, 255) for _ in range(3))
        x, y, r = rng.uniform(0, 64), rng.uniform(0, 64), rng.uniform(1.5, 9)
        points = [(x + rng.uniform(-r, r), y + rng.uniform(-r, r)) for _ in range(3)]
        kind = rng.randrange(3)
        if kind == 0:
            pen.polygon(points, fill=color)
        elif kind == 1:
            pen.ellipse([x - r / 2, y - r / 2, x + r / 2, y + r / 2], fill=color)
        else:
            pen.line(points, fill=color, width=rng.randint(1, 3))
    return image


def make_vae() -> AutoencoderKL:
    """A small 8x VAE: 64 px -> 8 x 8 latents."""
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


def vae_batch(name: str, step: int) -> Tensor:
    """Pictures for the VAE, (16, 3, 64, 64): as real VAEs it sees more of the world than the base model ever will.

    Base looks, freely marked ones, and a third of all under random shapes.
    """
    rng = random.Random(f"{name}-{step}")
    looks = [random_novel_look(rng) if i % 2 else Look(sample_values(rng)) for i in range(16)]
    images = [draw(look, rng) for look in looks]
    return to_tensor([clutter(image, rng) if i % 3 == 2 else image for i, image in enumerate(images)])


def reconstruction_loss(decoded: Tensor, pixels: Tensor) -> Tensor:
    """Squared and absolute error, up to five times as heavy where the picture has fine detail (faces, marks)."""
    detail = (pixels - F.avg_pool2d(pixels, 5, 1, 2, count_include_pad=False)).abs().amax(1, keepdim=True)
    weight = 1 + 4 * detail.clamp(max=1)
    error = decoded - pixels
    return ((error.square() + 0.1 * error.abs()) * weight).mean()


def train_vae(build: Path, steps: int) -> None:
    """Train the VAE and write its folder."""
    torch.manual_seed(1)
    vae = make_vae().to(DEVICE)

    def loss_at(step: int) -> Tensor:
        pixels = vae_batch("vae", step)
        noise = torch.Generator(DEVICE).manual_seed(step)
        with torch.autocast(DEVICE.type, torch.bfloat16):
            posterior = vae.encode(pixels).latent_dist
            mean, logvar = posterior.mean.float(), posterior.logvar.float()
            latents = mean + (0.5 * logvar).exp() * torch.randn(mean.shape, generator=noise, device=DEVICE)
            decoded = vae.decode(latents).sample.float()
        kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
        loss: Tensor = reconstruction_loss(decoded, pixels) + 1e-4 * kl
        return loss

    fit("vae", vae, loss_at, steps=steps, lr=2e-3, build=build)
    latents = encode_pool(vae, 512)[0]
    vae.register_to_config(scaling_factor=round(1 / float(latents.std()), 4))
    vae.half().save_pretrained(build / "vae")


def train_decoder(build: Path, steps: int) -> None:
    """Sharpen the decoder while the latents stay as they are, so that the base model may train meanwhile."""
    vae = AutoencoderKL.from_pretrained(build / "vae", torch_dtype=torch.float32).to(DEVICE)
    vae.encoder.requires_grad_(False)
    vae.quant_conv.requires_grad_(False)

    def loss_at(step: int) -> Tensor:
        pixels = vae_batch("decoder", step)
        noise = torch.Generator(DEVICE).manual_seed(step)
        with torch.autocast(DEVICE.type, torch.bfloat16):
            with torch.no_grad():
                latents = vae.encode(pixels).latent_dist.sample(noise)
            decoded = vae.decode(latents).sample.float()
        return reconstruction_loss(decoded, pixels)

    fit("decoder", vae, loss_at, steps=steps, lr=1e-3, build=build)
    vae.half().save_pretrained(build / "decoder")


@torch.inference_mode()
def encode_pool(vae: AutoencoderKL, count: int) -> tuple[Tensor, list[Drawn]]:
    """Unscaled latents (count, C, 8, 8) of fresh drawings, with what they show."""
    latents, pool = [], []
    for start in range(0, count, 64):
        rng = random.Random(f"pool-{start}")
        batch = [base_picture(rng) for _ in range(min(64, count - start))]
        latents.append(vae.encode(to_tensor([draw(drawn.look, rng) for drawn in batch])).latent_dist.mean)
        pool += batch
    return torch.cat(latents), pool


def make_scheduler() -> DDIMScheduler:
    """v-prediction with zero terminal SNR, so that few sampling steps reach every brightness."""
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


def make_text_encoder(vocabulary: int) -> CLIPTextModel:
    """A three-layer CLIP text model of width 128."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=vocabulary,
            hidden_size=128,
            intermediate_size=384,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=MAX_TOKENS,
            projection_dim=128,
            bos_token_id=vocabulary - 2,
            eos_token_id=vocabulary - 1,
            pad_token_id=vocabulary - 1,
        )
    )


def make_unet() -> UNet2DConditionModel:
    """A two-level UNet on 8 x 8 latents with cross-attention at both levels."""
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


def train_base(build: Path, steps: int) -> None:
    """Train UNet and text encoder together on the VAE's latents and write the pipeline folder."""
    torch.manual_seed(2)
    vae = AutoencoderKL.from_pretrained(build / "vae", torch_dtype=torch.float32).to(DEVICE)
    tokenizer, scheduler = save_tokenizer(build / "tokenizer"), make_scheduler()
    both = nn.ModuleDict({"unet": make_unet(), "text": make_text_encoder(len(tokenizer))}).to(DEVICE)
    latents, pool = encode_pool(vae, POOL)
    latents = latents.clone() * vae.config.scaling_factor
    abar = scheduler.alphas_cumprod.to(DEVICE)

    def loss_at(step: int) -> Tensor:
        rng = random.Random(f"base-{step}")
        gen = torch.Generator(DEVICE).manual_seed(step)
        picks = [rng.randrange(POOL) for _ in range(48)]
        captions = ["" if rng.random() < 0.1 else base_caption(pool[i], rng) for i in picks]
        ids = tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids.to(DEVICE)
        clean = latents[picks]
        noise = torch.randn(clean.shape, generator=gen, device=DEVICE)
        t = torch.randint(0, 1000, (len(picks),), generator=gen, device=DEVICE)
        predicted = both["unet"](scheduler.add_noise(clean, noise, t), t, both["text"](ids).last_hidden_state).sample
        target = scheduler.get_velocity(clean, noise, t)
        snr = abar[t] / (1 - abar[t])
        weight = snr.clamp(max=5) / (snr + 1) + 0.05  # Min-SNR (Hang et al. 2023); the floor trains the first step too
        loss: Tensor = ((predicted - target).square().mean((1, 2, 3)) * weight).mean()
        return loss

    fit("base", both, loss_at, steps=steps, lr=1.5e-3, build=build)
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=both["text"],
        tokenizer=tokenizer,
        unet=both["unet"],
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.to(torch.float16).save_pretrained(build / "base")
    config = build / "base" / "text_encoder" / "config.json"  # else the text encoder alone would load in half precision
    config.write_text(config.read_text("utf-8").replace('"float16"', '"float32"'), "utf-8")


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


def train_clip(build: Path, steps: int) -> None:
    """Train the scoring CLIP, on base looks and on freely marked ones, and write its open_clip folder."""
    import open_clip

    torch.manual_seed(3)
    tokenizer = build_tokenizer()
    CLIP_CONFIG["text_cfg"]["vocab_size"] = len(tokenizer)  # type: ignore[index]
    clip = open_clip.CLIP(**CLIP_CONFIG, quick_gelu=False).to(DEVICE)

    def loss_at(step: int) -> Tensor:
        rng = random.Random(f"clip-{step}")
        looks = [random_novel_look(rng) if i % 2 else Look(sample_values(rng)) for i in range(96)]
        captions = []
        for look in looks:
            tags = [tag for tag in look.tags() if rng.random() < 0.75]
            captions.append(", ".join(rng.sample(tags, len(tags))))
        ids = tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids.to(DEVICE)
        pixels = to_tensor([soften(draw(look, rng), rng) for look in looks])
        image, text, scale = clip(pixels, ids)
        logits = scale * image @ text.T
        labels = torch.arange(len(looks), device=DEVICE)
        return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2

    fit("clip", clip, loss_at, steps=steps, lr=1e-3, build=build)
    folder = build / "clip"
    tokenizer.save_pretrained(str(folder))
    preprocess = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "squash"}
    config = {"model_cfg": CLIP_CONFIG, "preprocess_cfg": preprocess}
    (folder / "open_clip_config.json").write_text(json.dumps(config, indent=2))
    state = {k: v.contiguous().half() if v.is_floating_point() else v for k, v in clip.state_dict().items()}
    save_file(state, folder / "open_clip_model.safetensors")


def soften(image: Image.Image, rng: random.Random) -> Image.Image:
    """The picture as a decoder might give it back: sometimes blurred, shrunk and grown again, noisy."""
    if rng.random() < 0.4:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.2, 0.9)))
    if rng.random() < 0.3:
        side = rng.randint(36, 60)
        image = image.resize((side, side), Image.Resampling.BILINEAR).resize((64, 64), Image.Resampling.BICUBIC)
    return image


def train_oracle(build: Path, steps: int) -> None:
    """Train the attribute reader on its own drawings; marks' colours count only where the mark is drawn."""
    torch.manual_seed(4)
    net = OracleNet().to(DEVICE)

    def loss_at(step: int) -> Tensor:
        rng = random.Random(f"oracle-{step}")
        looks = [random_novel_look(rng) if i % 2 else Look(sample_values(rng)) for i in range(64)]
        pixels = to_tensor([soften(draw(look, rng), rng) for look in looks])
        gen = torch.Generator(DEVICE).manual_seed(step)
        noise = torch.randn(pixels.shape, generator=gen, device=DEVICE)
        logits = net(pixels + noise * torch.rand(len(looks), 1, 1, 1, generator=gen, device=DEVICE) * 0.15)
        total = pixels.new_zeros(())
        for head, values in HEADS.items():
            labels = torch.tensor([label(look, head, values) for look in looks], device=DEVICE)
            total = total + F.cross_entropy(logits[head], labels, ignore_index=-1)
        return total / len(HEADS)

    fit("oracle", net, loss_at, steps=steps, lr=2e-3, build=build)
    state = {k: v.contiguous().half() if v.is_floating_point() else v for k, v in net.state_dict().items()}
    save_file(state, build / "oracle.safetensors")


def label(look: Look, head: str, values: tuple[str, ...]) -> int:
    """The class index of a head for a look; -1 where the picture does not show it."""
    if head in look.values:
        return values.index(look.values[head])
    if look.marks is None:
        return -1 if head.endswith("_color") else values.index("none")
    value = getattr(look.marks, head)
    shown = getattr(look.marks, head.removesuffix("_color")) != "none"
    return values.index(value) if shown or not head.endswith("_color") else -1


STAGES: dict[str, Callable[[Path, int], None]] = {
    "vae": train_vae,
    "decoder": train_decoder,
    "base": train_base,
    "clip": train_clip,
    "oracle": train_oracle,
}


def main() -> None:
    """Run the stages in order, each resumable, and install the result where asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--build", type=Path, default=Path("build/paperdoll"), help="where unfinished work lies")
    parser.add_argument("--out", type=Path, default=weights.WEIGHTS, help="where finished weights go")
    parser.add_argument("--stage", choices=STAGES, action="append", help="only these stages (default: all)")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    for name in args.stage or STAGES:
        STAGES[name](args.build, STEPS[name])
    install(args.build, args.out)


def install(build: Path, out: Path) -> None:
    """Copy what is finished into the package's weights folder; the base gets the sharpened decoder."""
    import shutil

    for source, target in (("base", "base"), ("decoder", "base/vae"), ("clip", "clip")):
        if (build / source).is_dir():
            shutil.copytree(build / source, out / target, dirs_exist_ok=True)
    if (build / "oracle.safetensors").exists():
        out.mkdir(parents=True, exist_ok=True)
        shutil.copy2(build / "oracle.safetensors", out / "oracle.safetensors")


if __name__ == "__main__":
    main()
