"""Full-size base models: training speed and peak memory of every adapter, then checkpoint, export and its proof.

    python -m experiments.full_size.models --models sd15 sdxl

Weights are random, so that nothing is downloaded: speed and memory do not depend on them. On a GPU in bfloat16 at
512 px (SD1.5) and 1024 px (SDXL), on a CPU at 64 px. Every row is printed and kept as soon as it is known; one that
fails is kept as its error. Results: `experiments/results/models/full_size-<device>.json`.
"""

from __future__ import annotations

import argparse
import gc
import json
import re
import resource
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from PIL import Image
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from autolora.adapters.adapter_set import attach
from autolora.adapters.deltas import is_plain
from autolora.adapters.kinds import IA3, DoRA, DyLoRA, LoHa, LoKr, LoRA
from autolora.data.concepts import Dataset, DatasetSettings, load_dataset, with_buckets
from autolora.export.metadata import ExportFacts
from autolora.export.verify import verify_deltas
from autolora.export.write import export_lora
from autolora.files import write_atomic
from autolora.models.base import DTYPES
from autolora.models.configs import CONFIGS, PAD_TOKENS, SCHEDULER, clip_tokenizer
from autolora.models.load import FAMILIES
from autolora.models.parts import Parts, freeze
from autolora.models.settings import ModelSettings, RenderSettings
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

MODELS = {"sd15": ("sd1", 512), "sdxl": ("sdxl", 1024)}  # family, pixels on a GPU
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
RESULTS = Path(__file__).parents[1] / "results" / "models"
Row = dict[str, Any]
Filling = Callable[[nn.Module, torch.device, torch.dtype], nn.Module]


@dataclass(frozen=True)
class Case:
    """One row: an adapter with an optimizer, with or without gradient checkpointing."""

    adapter: str
    optimizer: str
    checkpointing: bool = False


def main() -> None:
    """Measure what was asked for, model after model."""
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
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
    parser.add_argument("--prove-all", action="store_true", help="prove DoRA, LoHa, LoKr and IA3 too, which takes long")
    parser.add_argument("--out", type=Path, default=RESULTS)
    return parser.parse_args()


def _cases(args: argparse.Namespace) -> list[Case]:
    """Every adapter with the first optimizer, the first adapter with the others, and both with checkpointing."""
    first = args.adapters[0], args.optimizers[0]
    cases = [Case(adapter, first[1]) for adapter in args.adapters]
    cases += [Case(first[0], optimizer) for optimizer in args.optimizers[1:]]
    return cases if args.no_checkpointing else [*cases[:1], Case(*first, checkpointing=True), *cases[1:]]


def measure(
    name: str, cases: Sequence[Case], args: argparse.Namespace, device: torch.device, folder: Path
) -> Iterator[Row]:
    """The rows of a model; what goes wrong is a row's error."""
    family, pixels = MODELS[name]
    pixels = args.resolution or (pixels if device.type == "cuda" else CPU_PX)
    began = time.perf_counter()
    try:
        model = random_model(family, pixels, args.dtype, device)
        dataset = pictures(folder / name, pixels, args.batch)
    except Exception as error:
        yield {"model": name, "error": _reason(error)}
        return
    start = {"model": name, "adapter": "", "px": pixels, "start_seconds": time.perf_counter() - began}
    yield start | {"parameters": {root: _count(module) for root, module in model.modules.items()}}
    if not args.no_render:
        yield {"model": name, "px": pixels, **_attempt(lambda: rendered(model))}
    latents, prompts = LatentCache(model, folder / name / "latents"), PromptCache(model)
    for case in cases:
        shape = {"model": name, "px": pixels, "batch": args.batch, **vars(case)}
        switch = model.unet.enable_gradient_checkpointing if case.checkpointing else None
        (switch or model.unet.disable_gradient_checkpointing)()
        row = _attempt(lambda case=case: trained(model, dataset, latents, prompts, case, args, folder / name))
        yield {**shape, **row, "checkpointing": case.checkpointing}


def trained(
    model: StableDiffusion,
    dataset: Dataset,
    latents: LatentCache,
    prompts: PromptCache,
    case: Case,
    args: argparse.Namespace,
    folder: Path,
) -> Row:
    """A few steps of the trainer's own loop to a checkpoint, its file, its export, and the proof of that."""
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

    waiting = iter([Job(run)])
    try:
        ((slot,),) = train(lambda: next(waiting, None), context, on_step)
        assert slot.checkpoint is not None
        done = slot.checkpoint
        found: Row = {
            "steps_per_second": args.steps / (ends[-1] - ends[WARM_UP - 1]),
            "peak_gb": peaks[0],
            "trained_parameters": sum(p.numel() for p in context.adapter.parameters(0)),
            "train_loss": done.train_loss,
            "checkpoint_seconds": time.perf_counter() - ends[-1],
        }
        checkpoint.save(done, folder / "latest.pt")
        state = checkpoint.load(folder / "latest.pt", run).state
        card = ExportFacts("1girl, mona", 1.0, "full size", done.step)
        began = time.perf_counter()
        exported = export_lora(state, run, dataset, model, folder, case.adapter, facts=card)
        found |= {"export_seconds": time.perf_counter() - began, "megabytes": exported.size / 1e6}
        if not (args.prove_all or is_plain(state)):
            return found
        began = time.perf_counter()
        verified = verify_deltas(state, exported.path, model)
        found |= {"proof_seconds": time.perf_counter() - began, "read_by": verified.read_by}
        return found | {"layers": verified.layers, "delta_error": verified.delta_error}
    finally:
        context.adapter.detach()


