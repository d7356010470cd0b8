"""Renders with an exported LoRA by diffusers alone, without autolora.

    python examples/diffusers_alone.py BASE LORA.safetensors OUT.png "1girl, banin, belam" "1girl"

BASE is a diffusers folder; that of the synthetic test world is `autolora/paperdoll/weights/base`. The first row shows
the prompts by the base model, the second one by the LoRA, with the same seeds.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from PIL import Image


def main() -> None:
    """Load the base model and the LoRA, render both rows and write the grid."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", type=Path)
    parser.add_argument("lora", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("prompts", nargs="+")
    parser.add_argument("--each", type=int, default=4, help="images of each prompt")
    parser.add_argument("--weight", type=float, default=1.0, help="the LoRA weight")
    args = parser.parse_args()
    pipeline = StableDiffusionPipeline.from_pretrained(args.base, torch_dtype=torch.float32, safety_checker=None)
    prompts = [prompt for prompt in args.prompts for _ in range(args.each)]

    def render() -> list[Image.Image]:
        generators = [torch.Generator().manual_seed(seed) for seed in range(len(prompts))]
        return list(pipeline(prompts, num_inference_steps=12, guidance_scale=4.0, generator=generators).images)

    base = render()
    pipeline.load_lora_weights(args.lora.parent, weight_name=args.lora.name, adapter_name="lora")
    pipeline.set_adapters("lora", args.weight)
    width, height = base[0].size
    grid = Image.new("RGB", (width * len(prompts), 2 * height))
    for y, images in enumerate((base, render())):
        for x, image in enumerate(images):
            grid.paste(image, (x * width, y * height))
    grid.save(args.out)


if __name__ == "__main__":
    main()
