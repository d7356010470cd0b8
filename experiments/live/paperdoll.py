"""What the embedded world's weights show, measured by the oracle.

    python -m experiments.live.paperdoll

Writes `experiments/results/paperdoll/check.json` and `base.png`; every figure is taken on drawings and prompts of its own
seeds, and characters of seeds 100 and up.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from scipy.stats import entropy

from autolora.models.base import BaseModel
from autolora.models.load import load_model
from autolora.models.settings import ModelSettings, RenderSettings
from autolora.paperdoll.attribute_classifier import AttributeClassifier
from autolora.paperdoll.drawing import draw
from autolora.paperdoll.look import GROUPS, Look, character_look, novel_character, parse_prompt, sample_values
from autolora.paperdoll.weights import VERSION, WEIGHTS, weights_hash
from autolora.provenance import provenance
from autolora.sampling import Images, RenderRequest, render

RESULTS = Path(__file__).parents[1] / "results" / "paperdoll"


def drawings(looks: list[Look], rng: random.Random) -> Images:
    """(N, 64, 64, 3) uint8."""
    return np.stack([np.asarray(draw(look, rng)) for look in looks])


@torch.inference_mode()
def decoded(model: BaseModel, pictures: Images) -> Images:
    """Pictures through the VAE and back."""
    parts = []
    for start in range(0, len(pictures), 64):
        pixels = torch.from_numpy(pictures[start : start + 64]).permute(0, 3, 1, 2).float() / 127.5 - 1
        back = model.decode_latents(model.encode_images(pixels)).clamp(-1, 1)
        parts.append(((back + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy())
    return np.concatenate(parts)


def check_oracle(oracle: AttributeClassifier, model: BaseModel, count: int = 1000) -> dict[str, Any]:
    """Accuracy on fresh drawings, recall and false alarms on novel characters, the VAE's reconstruction."""
    rng = random.Random("check-oracle")
    looks = [Look(sample_values(rng)) for _ in range(count)]
    pictures = drawings(looks, rng)
    back = decoded(model, pictures)
    error = ((back.astype(float) - pictures) / 255) ** 2
    recall, alarms, outfits = [], [], []
    for seed in range(100, 140):
        character = novel_character(seed, 2)
        own = [character_look(character, character.outfits[i % 2], rng) for i in range(20)]
        through = decoded(model, drawings(own, rng))
        recall.append(oracle.shows(through, character).mean())
        outfits.append(np.mean([got == i % 2 for i, got in enumerate(oracle.outfit(through, character))]))
        strangers = [novel_character(rng.randrange(10_000, 99_999), 2) for _ in range(40)]
        others = drawings([character_look(c, rng.choice(c.outfits), rng) for c in strangers], rng)
        alarms.append(np.concatenate([oracle.shows(others, character), oracle.shows(pictures[:40], character)]).mean())
    return {
        "oracle accuracy on fresh drawings": oracle.accuracy(pictures, [look.values for look in looks]),
        "oracle recall of a character after the VAE": float(np.mean(recall)),
        "oracle recall, worst character": float(np.min(recall)),
        "oracle false alarms on other characters": float(np.mean(alarms)),
        "oracle outfit accuracy after the VAE": float(np.mean(outfits)),
        "reconstruction PSNR in dB": float((-10 * np.log10(error.mean(axis=(1, 2, 3)))).mean()),
    }


def check_base(
    oracle: AttributeClassifier, model: BaseModel, settings: RenderSettings, count: int = 500
) -> dict[str, Any]:
    """How well prompts are followed, how diverse the class word alone is, how long a picture takes."""
    rng = random.Random("check-base")
    prompts = [", ".join(Look(sample_values(rng)).tags()) for _ in range(count)]
    pictures = render(model, [RenderRequest(p, 700_000 + i, 0.0) for i, p in enumerate(prompts)], settings)
    accuracy = oracle.accuracy(pictures, [parse_prompt(p) for p in prompts])
    girls = render(model, [RenderRequest("1girl", 800_000 + i, 0.0) for i in range(count)], settings)
    colors = [row["hair_color"] for row in oracle.read(girls)]
    shares = [colors.count(color) for color in GROUPS["hair_color"]]
    torch.set_num_threads(1)
    began = time.perf_counter()
    render(model, [RenderRequest("1girl", seed, 0.0) for seed in range(8)], settings)
    return {
        "prompted attributes, mean accuracy": float(np.mean(list(accuracy.values()))),
        "prompted attributes, worst group": min(accuracy.values()),
        "prompted attributes": accuracy,
        "1girl: hair-colour entropy relative to the world's": float(entropy(shares) / np.log(len(shares))),
        "seconds for a picture on one core, in a batch of 8": (time.perf_counter() - began) / 8,
    }


def picture_grid(model: BaseModel, settings: RenderSettings) -> Image.Image:
    """Rows: `1girl`; full prompts drawn by the world; the same prompts drawn by the model."""
    rng = random.Random("grid")
    looks = [Look(sample_values(rng)) for _ in range(12)]
    world = drawings(looks, rng)
    prompts = [", ".join(look.tags()) for look in looks]
    plain = render(model, [RenderRequest("1girl", seed, 0.0) for seed in range(12)], settings)
    prompted = render(model, [RenderRequest(p, seed, 0.0) for seed, p in enumerate(prompts)], settings)
    rows = [np.concatenate(list(row), axis=1) for row in (plain, world, prompted)]
    grid = Image.fromarray(np.concatenate(rows, axis=0))
    return grid.resize((grid.width * 2, grid.height * 2), Image.Resampling.NEAREST)


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    model, oracle, settings = load_model(ModelSettings()), AttributeClassifier(), RenderSettings()
    size = sum(path.stat().st_size for path in WEIGHTS.rglob("*") if path.is_file())
    result = provenance() | {"weights": f"{VERSION} {weights_hash()}", "megabytes": round(size / 1e6, 2)}
    result |= check_oracle(oracle, model) | check_base(oracle, model, settings)
    args.out.mkdir(parents=True, exist_ok=True)
    picture_grid(model, settings).save(args.out / "base.png")
    text = json.dumps(result, indent=2, default=lambda value: round(float(value), 4))
    (args.out / "check.json").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
