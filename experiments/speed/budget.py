"""Does a study end when its budget says so? Studies of the test world under several budgets, each as a user starts it.

    python -m experiments.speed.budget --minutes 1 2 3 5 8

Each budget has a folder and a cache of its own, so preparation is in it. With `--busy` a second process computes
beside each study, which slows it down. The table tells how far each command ended from its budget, when its
first LoRA file was there, and how much it tried. Writes experiments/results/speed/budget.json.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from autolora.files import write_atomic
from autolora.provenance import provenance
from experiments.common import results
from experiments.common.arguments import argument_parser

OUT = results.RESULTS / "speed" / "budget.json"
ALLOWED = (0.05, 30.0)  # share of the budget, and seconds beside it


def measure(minutes: float, folder: Path) -> dict[str, Any]:
    """Run one study; seconds to its end and to its first LoRA file."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    arguments = ["tune", "quickstart", f"budget.minutes={minutes:g}", f"out={folder}", f"cache={folder / 'cache'}"]
    began, first = time.perf_counter(), None
    with subprocess.Popen(
        [sys.executable, "-m", "autolora.cli", *arguments, "json=true", "quiet=true"],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        while process.poll() is None:
            if first is None and [*folder.glob("best/*.safetensors")]:
                first = time.perf_counter() - began
            time.sleep(0.1)
        took = time.perf_counter() - began
    result = json.loads((folder / "result.json").read_text("utf-8")) if process.returncode == 0 else {}
    off = took - 60 * minutes
    return {
        "budget seconds": 60 * minutes,
        "ended after": round(took, 1),
        "off by": round(off, 1),
        "within 5% and 30 s": abs(off) <= ALLOWED[0] * 60 * minutes + ALLOWED[1],
        "first file after": first and round(first, 1),
        "exit code": process.returncode,
        "trials": result.get("trials"),
        "training seconds": result.get("training_seconds"),
        "finals": bool(result.get("sweep")),
        "score": (result.get("best", {}).get("score") or {}).get("value"),
    }


def busy() -> subprocess.Popen[bytes]:
    """A process that computes until it is ended."""
    return subprocess.Popen([sys.executable, "-c", "while True: sum(range(10_000))"])


def main() -> None:
    """Measure, print a table and write it."""
    parser = argument_parser(__doc__)
    parser.add_argument("--minutes", type=float, nargs="+", default=[1, 1.5, 2, 3, 4, 5, 6, 8, 10, 12, 15, 20])
    parser.add_argument("--busy", action="store_true", help="let a second process compute beside each study")
    parser.add_argument("--path", type=Path, default=OUT, help="the file of results")
    args = parser.parse_args()
    rows = []
    with ExitStack() as stack:
        if args.busy:
            process = stack.enter_context(busy())
            stack.callback(process.terminate)
        for minutes in args.minutes:
            with tempfile.TemporaryDirectory() as name:
                rows.append(measure(minutes, Path(name)))
            print(json.dumps(rows[-1]), flush=True)
    found = {"busy second process": args.busy, "rows": rows}
    write_atomic(args.path, json.dumps(provenance() | found, indent=2) + "\n")


if __name__ == "__main__":
    main()
