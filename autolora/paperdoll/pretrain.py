"""Trains the weights of the synthetic test world from seeds: `python -m autolora.paperdoll.pretrain`."""

from __future__ import annotations

import argparse
import json
import random
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import cast

import numpy as np
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from autolora.paperdoll import weights
from autolora.paperdoll.attribute_classifier import HEADS, AttributeNet
from autolora.paperdoll.corpus import Drawing, base_caption, base_picture, mixed_looks, soften, vae_pictures
from autolora.paperdoll.drawing import draw
from autolora.paperdoll.fit import fit
from autolora.paperdoll.look import Look
from autolora.paperdoll.networks import CLIP_CONFIG, make_scheduler, make_unet, make_vae, text_encoder_of
from autolora.paperdoll.tokenizer import build_tokenizer, save_tokenizer

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
POOL = 40_000  # encoded drawings that the base model is trained on
# From this step on the loss of faces has more weight, and in the last stage that of mouths and bows. Otherwise the base
# model would never learn the words for such small details.
FACES_FROM = 2600
DETAIL_STEPS = 3500
STEPS = {"vae": 9000, "decoder": 4000, "clip": 1800, "base": 6500, "oracle": 3000}


def to_tensor(images: list[Image.Image]) -> Tensor:
    """Convert images to (B, 3, H, W) in [-1, 1] on the training device."""
    stacked = np.stack([np.asarray(image) for image in images])
    return torch.from_numpy(stacked).permute(0, 3, 1, 2).to(DEVICE).float() / 127.5 - 1


def reconstruction_loss(decoded: Tensor, pixels: Tensor) -> Tensor:
    """Return squared plus absolute error, with up to five times the weight on fine detail, such as faces and marks."""
    detail = (pixels - F.avg_pool2d(pixels, 5, 1, 2, count_include_pad=False)).abs().amax(1, keepdim=True)
    weight = 1 + 4 * detail.clamp(max=1)
    error = decoded - pixels
    return ((error.square() + 0.1 * error.abs()) * weight).mean()


def train_vae(build: Path, steps: int) -> None:
    """Train the VAE and write its folder."""
    torch.manual_seed(1)
    vae = make_vae().to(DEVICE)

    def loss_at(step: int, shard: int) -> Tensor:
        pixels = to_tensor(vae_pictures(random.Random(f"vae-{step}")))
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
    """Train the decoder further without changing the latents, so that the base model can train at the same time."""
    vae = AutoencoderKL.from_pretrained(build / "vae", torch_dtype=torch.float32).to(DEVICE)
    vae.encoder.requires_grad_(False)
    vae.quant_conv.requires_grad_(False)

    def loss_at(step: int, shard: int) -> Tensor:
        pixels = to_tensor(vae_pictures(random.Random(f"decoder-{step}")))
        noise = torch.Generator(DEVICE).manual_seed(step)
        with torch.autocast(DEVICE.type, torch.bfloat16):
            with torch.no_grad():
                latents = vae.encode(pixels).latent_dist.sample(noise)
            decoded = vae.decode(latents).sample.float()
        return reconstruction_loss(decoded, pixels)

    fit("decoder", vae, loss_at, steps=steps, lr=1e-3, build=build)
    vae.half().save_pretrained(build / "decoder")


@torch.inference_mode()
def encode_pool(vae: AutoencoderKL, count: int) -> tuple[Tensor, list[Drawing]]:
    """Encode new drawings; return unscaled latents (count, C, 8, 8) and the drawings."""
    latents, pool = [], []
    for start in range(0, count, 64):
        rng = random.Random(f"pool-{start}")
        batch = [base_picture(rng) for _ in range(min(64, count - start))]
        latents.append(vae.encode(to_tensor([draw(drawing.look, rng) for drawing in batch])).latent_dist.mean)
        pool += batch
    return torch.cat(latents), pool


