"""`autolora check` and `autolora tune character` on a full-size SD1.5 of random weights, with the network switched off.

    python studies/full_study.py

Such a model draws noise. Where nothing can be measured on that the study must say so and end with the exit code for it;
either way it must go through every stage. Result: `studies/results/models/full_study.json`.
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

import torch
from diffusers import StableDiffusionPipeline
from full_size import pictures, random_model

from autolora.cli import main as autolora
from autolora.errors import UNMEASURED_EXIT_CODE
from autolora.files import write_atomic
from autolora.provenance import provenance

RESULT = Path(__file__).parent / "results" / "models" / "full_study.json"
SHORT = (
    "~study.recipes",
    "+study.recipes={guide-adamw: {train.preserve_share: {choice: [0.0, 0.5]}}}",
    "budget.trials=1",
    "study.finalists=1",
    "study.average=false",
    "study.retrain_seeds=0",
    "train.epochs=1",
    "train.steps_per_concept=4",
    "train.batch_size=2",
    "model.render.steps=2",
    "model.class_pictures=4",
    "scoring.encoder=paperdoll",
    "scoring.contexts=[smile]",
    "scoring.overrides=[hat,glasses]",
    "scoring.class_alone=2",
    "scoring.class_contexts=[smile]",
    "scoring.class_seeds=1",
    "scoring.contrast=8",
    "scoring.bootstrap=50",
)
STAGES = ("best/*.safetensors", "report/index.html", "result.json", "trials/*/curve.json", "best/*.json")


def main() -> None:
    """Write the model, run both commands, keep what they said."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--resolution", type=int, default=64, help="pixels")
    parser.add_argument("--out", type=Path, default=RESULT)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_model(folder / "model")
        pictures(folder / "mona", args.resolution, 2)
        places = [f"model.path={folder / 'model'}", f"dataset.path={folder / 'mona'}", f"out={folder / 'run'}"]
        given = ["character", "model=sd15", *places, f"cache={folder / 'cache'}", f"model.resolution={args.resolution}"]
        device, dtype = ("cuda", "bfloat16") if torch.cuda.is_available() else ("cpu", "float32")  # as they are fast
        given.append(f"model.dtype={dtype}")
        content: dict[str, Any] = {**provenance(), "device": device, "dtype": dtype}
        with no_network():
            content["check"] = said(["check", *given, *SHORT, "audit=false"])
            content["tune"] = said(["tune", *given, *SHORT])
        exit_codes = content["check"]["exit_code"], content["tune"]["exit_code"]
        if exit_codes not in ((0, 0), (0, UNMEASURED_EXIT_CODE)):
            raise SystemExit(f"expected exit codes 0 and 0, or {UNMEASURED_EXIT_CODE} if unmeasured; got {exit_codes}")
        content["files"] = {stage: len(list((folder / "run").glob(stage))) for stage in STAGES}
        result = json.loads((folder / "run" / "result.json").read_text(encoding="utf-8"))
        content["unmeasurable"] = result["best"]["unmeasurable"]
        text = json.dumps(content, indent=1).replace(name, "FOLDER")
    write_atomic(args.out, text + "\n")
    print(text)
    if not all(content["files"].values()):
        raise SystemExit("a stage has left no file")


def write_model(folder: Path) -> None:
    """A full-size SD1.5 as diffusers saves one, in bfloat16."""
    model: Any = random_model("sd1", 512, "bfloat16", torch.device("cpu"))
    StableDiffusionPipeline(
        vae=model.vae.to(torch.bfloat16),
        text_encoder=model.text_encoder,
        tokenizer=model.tokenizer,
        unet=model.unet,
        scheduler=model.scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)


@contextlib.contextmanager
def no_network() -> Iterator[None]:
    """Whoever looks up a host or connects to one fails, as on a machine without a network."""

    def refuse(*_: Any, **__: Any) -> Any:
        raise OSError("the network is switched off")

    own = socket.getaddrinfo, socket.socket.connect
    socket.getaddrinfo = socket.socket.connect = refuse  # type: ignore[method-assign]
    try:
        yield
    finally:
        socket.getaddrinfo, socket.socket.connect = own  # type: ignore[method-assign]


def said(arguments: list[str]) -> dict[str, Any]:
    """A command's exit code, its seconds, and its last words."""
    out, began = io.StringIO(), time.perf_counter()
    with contextlib.redirect_stdout(out):
        code = autolora(arguments)
    words = [line for line in out.getvalue().splitlines() if line.strip()]
    return {"exit_code": code, "seconds": round(time.perf_counter() - began, 1), "said": words[-12:]}


if __name__ == "__main__":
    main()
