"""What can the base model of the synthetic test world do? Measured by the attribute classifier.

    python -m experiments.live.paperdoll

Every figure is measured on drawings and prompts of its own seeds, and on evaluation characters. Writes
experiments/results/paperdoll/check.json and base.png.
"""

from __future__ import annotations

import json
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from scipy.stats import entropy

from autolora.files import write_atomic
from autolora.models.base import BaseModel
from autolora.models.load import load_model
from autolora.models.settings import ModelSettings, RenderSettings
from autolora.paperdoll.attribute_classifier import AttributeClassifier
from autolora.paperdoll.drawing import draw
from autolora.paperdoll.look import GROUPS, Look, character_look, novel_character, parse_prompt, sample_values
from autolora.paperdoll.weights import WEIGHTS
from autolora.provenance import provenance
from autolora.sampling import Images, RenderRequest, render
from experiments.common import results
from experiments.common.arguments import argument_parser
from experiments.common.results import save_image, weights_name

RESULTS = results.RESULTS / "paperdoll"


def drawings(looks: list[Look], rng: random.Random) -> Images:
    """Draw the looks: (N, 64, 64, 3) uint8."""
    return np.stack([np.asarray(draw(look, rng)) for look in looks])


@torch.inference_mode()
def through_vae(model: BaseModel, images: Images) -> Images:
    """Return images after encoding and decoding by the VAE."""
    parts = []
    for start in range(0, len(images), 64):
        pixels = torch.from_numpy(images[start : start + 64]).permute(0, 3, 1, 2).float() / 127.5 - 1
        decoded = model.decode_latents(model.encode_images(pixels)).clamp(-1, 1)
        parts.append(((decoded + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy())
    return np.concatenate(parts)


def check_classifier(classifier: AttributeClassifier, model: BaseModel, count: int = 1000) -> dict[str, Any]:
    """Measure the classifier's accuracy on drawings, and its recall and false alarms on novel characters.

    The VAE's reconstruction error is measured with it.
    """
    rng = random.Random("check-oracle")
    looks = [Look(sample_values(rng)) for _ in range(count)]
    images = drawings(looks, rng)
    error = ((through_vae(model, images).astype(float) - images) / 255) ** 2
    recall, alarms, outfits = [], [], []
    for seed in range(100, 140):
        character = novel_character(seed, 2)
        character_looks = [character_look(character, character.outfits[i % 2], rng) for i in range(20)]
        reconstructed = through_vae(model, drawings(character_looks, rng))
        recall.append(classifier.shows(reconstructed, character).mean())
        outfits.append(np.mean([read == i % 2 for i, read in enumerate(classifier.outfit(reconstructed, character))]))
        strangers = [novel_character(rng.randrange(10_000, 99_999), 2) for _ in range(40)]
        others = drawings([character_look(c, rng.choice(c.outfits), rng) for c in strangers], rng)
        false_alarms = [classifier.shows(others, character), classifier.shows(images[:40], character)]
        alarms.append(np.concatenate(false_alarms).mean())
    return {
        "oracle accuracy on fresh drawings": classifier.accuracy(images, [look.values for look in looks]),
        "oracle recall of a character after the VAE": float(np.mean(recall)),
        "oracle recall, worst character": float(np.min(recall)),
        "oracle false alarms on other characters": float(np.mean(alarms)),
        "oracle outfit accuracy after the VAE": float(np.mean(outfits)),
        "reconstruction PSNR in dB": float((-10 * np.log10(error.mean(axis=(1, 2, 3)))).mean()),
    }


def render_base(model: BaseModel, prompts: list[str], first_seed: int, settings: RenderSettings) -> Images:
    """Render prompts by the base model, each at the next seed."""
    requests = [RenderRequest(prompt, first_seed + i, 0.0) for i, prompt in enumerate(prompts)]
    return render(model, requests, settings)


def check_base(
    classifier: AttributeClassifier, model: BaseModel, settings: RenderSettings, count: int = 500
) -> dict[str, Any]:
    """Measure how well prompts are followed, how diverse the class word alone is, and how long an image takes."""
    rng = random.Random("check-base")
    prompts = [", ".join(Look(sample_values(rng)).tags()) for _ in range(count)]
    images = render_base(model, prompts, 700_000, settings)
    accuracy = classifier.accuracy(images, [parse_prompt(prompt) for prompt in prompts])
    girls = render_base(model, ["1girl"] * count, 800_000, settings)
    colors = [attributes["hair_color"] for attributes in classifier.read(girls)]
    shares = [colors.count(color) for color in GROUPS["hair_color"]]
    torch.set_num_threads(1)
    began = time.perf_counter()
    render_base(model, ["1girl"] * 8, 0, settings)
    return {
        "prompted attributes, mean accuracy": float(np.mean(list(accuracy.values()))),
        "prompted attributes, worst group": min(accuracy.values()),
        "prompted attributes": accuracy,
        "1girl: hair-colour entropy relative to the world's": float(entropy(shares) / np.log(len(shares))),
        "seconds for a picture on one core, in a batch of 8": (time.perf_counter() - began) / 8,
    }


def image_grid(model: BaseModel, settings: RenderSettings) -> Image.Image:
    """Return three rows: renders of `1girl`; drawings of full prompts; renders of the same prompts."""
    rng = random.Random("grid")
    looks = [Look(sample_values(rng)) for _ in range(12)]
    drawn = drawings(looks, rng)
    prompts = [", ".join(look.tags()) for look in looks]
    girls, prompted = (render_base(model, texts, 0, settings) for texts in (["1girl"] * 12, prompts))
    rows = [np.concatenate(list(row), axis=1) for row in (girls, drawn, prompted)]
    grid = Image.fromarray(np.concatenate(rows, axis=0))
    return grid.resize((grid.width * 2, grid.height * 2), Image.Resampling.NEAREST)


def main() -> None:
    """Measure, print and write."""
    parser = argument_parser(__doc__)
    parser.add_argument("--out", type=Path, default=RESULTS, help="the folder of check.json and base.png")
    args = parser.parse_args()
    model, classifier, settings = load_model(ModelSettings()), AttributeClassifier(), RenderSettings()
    size = sum(path.stat().st_size for path in WEIGHTS.rglob("*") if path.is_file())
    result: dict[str, Any] = provenance() | {"weights": weights_name(), "megabytes": round(size / 1e6, 2)}
    result |= check_classifier(classifier, model) | check_base(classifier, model, settings)
    save_image(image_grid(model, settings), args.out / "base.png")
    text = json.dumps(result, indent=2, default=lambda value: round(float(value), 4))
    write_atomic(args.out / "check.json", text + "\n")
    print(text)


if __name__ == "__main__":
    main()
