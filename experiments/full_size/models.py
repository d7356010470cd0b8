"""Full-size base models: training speed and peak memory of every adapter kind, then checkpoint and verified export.

    python -m experiments.full_size.models --models sd15 sdxl

Weights are random, so nothing is downloaded: speed and memory do not depend on them. On a GPU the models run in
bfloat16 at 512 px (SD1.5) and 1024 px (SDXL), on a CPU at 64 px. Every row is printed and written as soon as it is
measured; a row that fails holds its error. Writes experiments/results/models/full_size-<device>.json.
"""

from __future__ import annotations

import argparse
import gc
import json
import re
import resource
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from autolora.adapters.adapter_set import attach
from autolora.adapters.deltas import is_plain
from autolora.adapters.kinds import IA3, DoRA, DyLoRA, LoHa, LoKr, LoRA
from autolora.data.concepts import Dataset
from autolora.export.metadata import ExportFacts
from autolora.export.verify import verify_deltas
from autolora.export.write import export_lora
from autolora.files import write_atomic
from autolora.models.base import DTYPES
from autolora.models.settings import RenderSettings
from autolora.models.stable_diffusion import StableDiffusion
from autolora.optim.optimizers import OPTIMIZERS
from autolora.optim.schedules import Constant
from autolora.provenance import provenance
from autolora.sampling import RenderRequest, render
from autolora.train import checkpoint
from autolora.train.caches import LatentCache, PromptCache
from autolora.train.loop import train
from autolora.train.run import Run, TrainSettings
from autolora.train.slot import Job, TrainingContext, TrainingSlot
from experiments.common import results
from experiments.common.arguments import argument_parser
from experiments.full_size.random_models import MODELS, random_model, write_dataset

CPU_PX = 64
WARM_UP = 2  # steps that are not timed: the first ones choose kernels
CONV = ("attention", "feed_forward", "projections", "conv")
ADAPTERS: dict[str, LoRA | DyLoRA] = {
    "lora": LoRA(dim=32, alpha=16),
    "lora-te": LoRA(dim=32, alpha=16, text_encoder=True),
    "locon": LoRA(dim=32, alpha=16, conv_dim=16, conv_alpha=8, targets=CONV),
    "dora": DoRA(dim=32, alpha=16),
    "dylora": DyLoRA(dim=32, alpha=16, unit=4),
    "loha": LoHa(dim=16, alpha=8),
    "lokr": LoKr(dim=16, alpha=8),
    "ia3": IA3(),
}
RESULTS = results.RESULTS / "models"
Row = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """One row: an adapter with an optimizer, with or without gradient checkpointing."""

    adapter: str
    optimizer: str
    checkpointing: bool = False


def main() -> None:
    """Measure the chosen models one after the other."""
    args = _arguments()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
    out = args.out / f"full_size-{re.sub('[^a-z0-9]+', '-', name.lower()).strip('-')}.json"
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        for model in args.models:
            for row in measure(model, _cases(args), args, device, Path(folder)):
                rows.append(row)
                print(_line(row), flush=True)
                content = {**provenance(), "device": name, "steps": args.steps, "dtype": args.dtype, "rows": rows}
                write_atomic(out, json.dumps(content, indent=1) + "\n")
    print(f"written to {out}")


def _arguments() -> argparse.Namespace:
    parser = argument_parser(__doc__)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--adapters", nargs="+", choices=ADAPTERS, default=list(ADAPTERS))
    parser.add_argument(
        "--optimizers", nargs="+", choices=OPTIMIZERS, default=["adamw", "prodigy"], help="the first for all adapters"
    )
    parser.add_argument("--steps", type=int, default=10, help="optimizer steps that are timed")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--resolution", type=int, help="pixels")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    parser.add_argument(
        "--no-checkpointing", action="store_true", help="leave out the rows with gradient checkpointing"
    )
    parser.add_argument("--no-render", action="store_true")
    parser.add_argument(
        "--prove-all", action="store_true", help="verify DoRA, LoHa, LoKr and IA3 too, which takes long"
    )
    parser.add_argument("--out", type=Path, default=RESULTS)
    return parser.parse_args()


def _cases(args: argparse.Namespace) -> list[Case]:
    """Return every adapter with the first optimizer, the first adapter with the others, and with checkpointing."""
    first = args.adapters[0], args.optimizers[0]
    cases = [Case(adapter, first[1]) for adapter in args.adapters]
    cases += [Case(first[0], optimizer) for optimizer in args.optimizers[1:]]
    return cases if args.no_checkpointing else [*cases[:1], Case(*first, checkpointing=True), *cases[1:]]


