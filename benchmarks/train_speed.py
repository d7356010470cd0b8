"""Training speed against a plain diffusers + peft loop: same pictures, same model, same machine, one run.

    python benchmarks/train_speed.py

The plain loop is measured twice: encoding pictures and captions in every step, and with both cached as autolora does.
Rounds of all three alternate, so that whatever else the machine does hits them alike; medians are compared.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from peft import LoraConfig
from torch.nn import functional as F
from transformers import CLIPTextModel, CLIPTokenizer

from autolora.adapters.adapter_set import attach
from autolora.adapters.lora import LoRA
from autolora.data.concepts import DatasetSettings, load_dataset
from autolora.data.sources import load_pixels
from autolora.models import load_model
from autolora.models.base import ModelSettings
from autolora.optim.optimizers import AdamW
from autolora.paperdoll.weights import BASE, QUICKSTART
from autolora.provenance import provenance
from autolora.train.batches import LatentCache, PromptCache
from autolora.train.loop import Assignment, Bench, Slot, train_step
from autolora.train.run import Run, TrainSettings

SUFFIXES = ["to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out"]


def plain_loop(dim: int, batch_size: int, cached: bool) -> Callable[[int], None]:
    """The loop of diffusers' text-to-image LoRA example, on peft, reduced to its arithmetic."""
    unet = UNet2DConditionModel.from_pretrained(BASE / "unet", torch_dtype=torch.float32).requires_grad_(False)
    vae = AutoencoderKL.from_pretrained(BASE / "vae", torch_dtype=torch.float32).requires_grad_(False)
    text = CLIPTextModel.from_pretrained(BASE / "text_encoder", torch_dtype=torch.float32).requires_grad_(False)
    tokenizer = CLIPTokenizer.from_pretrained(BASE / "tokenizer")
    scheduler = DDIMScheduler.from_pretrained(BASE / "scheduler")
    unet.add_adapter(LoraConfig(r=dim, lora_alpha=dim // 2, target_modules=SUFFIXES, init_lora_weights="gaussian"))
    parameters = [p for p in unet.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4)
    pictures = load_dataset(DatasetSettings(path=str(QUICKSTART))).pictures
    pixels = torch.stack([torch.from_numpy(load_pixels(p.path, 64).copy()).permute(2, 0, 1) for p in pictures])
    pixels = pixels.float() / 127.5 - 1

    @torch.no_grad()
    def encode(picks: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        latents = vae.encode(pixels[picks]).latent_dist.sample() * vae.config.scaling_factor
        captions = [pictures[i].caption for i in picks]
        ids = tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids
        return latents, text(ids).last_hidden_state

    stored = encode(list(range(len(pictures)))) if cached else None

    def steps(count: int) -> None:
        for _ in range(count):
            picks = torch.randint(0, len(pictures), (batch_size,)).tolist()
            latents, context = (stored[0][picks], stored[1][picks]) if stored else encode(picks)
            noise, t = torch.randn_like(latents), torch.randint(0, 1000, (batch_size,))
            predicted = unet(scheduler.add_noise(latents, noise, t), t, context).sample
            loss = F.mse_loss(predicted, scheduler.get_velocity(latents, noise, t))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

    return steps


def our_loop(dim: int, batch_size: int) -> Callable[[int], None]:
    """autolora's own step, with captions as they are so that both loops cache the same."""
    model, dataset = load_model(ModelSettings()), load_dataset(DatasetSettings(path=str(QUICKSTART)))
    adapter = LoRA(dim=dim, alpha=dim / 2)
    settings = TrainSettings(batch_size=batch_size, shuffle_tags=False, min_snr_gamma=None)
    cache = Path("runs/.cache/latents")
    bench = Bench(model, attach(model.modules, adapter), dataset, LatentCache(model, cache), PromptCache(model))
    slot = Slot(0, Assignment(Run("speed", adapter, AdamW(), train=settings)), bench)

    def steps(count: int) -> None:
        for _ in range(count):
            train_step(bench, {0: slot})

    return steps


def main() -> None:
    """Measure, print and write the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--dim", type=int, default=16)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=Path("studies/results/speed/train_speed.json"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    loops = {
        "autolora": our_loop(args.dim, args.batch_size),
        "plain, cached": plain_loop(args.dim, args.batch_size, cached=True),
        "plain, uncached": plain_loop(args.dim, args.batch_size, cached=False),
    }
    seconds: dict[str, list[float]] = {name: [] for name in loops}
    for number in range(args.rounds + 1):
        for name, steps in loops.items():
            began = time.perf_counter()
            steps(args.steps)
            if number:  # the first round warms up
                seconds[name].append(time.perf_counter() - began)
    rates = {name: args.steps / statistics.median(values) for name, values in seconds.items()}
    result = provenance() | {
        "optimizer steps per second": {name: round(rate, 2) for name, rate in rates.items()},
        "ratio to plain, cached": round(rates["autolora"] / rates["plain, cached"], 3),
        "ratio to plain, uncached": round(rates["autolora"] / rates["plain, uncached"], 3),
        "batch_size": args.batch_size,
        "dim": args.dim,
        "threads": args.threads,
        "rounds": args.rounds,
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