def rendered(model: StableDiffusion, steps: int = 8) -> Row:
    """One picture with guidance."""
    _clean(model.device)
    shots, settings = (
        [RenderRequest("1girl, mona", 0, 0.0)],
        RenderSettings(num_inference_steps=steps, guidance_scale=5.0),
    )
    render(model, shots, replace(settings, num_inference_steps=1))
    _wait(model.device)
    began = time.perf_counter()
    render(model, shots, settings)
    _wait(model.device)
    seconds = time.perf_counter() - began
    return {"adapter": "(render)", "render_seconds": seconds, "steps": steps, "peak_gb": _peak_gb(model.device)}


def random_model(
    family: str, pixels: int, dtype: str, device: torch.device, filled: Filling | None = None
) -> StableDiffusion:
    """A full-size model, by default of random weights, made where and as they are used."""
    filled = filled or random_weights
    kind, configs = DTYPES[dtype], CONFIGS[family]
    encoders = [name for name in configs if name.startswith("text_encoder")]
    with torch.device("meta"):
        unet, vae = UNet2DConditionModel(**configs["unet"]), AutoencoderKL(**configs["vae"])
        texts = [
            (CLIPTextModel if name == "text_encoder" else CLIPTextModelWithProjection)(CLIPTextConfig(**configs[name]))
            for name in encoders
        ]
    parts = Parts(
        unet=filled(unet, device, kind),
        vae=filled(vae, device, torch.float32),
        text_encoders={name: filled(text, device, kind) for name, text in zip(encoders, texts, strict=True)},
        tokenizers={name: clip_tokenizer(pad) for name, pad in PAD_TOKENS[family].items()},
        scheduler=DDIMScheduler(**SCHEDULER),
        base_hash="0" * 16,
    )
    return FAMILIES[family](parts, f"random-{family}", ModelSettings(family, resolution=pixels, dtype=dtype))


def empty_weights(part: nn.Module, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """Shapes only, for the `meta` device."""
    return freeze(part.to(dtype), device, dtype)


@torch.no_grad()
def random_weights(part: nn.Module, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """Weights that keep the size of what goes through them; norms of one; positions as they are numbered."""
    part = part.to(dtype).to_empty(device=device)
    for name, parameter in part.named_parameters():
        if parameter.dim() > 1:
            parameter.normal_(0, 0.02 if "embedding.weight" in name else parameter[0].numel() ** -0.5)
        else:
            parameter.fill_(1.0 if name.endswith("weight") else 0.0)
    for name, buffer in part.named_buffers():
        if name.endswith("position_ids"):
            buffer.copy_(torch.arange(buffer.shape[-1]).expand(buffer.shape))
        else:
            raise ValueError(f"what is in the buffer {name}?")
    return freeze(part, device, dtype)


def pictures(folder: Path, pixels: int, batch: int) -> Dataset:
    """Squares of noise with captions: enough of them that one is held out."""
    inside = folder / "1_mona girl"
    inside.mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)
    for number in range(4 + batch):
        blocks = torch.randint(256, (8, 8, 3), generator=generator, dtype=torch.uint8)
        Image.fromarray(blocks.numpy()).resize((pixels, pixels)).save(inside / f"{number}.png")
        (inside / f"{number}.txt").write_text(f"1girl, mona, tag{number}", encoding="utf-8")
    settings = DatasetSettings(path=str(folder))
    return with_buckets(load_dataset(settings), settings, pixels)


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
    """Of the case on a GPU; on a CPU of the whole process so far."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def _line(row: Row) -> str:
    """A row for people: columns of the table, and whatever else is known."""
    if "error" in row:
        return f"{row['model']:5} {row.get('adapter', ''):9} {row.get('optimizer', ''):9} ERROR {row['error']}"
    shown = [f"{row['model']:5}", f"{row.get('adapter', ''):9}"]
    for key, value in row.items():
        if key not in ("model", "adapter"):
            shown.append(f"{key}={value:.3g}" if isinstance(value, float) else f"{key}={value}")
    return " ".join(shown)


if __name__ == "__main__":
    main()
