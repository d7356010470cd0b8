"""Draws with an exported LoRA by diffusers alone; nothing of autolora is imported.

    python examples/diffusers_alone.py BASE LORA.safetensors OUT.png "1girl, banin, belam" "1girl"

BASE is a diffusers folder (the embedded world's: `autolora/paperdoll/weights/base`). Rows: the prompts as the base
model draws them, then with the LoRA, at the same seeds.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from PIL import Image


def main() -> None:
    """Load, draw both rows, write the grid."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", type=Path)
    parser.add_argument("lora", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("prompts", nargs="+")
    parser.add_argument("--each", type=int, default=4, help="pictures of each prompt")
    parser.add_argument("--weight", type=float, default=1.0)
    args = parser.parse_args()
    pipeline = StableDiffusionPipeline.from_pretrained(args.base, torch_dtype=torch.float32, safety_checker=None)
    prompts = [prompt for prompt in args.prompts for _ in range(args.each)]

    def row() -> list[Image.Image]:
        generators = [torch.Generator().manual_seed(seed) for seed in range(len(prompts))]
        return list(pipeline(prompts, num_inference_steps=12, guidance_scale=4.0, generator=generators).images)

    plain = row()
    pipeline.load_lora_weights(args.lora.parent, weight_name=args.lora.name, adapter_name="lora")
    pipeline.set_adapters("lora", args.weight)
    width, height = plain[0].size
    grid = Image.new("RGB", (width * len(prompts), 2 * height))
    for y, pictures in enumerate((plain, row())):
        for x, picture in enumerate(pictures):
            grid.paste(picture, (x * width, y * height))
    grid.save(args.out)


if __name__ == "__main__":
    main()
