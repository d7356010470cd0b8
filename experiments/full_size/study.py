"""`autolora check` and `autolora tune character` on a full-size model of random weights, with the network off.

    python -m experiments.full_size.study
    python -m experiments.full_size.study --form file
    python -m experiments.full_size.study --model sdxl --resolution 1024 --encoder ViT-L-14 --memory-gb 11  # on a GPU

Such a model renders noise. Where nothing can be measured on it, the study must say so and end with the exit code for
that. Either way it must go through every stage, and continue with one trial more when it is run again. `--form file`
gives the model as one .safetensors file in the original layout, as models are shared. `--memory-gb` limits the GPU
memory of this process to that of a smaller card. Writes
experiments/results/models/full_study-<model>-<form>-<device>.json.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import open_clip
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from safetensors.torch import save_file

from autolora.cli import main as autolora
from autolora.errors import UNMEASURED_EXIT_CODE
from autolora.files import write_atomic
from autolora.provenance import provenance
from experiments.common import results
from experiments.common.arguments import argument_parser
from experiments.full_size.random_models import MODELS, random_model, write_dataset
from tests.original import save_original

RESULTS = results.RESULTS / "models"
SHORT = (
    "~study.recipes",
    "+study.recipes={guide-adamw: {train.prior_preservation_ratio: {choice: [0.0, 0.5]}}}",
    "budget.n_trials=1",
    "study.n_finalists=1",
    "study.average_checkpoints=false",
    "study.final_seeds=0",
    "train.epochs=1",
    "train.images_per_concept=4",
    "train.batch_size=2",
    "model.render.num_inference_steps=2",
    "model.render.search_inference_steps=null",
    "model.num_class_images=4",
    "scoring.trigger_prompts=[smile]",
    "scoring.outfit_prompts=[hat,glasses]",
    "scoring.num_class_renders=2",
    "scoring.class_prompts=[smile]",
    "scoring.seeds_per_class_prompt=1",
    "scoring.num_negative_renders=8",
    "scoring.n_bootstrap=50",
)
STAGES = ("best/*.safetensors", "report/index.html", "result.json", "trials/*/curve.json", "best/*.json")


def main() -> None:
    """Write the model, run the commands, and keep what they printed.

    Raises:
        SystemExit: a command ended with an unexpected exit code, or a stage left no file.
    """
    parser = argument_parser(__doc__)
    parser.add_argument("--model", choices=MODELS, default="sd15")
    parser.add_argument("--form", choices=("folder", "file"), default="folder")
    parser.add_argument("--resolution", type=int, default=64, help="pixels")
    parser.add_argument("--encoder", help="an open_clip model, of random weights too, instead of the paper-doll CLIP")
    parser.add_argument("--memory-gb", type=float, help="the most GPU memory that this process may use")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.memory_gb and not torch.cuda.is_available():
        parser.error("--memory-gb is of a GPU's memory, and there is none here")
    device, dtype = ("cuda", "bfloat16") if torch.cuda.is_available() else ("cpu", "float32")  # the fast one of each
    with tempfile.TemporaryDirectory() as name:
        arguments = command_arguments(args, Path(name), device, dtype)
        if args.memory_gb:
            total = torch.cuda.get_device_properties(0).total_memory
            torch.cuda.set_per_process_memory_fraction(args.memory_gb * 1e9 / total)
        content: dict[str, Any] = {**provenance(), "device": device, "dtype": dtype}
        content |= run_commands(arguments, device)
        codes = [content[command]["exit_code"] for command in ("check", "tune", "one trial more")]
        if codes not in ([0, 0, 0], [0, UNMEASURED_EXIT_CODE, UNMEASURED_EXIT_CODE]):
            print(json.dumps(content, indent=1))
            raise SystemExit(f"expected exit code 0, for studies {UNMEASURED_EXIT_CODE} if unmeasured; got {codes}")
        run = Path(name) / "run"
        content["files"] = {stage: len(list(run.glob(stage))) for stage in STAGES}
        result = json.loads((run / "result.json").read_text(encoding="utf-8"))
        content["unmeasurable"] = result["best"]["unmeasurable"]
        text = json.dumps(content, indent=1).replace(name, "FOLDER")
    write_atomic(args.out or RESULTS / f"full_study-{args.model}-{args.form}-{device}.json", text + "\n")
    print(text)
    if not all(content["files"].values()):
        raise SystemExit("a stage has left no file")


def command_arguments(args: argparse.Namespace, folder: Path, device: str, dtype: str) -> list[str]:
    """Write model, encoder and dataset to a folder, and return the arguments of both commands."""
    path = write_model(args.model, folder / "model", torch.device(device), args.form)
    encoder = write_encoder(args.encoder, folder / "encoder") if args.encoder else "paperdoll"
    write_dataset(folder / "mona", args.resolution, 2)
    places = [f"model.path={path}", f"dataset.path={folder / 'mona'}", f"out={folder / 'run'}"]
    places += [f"cache={folder / 'cache'}", f"scoring.encoder={encoder}"]
    shape = [f"model.resolution={args.resolution}", f"model.dtype={dtype}"]
    offload = ["model.offload=true"] if args.memory_gb else []  # the default on a card of that size
    return ["character", f"model={args.model}", *places, *shape, *offload]


def run_commands(arguments: list[str], device: str) -> dict[str, Any]:
    """Run check, tune, and tune again with one trial more, with the network off; return what they printed."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    with no_network():
        return {
            "check": run_command(["check", *arguments, *SHORT, "probe_triggers=false"]),
            "tune": run_command(["tune", *arguments, *SHORT]),
            "one trial more": run_command(["tune", *arguments, *SHORT, "budget.n_trials=2"]),
            "peak_gb": round(torch.cuda.max_memory_reserved() / 1e9, 2) if device == "cuda" else None,
        }


