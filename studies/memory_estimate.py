"""The memory estimate of `autolora check` beside what `full_size.py` measured on a GPU, row by row, as Markdown.

    python studies/memory_estimate.py studies/results/models/full_size-h100.json

Neither weights nor a GPU are needed.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from full_size import ADAPTERS, MODELS, empty_weights, pictures, random_model

from autolora.models.base import RenderSettings
from autolora.optim.optimizers import OPTIMIZERS
from autolora.optim.schedules import Constant
from autolora.study.memory import GB, memory_need
from autolora.train.run import Run, TrainSettings


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    print("| model | px | adapter | optimizer | gradient checkpointing | measured GB | estimated GB | deviation |")
    print("|" + "---|" * 8)
    for row in measured(parser.parse_args().results):
        estimate = estimated(row) / GB
        cells = [row["model"], row["px"], row["adapter"], row.get("optimizer", "")]
        cells.append("yes" if row.get("checkpointing") else "")
        cells += [f"{row['peak_gb']:.2f}", f"{estimate:.2f}", f"{estimate / row['peak_gb'] - 1:+.1%}"]
        print("|", " | ".join(map(str, cells)), "|", flush=True)


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
    model.settings = replace(model.settings, render=RenderSettings(guidance=5.0, batch_size=1))
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
