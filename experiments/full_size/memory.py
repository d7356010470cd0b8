"""The memory estimate of `autolora check`, row by row, as Markdown: beside what `full_size.py` measured, or of presets.

    python -m experiments.full_size.memory experiments/results/models/full_size-h100.json
    python -m experiments.full_size.memory --presets sdxl illustrious noobai-vpred pony

Neither weights nor a GPU are needed. Presets are estimated with parts off the GPU, on a study of a character: of the
first every recipe and the largest that the study's ranges make of it, of the others what was the largest of the first.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import open_clip
import torch

from autolora import config as cfg
from autolora.models.meta_device import META
from autolora.models.settings import RenderSettings
from autolora.optim.optimizers import OPTIMIZERS
from autolora.optim.schedules import Constant
from autolora.preflight.memory import DRIVER, GB, describe_memory, encoder_bytes, largest, memory_need
from autolora.scoring.encoders import OpenClip
from autolora.study.definition import define_study
from autolora.train.run import Run, TrainSettings
from experiments.full_size.models import ADAPTERS, MODELS, empty_weights, pictures, random_model


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="?")
    parser.add_argument("--presets", nargs="+", metavar="PRESET")
    args = parser.parse_args()
    if args.presets:
        of_presets(args.presets)
    else:
        beside_measured(args.results)


def beside_measured(path: Path) -> None:
    """Print estimates beside measurements."""
    print("| model | px | adapter | optimizer | gradient checkpointing | measured GB | estimated GB | deviation |")
    print("|" + "---|" * 8)
    for row in measured(path):
        estimate = estimated(row) / GB
        cells = [row["model"], row["px"], row["adapter"], row.get("optimizer", "")]
        cells.append("yes" if row.get("checkpointing") else "")
        cells += [f"{row['peak_gb']:.2f}", f"{estimate:.2f}", f"{estimate / row['peak_gb'] - 1:+.1%}"]
        print("|", " | ".join(map(str, cells)), "|", flush=True)


def of_presets(presets: Sequence[str]) -> None:
    """Print what recipes take with each preset of a full-size family."""
    print("| preset | run | before training GB | training GB | rendering GB | scoring GB | at most, with the process |")
    print("|" + "---|" * 7)
    looking, only, said = encoder_bytes(NoWeights("ViT-L-14")), None, set[str]()
    for preset in presets:
        arguments = [f"model={preset}", "model.path=none", "dataset.path=none", "model.offload=true"]
        config = cfg.compose("tune", arguments, "character")
        definition, own = define_study(config, "character", arguments)
        settings = cfg.model_settings(config)
        model = random_model(settings.family, settings.resolution, settings.dtype, META, empty_weights)
        model.settings = settings
        if settings.gradient_checkpointing:
            model.checkpoint_gradients()
        found = {}
        for run in largest([*(definition.run(*one) for one in own.items()), *definition.widest_runs()]):
            if only in (None, describe_memory(run)):
                with tempfile.TemporaryDirectory() as folder:
                    dataset = pictures(Path(folder) / "set", settings.resolution, run.train.batch_size)
                    need = memory_need(run, dataset, model, offload=True, looking=looking)
                found[describe_memory(run)] = need.most
                parts = need.preparing, need.training, need.rendering, need.scoring, need.most + DRIVER
                line = " | ".join([preset, describe_memory(run), *(f"{part / GB:.1f}" for part in parts)])
                if line not in said:
                    print("|", line, "|", flush=True)
                said.add(line)
        only = max(found, key=found.__getitem__)


class NoWeights(OpenClip):
    """An encoder of open_clip on the meta device."""

    def __init__(self, name: str) -> None:
        self.model = open_clip.create_model(name, device="meta")
        side = self.model.visual.image_size
        self.side, blocks = tuple(side), len(self.model.visual.transformer.resblocks)
        self.blocks = [blocks - blocks // 4 - 1, blocks - 1]


def measured(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a results file that say how much memory was taken, each case once."""
    known = set()
    for sitting in json.loads(path.read_text(encoding="utf-8")):
        for row in sitting["rows"]:
            case = tuple(row.get(key) for key in ("model", "px", "batch", "adapter", "optimizer", "checkpointing"))
            if "peak_gb" in row and case not in known:
                known.add(case)
                yield {"dtype": sitting["dtype"], **row}


def estimated(row: dict[str, Any]) -> int:
    """Bytes that `check` would say; a picture was rendered without an adapter, which the smallest stands in for."""
    rendering, batch = row["adapter"] == "(render)", row.get("batch", 1)
    model = random_model(MODELS[row["model"]][0], row["px"], row["dtype"], torch.device("meta"), empty_weights)
    model.settings = replace(model.settings, render=RenderSettings(guidance_scale=5.0, batch_size=1))
    if row.get("checkpointing"):
        model.unet.enable_gradient_checkpointing()
    adapter = ADAPTERS["ia3" if rendering else row["adapter"]]
    optimizer = OPTIMIZERS[row.get("optimizer", "adamw")]()
    run = Run("measured", adapter, optimizer, Constant(), TrainSettings(batch_size=batch))
    with tempfile.TemporaryDirectory() as folder:
        dataset = pictures(Path(folder) / "set", row["px"], batch)
    need = memory_need(run, dataset, model, offload=False)
    return need.rendering if rendering else need.training


if __name__ == "__main__":
    main()