def write_model(name: str, folder: Path, device: torch.device, form: str) -> Path:
    """Write a full-size model in 16 bit as a folder or as one file; its weights are made on the device."""
    family, pixels = MODELS[name]
    model: Any = random_model(family, pixels, "bfloat16", device)
    parts = {
        root: module.to("cpu", torch.bfloat16) for root, module in {"vae": model.vae, **model.text_encoders}.items()
    }
    parts |= {"unet": model.unet.cpu(), "scheduler": model.scheduler}
    tokenizers = {key.replace("text_encoder", "tokenizer"): value for key, value in model.tokenizers.items()}
    if name == "sdxl":
        pipeline = StableDiffusionXLPipeline(**parts, **tokenizers, add_watermarker=False)
    else:
        rest: dict[str, Any] = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
        pipeline = StableDiffusionPipeline(**parts, **tokenizers, **rest)
    if form == "file":
        return save_original(pipeline, folder.with_suffix(".safetensors"), family)
    pipeline.save_pretrained(folder)
    return folder


def write_encoder(name: str, folder: Path) -> str:
    """Write an open_clip model of random weights to a folder, and return its name in the config."""
    folder.mkdir()
    model = open_clip.create_model(name)
    save_file(
        {key: value.contiguous() for key, value in model.state_dict().items()}, folder / "open_clip_model.safetensors"
    )
    config = {"model_cfg": open_clip.get_model_config(name), "preprocess_cfg": {}}
    (folder / "open_clip_config.json").write_text(json.dumps(config), encoding="utf-8")
    return f"local-dir:{folder}"


@contextlib.contextmanager
def no_network() -> Iterator[None]:
    """Let every lookup of a host and every connection fail, as on a machine without a network."""

    def refuse(*_: Any, **__: Any) -> Any:
        raise OSError("the network is switched off")

    original = socket.getaddrinfo, socket.socket.connect
    socket.getaddrinfo = socket.socket.connect = refuse  # type: ignore[method-assign]
    try:
        yield
    finally:
        socket.getaddrinfo, socket.socket.connect = original  # type: ignore[method-assign]


def run_command(arguments: list[str]) -> dict[str, Any]:
    """Run a command and return its exit code, its seconds and the last lines that it printed."""
    out, began = io.StringIO(), time.perf_counter()
    with contextlib.redirect_stdout(out):
        code = autolora(arguments)
    lines = [line for line in out.getvalue().splitlines() if line.strip()]
    return {"exit_code": code, "seconds": round(time.perf_counter() - began, 1), "said": lines[-12:]}


if __name__ == "__main__":
    main()
