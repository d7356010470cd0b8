"""How fast is training beside a plain loop with diffusers and peft? Same images, model and machine, in one run.

    python -m experiments.speed.train_speed

The plain loop is measured twice: it encodes images and captions in every step, or uses cached ones as autolora does.
Rounds of all three alternate, so that the load of the machine affects all alike; medians are compared. Writes
experiments/results/speed/train_speed.json.
"""

from __future__ import annotations

import json
import statistics
import time
from pathlib import Path

import torch
from torch import Tensor

from autolora.data.images import load_pixels
from autolora.files import write_atomic
from autolora.models.base import BaseModel, Context
from autolora.models.load import load_model
from autolora.models.settings import ModelSettings
from autolora.provenance import provenance
from experiments.common import results
from experiments.common.arguments import argument_parser
from experiments.speed.loops import Inputs, our_loop, plain_loop, quickstart, stored

CACHE = Path("runs/.cache/latents")


def encoded_each_time(model: BaseModel) -> Inputs:
    """Return latents and contexts as diffusers' example makes them: encoded in every step."""
    pictures = quickstart().pictures
    pixels = torch.stack([torch.from_numpy(load_pixels(p.path, 64).copy()).permute(2, 0, 1) for p in pictures])
    pixels = pixels.float() / 127.5 - 1

    @torch.no_grad()
    def encode(picks: Tensor) -> tuple[Tensor, Context]:
        return model.encode_images(pixels[picks]), model.encode_prompts([pictures[i].caption for i in picks.tolist()])

    return encode


def main() -> None:
    """Measure, print and write the ratios."""
    parser = argument_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--dim", type=int, default=16)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=results.RESULTS / "speed" / "train_speed.json")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model = load_model(ModelSettings())
    loops = {
        "autolora": our_loop(model, CACHE, args.dim, args.batch_size),
        "plain, cached": plain_loop(model, stored(model, CACHE), args.dim, args.batch_size),
        "plain, uncached": plain_loop(model, encoded_each_time(model), args.dim, args.batch_size),
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
    text = json.dumps(result, indent=2)
    write_atomic(args.out, text + "\n")
    print(text)


if __name__ == "__main__":
    main()
