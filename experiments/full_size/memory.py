"""The memory estimate of `autolora check` as a Markdown table: compared with measurements, or for presets.

    python -m experiments.full_size.memory experiments/results/models/full_size-h100.json
    python -m experiments.full_size.memory --presets sdxl illustrious noobai-vpred pony

Neither weights nor a GPU are needed. Presets are estimated with unused parts moved off the GPU, on a study of a
character: for the first preset every recipe and the largest runs of the study's ranges, for the others the run that was
largest for the first.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import open_clip
import torch

from autolora.models.meta_device import META
from autolora.models.settings import RenderSettings
from autolora.optim.optimizers import OPTIMIZERS
from autolora.optim.schedules import Constant
from autolora.preflight.memory import DRIVER, GB, describe_memory, encoder_bytes, largest, memory_need
from autolora.scoring.encoders import OpenClip
from autolora.study.definition import define_study
from autolora.train.run import Run, TrainSettings
from experiments.common.arguments import argument_parser
from experiments.common.results import table_head, table_row
from experiments.common.training import settings_of
from experiments.full_size.models import ADAPTERS
from experiments.full_size.random_models import MODELS, empty_weights, random_model, write_dataset


def main() -> None:
    """Print the table."""
    parser = argument_parser(__doc__)
    parser.add_argument("results", type=Path, nargs="?", help="a file of full_size/models.py")
    parser.add_argument("--presets", nargs="+", metavar="PRESET", help="presets of conf/model")
    args = parser.parse_args()
    if args.presets:
        print_presets(args.presets)
    elif args.results:
        print_measured(args.results)
    else:
        parser.error("give a results file, or --presets")


def print_measured(path: Path) -> None:
    """Print estimates beside measurements."""
    columns = (
        "model",
        "px",
        "adapter",
        "optimizer",
        "gradient checkpointing",
        "measured GB",
        "estimated GB",
        "deviation",
    )
    print("\n".join(table_head(*columns)))
    for row in measured(path):
        estimate = estimated_bytes(row) / GB
        cells = [row["model"], row["px"], row["adapter"], row.get("optimizer", "")]
        cells.append("yes" if row.get("checkpointing") else "")
        cells += [f"{row['peak_gb']:.2f}", f"{estimate:.2f}", f"{estimate / row['peak_gb'] - 1:+.1%}"]
        print(table_row(*cells), flush=True)


def print_presets(presets: Sequence[str]) -> None:
    """Print the estimates for recipes with each preset of a full-size family."""
    parts = ("before training GB", "training GB", "rendering GB", "scoring GB", "at most, with the process")
    print("\n".join(table_head("preset", "run", *parts)))
    looking, largest_run, printed = encoder_bytes(NoWeights("ViT-L-14")), None, set[str]()
    for preset in presets:
        overrides = [f"model={preset}", "model.path=none", "dataset.path=none", "model.offload=true"]
        settings = settings_of(*overrides, study="character")
        definition, base = define_study(settings), settings.model
        assert base.resolution is not None
        model = random_model(base.family, base.resolution, base.dtype, META, empty_weights)
        model.settings = base
        if base.gradient_checkpointing:
            model.enable_gradient_checkpointing()
        peaks = {}
        for run in largest(definition.session_runs):
            name = describe_memory(run)
            if largest_run not in (None, name):
                continue
            with tempfile.TemporaryDirectory() as folder:
                dataset = write_dataset(Path(folder) / "set", base.resolution, run.train.batch_size)
                need = memory_need(run, dataset, model, offload=True, looking=looking)
            peaks[name] = need.most
            bytes_of_parts = need.preparing, need.training, need.rendering, need.scoring, need.most + DRIVER
            line = table_row(preset, name, *(f"{part / GB:.1f}" for part in bytes_of_parts))
            if line not in printed:
                print(line, flush=True)
            printed.add(line)
        largest_run = max(peaks, key=peaks.__getitem__)


class NoWeights(OpenClip):
    """An encoder of open_clip on the meta device."""

    def __init__(self, name: str) -> None:
        self.model = open_clip.create_model(name, device="meta")
        side = self.model.visual.image_size
        self.side, blocks = tuple(side), len(self.model.visual.transformer.resblocks)
        self.blocks = [blocks - blocks // 4 - 1, blocks - 1]


def measured(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of a results file that have a peak of memory, each case once."""
    cases = set()
    for measurement in json.loads(path.read_text(encoding="utf-8")):
        for row in measurement["rows"]:
            case = tuple(row.get(key) for key in ("model", "px", "batch", "adapter", "optimizer", "checkpointing"))
            if "peak_gb" in row and case not in cases:
                cases.add(case)
                yield {"dtype": measurement["dtype"], **row}


def estimated_bytes(row: dict[str, Any]) -> int:
    """Return the estimate for a measured row.

    A render was measured without an adapter; the smallest adapter stands for it.
    """
    rendering, batch = row["adapter"] == "(render)", row.get("batch", 1)
    model = random_model(MODELS[row["model"]][0], row["px"], row["dtype"], torch.device("meta"), empty_weights)
    model.settings = replace(model.settings, render=RenderSettings(guidance_scale=5.0, batch_size=1))
    if row.get("checkpointing"):
        model.unet.enable_gradient_checkpointing()
    adapter = ADAPTERS["ia3" if rendering else row["adapter"]]
    optimizer = OPTIMIZERS[row.get("optimizer", "adamw")]()
    run = Run("measured", adapter, optimizer, Constant(), TrainSettings(batch_size=batch))
    with tempfile.TemporaryDirectory() as folder:
        dataset = write_dataset(Path(folder) / "set", row["px"], batch)
    need = memory_need(run, dataset, model, offload=False)
    return need.rendering if rendering else need.training


if __name__ == "__main__":
    main()