def train_base(build: Path, steps: int) -> None:
    """Train UNet and text encoder together on the VAE's latents and write the pipeline folder.

    The text encoder starts from the CLIP's text tower, as Stable Diffusion's does, so words have a meaning from the
    first step.
    """
    torch.manual_seed(2)
    vae = AutoencoderKL.from_pretrained(build / "vae", torch_dtype=torch.float32).to(DEVICE)
    tokenizer, scheduler = save_tokenizer(build / "tokenizer"), make_scheduler()
    text_encoder = text_encoder_of(load_file(build / "clip" / "open_clip_model.safetensors"))
    both = nn.ModuleDict({"unet": make_unet(), "text": text_encoder}).to(DEVICE)
    latents, pool = encode_pool(vae, POOL)
    latents = latents.clone() * vae.config.scaling_factor
    face = torch.ones(8, 8, device=DEVICE)
    face[2:5, 2:6] = 3
    details = face.clone()
    details[:3, 4:6] = 4  # the bow
    details[4, 3:5] = 40  # the mouth

    def loss_at(name: str, step: int, shard: int) -> Tensor:
        rng = random.Random(f"{name}-{step}-{shard}")
        gen = torch.Generator(DEVICE).manual_seed(2 * step + shard)
        picks = [rng.randrange(POOL) for _ in range(24)]
        captions = ["" if rng.random() < 0.1 else base_caption(pool[i], rng) for i in picks]
        ids = tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids.to(DEVICE)
        clean = latents[picks]
        noise = torch.randn(clean.shape, generator=gen, device=DEVICE)
        t = torch.randint(0, 1000, (len(picks),), generator=gen, device=DEVICE)
        predicted = both["unet"](scheduler.add_noise(clean, noise, t), t, both["text"](ids).last_hidden_state).sample
        error = (predicted - scheduler.get_velocity(clean, noise, t)).square()
        if name == "details":
            error = error * details
        elif step >= FACES_FROM:
            error = error * face
        return cast(Tensor, error.mean())

    fit("base", both, partial(loss_at, "base"), steps=steps, lr=1.5e-3, build=build, shards=2)
    fit("details", both, partial(loss_at, "details"), steps=DETAIL_STEPS, lr=1e-3, build=build, shards=2)
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
    # Without this, the text encoder alone would be loaded in half precision.
    config = build / "base" / "text_encoder" / "config.json"
    config.write_text(config.read_text("utf-8").replace('"float16"', '"float32"'), "utf-8")


def train_clip(build: Path, steps: int) -> None:
    """Train the scoring CLIP on looks without and with marks, and write its open_clip folder."""
    import open_clip

    torch.manual_seed(3)
    tokenizer = build_tokenizer()
    CLIP_CONFIG["text_cfg"]["vocab_size"] = len(tokenizer)  # type: ignore[index]
    clip = open_clip.CLIP(**CLIP_CONFIG, quick_gelu=False).to(DEVICE)

    def loss_at(step: int, shard: int) -> Tensor:
        rng = random.Random(f"clip-{step}")
        looks = mixed_looks(rng, 96)
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


def train_attribute_classifier(build: Path, steps: int) -> None:
    """Train the attribute classifier on drawings; a mark's colour counts only if the mark is drawn."""
    torch.manual_seed(4)
    net = AttributeNet().to(DEVICE)

    def loss_at(step: int, shard: int) -> Tensor:
        rng = random.Random(f"oracle-{step}")
        looks = mixed_looks(rng, 64)
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
    """Return the class index of a head for a look; -1 if the look does not show it."""
    if head in look.values:
        return values.index(look.values[head])
    if look.marks is None:
        return -1 if head.endswith("_color") else values.index("none")
    value = getattr(look.marks, head)
    has_mark = getattr(look.marks, head.removesuffix("_color")) != "none"
    return values.index(value) if has_mark or not head.endswith("_color") else -1


STAGES: dict[str, Callable[[Path, int], None]] = {
    "vae": train_vae,
    "decoder": train_decoder,
    "clip": train_clip,
    "base": train_base,
    "oracle": train_attribute_classifier,
}


def main() -> None:
    """Run the stages in order and install the result; each stage can be resumed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--build", type=Path, default=Path("build/paperdoll"), help="folder of unfinished work")
    parser.add_argument("--out", type=Path, default=weights.WEIGHTS, help="folder of finished weights")
    parser.add_argument("--stage", choices=STAGES, action="append", help="only these stages (default: all)")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    for name in args.stage or STAGES:
        STAGES[name](args.build, STEPS[name])
    install(args.build, args.out)


def install(build: Path, out: Path) -> None:
    """Copy finished weights into the weights folder; the base model gets the VAE with the further trained decoder."""
    for source, target in (("base", "base"), ("decoder", "base/vae"), ("clip", "clip")):
        if (build / source).is_dir():
            shutil.copytree(build / source, out / target, dirs_exist_ok=True)
    if (build / "oracle.safetensors").exists():
        out.mkdir(parents=True, exist_ok=True)
        shutil.copy2(build / "oracle.safetensors", out / "oracle.safetensors")


if __name__ == "__main__":
    main()
