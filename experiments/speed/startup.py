"""How soon does autolora answer? Seconds of the commands that need no model, in processes of their own.

    python -m experiments.speed.startup

It measures the help, the composed config, two mistakes, and the report of a made-up study of 50 trials with eight
checkpoints each, which has images of every checkpoint. Each command runs once to warm the disk's cache and then several
times, on one thread; the result is the median. Writes experiments/results/speed/startup.json.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from autolora.evaluation.samples import Sample, write_samples
from autolora.files import write_atomic
from autolora.provenance import provenance
from autolora.study.definition import StudyDefinition
from autolora.study.space import suggest
from experiments.common import results
from experiments.common.arguments import argument_parser
from tests.report.made_up import render_like
from tests.study.results.test_comparison import point
from tests.study.test_warm_start import ADAMW, planned, start

TRIALS, CHECKPOINTS, IMAGES, SIDE_PX = 50, 8, 7, 128
OUT = results.RESULTS / "speed" / "startup.json"


def large_study(folder: Path) -> StudyDefinition:
    """Write a study whose search has ended, with images of every checkpoint; its finals have not begun."""
    definition = planned(folder, ADAMW)
    study, _ = start(definition)
    rng = np.random.default_rng(0)
    samples = [Sample("trigger", f"1girl, mona, {i}", f"1girl, {i}", i) for i in range(IMAGES)]
    for number in range(TRIALS):
        trial, uid = study.ask(), f"{number:012x}"
        recipe, _ = suggest(trial, definition.space)
        trial.set_user_attr("recipe", recipe)
        trial.set_user_attr("uid", uid)
        curve = [point(rng.uniform(0.2, 0.8), 100 * (k + 1)) for k in range(CHECKPOINTS)]
        for result in curve:
            images = [np.asarray(render_like(1000 * number + result.step + i, SIDE_PX)) for i in range(IMAGES)]
            write_samples(definition.trial_files[uid] / "samples", f"{result.step}", samples, images)
        curve_json = json.dumps([asdict(replace(result, verdict="good")) for result in curve])
        write_atomic(definition.trial_files[uid] / "curve.json", curve_json)
        study.tell(trial, max(result.objective for result in curve))
    return definition


def seconds(arguments: list[str], runs: int, folder: Path) -> float:
    """Return the median of the seconds of a command."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    taken = []
    for _ in range(runs + 1):
        clock = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "autolora.cli", *arguments], cwd=folder, env=environment, capture_output=True
        )
        taken.append(time.perf_counter() - clock)
    return statistics.median(taken[1:])


def main() -> None:
    """Measure, print a table and write it."""
    parser = argument_parser(__doc__)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        study = large_study(folder / "study")
        commands = {
            "autolora --help": ["--help"],
            "autolora tune quickstart --cfg job": ["tune", "quickstart", "--cfg", "job"],
            "a misspelt key": ["tune", "quickstart", "train.epoch=2"],
            "a folder that does not exist": ["tune", "character", "dataset.path=missing"],
            "a base model that does not exist": ["tune", "quickstart", "model.path=missing"],
            f"autolora report, {TRIALS} trials": ["report", study.source, *study.arguments],
        }
        taken = {name: round(seconds(command, args.runs, folder), 2) for name, command in commands.items()}
        page = study.folder / "report" / "index.html"
        megabytes = round(page.stat().st_size / 1e6, 1)
    for name, median in taken.items():
        print(f"{name:40}{median:6.2f} s")
    print(f"{'the page of that report':40}{megabytes:6.1f} MB")
    found = {"runs": args.runs, "median seconds": taken, "page MB": megabytes}
    write_atomic(args.out, json.dumps(provenance() | found, indent=2) + "\n")


if __name__ == "__main__":
    main()