def measure(
    name: str, cases: Sequence[Case], args: argparse.Namespace, device: torch.device, folder: Path
) -> Iterator[Row]:
    """Yield the rows of a model; a row that fails holds its error."""
    family, pixels = MODELS[name]
    pixels = args.resolution or (pixels if device.type == "cuda" else CPU_PX)
    began = time.perf_counter()
    try:
        model = random_model(family, pixels, args.dtype, device)
        dataset = write_dataset(folder / name, pixels, args.batch)
    except Exception as error:
        yield {"model": name, "error": _reason(error)}
        return
    start = {"model": name, "adapter": "", "px": pixels, "start_seconds": time.perf_counter() - began}
    yield start | {"parameters": {root: _count(module) for root, module in model.modules.items()}}
    if not args.no_render:
        yield {"model": name, "px": pixels, **_attempt(lambda: measure_render(model))}
    latents, prompts = LatentCache(model, folder / name / "latents"), PromptCache(model)
    for case in cases:
        shape = {"model": name, "px": pixels, "batch": args.batch, **vars(case)}
        switch = model.unet.enable_gradient_checkpointing if case.checkpointing else None
        (switch or model.unet.disable_gradient_checkpointing)()
        row = _attempt(lambda case=case: measure_training(model, dataset, latents, prompts, case, args, folder / name))
        yield {**shape, **row, "checkpointing": case.checkpointing}


def measure_training(
    model: StableDiffusion,
    dataset: Dataset,
    latents: LatentCache,
    prompts: PromptCache,
    case: Case,
    args: argparse.Namespace,
    folder: Path,
) -> Row:
    """Measure a few steps of autolora's training loop, the checkpoint, the export and its verification."""
    _clean(model.device)
    spec = ADAPTERS[case.adapter]
    steps = (args.steps + WARM_UP) * args.batch
    settings = TrainSettings(epochs=1, images_per_concept=steps, batch_size=args.batch)
    run = Run(f"{case.adapter}-{case.optimizer}", spec, OPTIMIZERS[case.optimizer](), Constant(), settings)
    context = TrainingContext(model, attach(model.modules, spec), dataset, latents, prompts)
    ends: list[float] = []
    peaks: list[float] = []

    def on_step(slot: TrainingSlot) -> None:
        _wait(model.device)
        ends.append(time.perf_counter())
        if len(ends) == args.steps + WARM_UP:
            peaks.append(_peak_gb(model.device))

    jobs = iter([Job(run)])
    try:
        ((slot,),) = train(lambda: next(jobs, None), context, on_step)
        assert slot.checkpoint is not None
        last = slot.checkpoint
        row: Row = {
            "steps_per_second": args.steps / (ends[-1] - ends[WARM_UP - 1]),
            "peak_gb": peaks[0],
            "trained_parameters": sum(p.numel() for p in context.adapter.parameters(0)),
            "train_loss": last.train_loss,
            "checkpoint_seconds": time.perf_counter() - ends[-1],
        }
        checkpoint.save(last, folder / "latest.pt")
        state = checkpoint.load(folder / "latest.pt", run).state
        facts = ExportFacts("1girl, mona", 1.0, "full size", last.step)
        began = time.perf_counter()
        exported = export_lora(state, run, dataset, model, folder, case.adapter, facts=facts)
        row |= {"export_seconds": time.perf_counter() - began, "megabytes": exported.size / 1e6}
        if not (args.prove_all or is_plain(state)):
            return row
        began = time.perf_counter()
        verified = verify_deltas(state, exported.path, model)
        row |= {"proof_seconds": time.perf_counter() - began, "read_by": verified.read_by}
        return row | {"layers": verified.layers, "delta_error": verified.delta_error}
    finally:
        context.adapter.detach()


def measure_render(model: StableDiffusion, steps: int = 8) -> Row:
    """Measure one render with guidance, after a warm-up step."""
    _clean(model.device)
    requests = [RenderRequest("1girl, mona", 0, 0.0)]
    settings = RenderSettings(num_inference_steps=steps, guidance_scale=5.0)
    render(model, requests, replace(settings, num_inference_steps=1))
    _wait(model.device)
    began = time.perf_counter()
    render(model, requests, settings)
    _wait(model.device)
    seconds = time.perf_counter() - began
    return {"adapter": "(render)", "render_seconds": seconds, "steps": steps, "peak_gb": _peak_gb(model.device)}


def _attempt(work: Any) -> Row:
    try:
        row: Row = work()
        return row
    except Exception as error:
        return {"error": _reason(error)}


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0][:300]}"


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _clean(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def _peak_gb(device: torch.device) -> float:
    """Return the peak memory of the case on a GPU, of the whole process so far on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def _line(row: Row) -> str:
    """Return a row as a line of text."""
    if "error" in row:
        return f"{row['model']:5} {row.get('adapter', ''):9} {row.get('optimizer', ''):9} ERROR {row['error']}"
    cells = [f"{row['model']:5}", f"{row.get('adapter', ''):9}"]
    for key, value in row.items():
        if key not in ("model", "adapter"):
            cells.append(f"{key}={value:.3g}" if isinstance(value, float) else f"{key}={value}")
    return " ".join(cells)


if __name__ == "__main__":
    main()
