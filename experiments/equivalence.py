"""Check that two checkouts of autolora give the same LoRA: the same small studies, compared bit for bit.

    python -m experiments.equivalence OLD_CHECKOUT --seeds 0 1 2

For each adapter kind and seed it runs `autolora tune` on a very small study of the packaged character, once with the
code of OLD_CHECKOUT and once with that of NEW_CHECKOUT (this one, unless `--new` names another). Then it compares the
tensors and the metadata of the exported file, every checkpoint that was kept, the sampled parameters, every score with
its terms, intervals and constraints, and the selected checkpoint. Config keys, fields and terms that were renamed
between the two commits are translated; texts, times and random names are not compared.

A study samples the same values under renamed keys only if the keys keep their alphabetical order, in which Optuna's TPE
draws them. The keys that are sampled here keep it. A study whose keys change their order samples other values of the
same ranges, once the random startup trials are over.

Finished studies are kept by commit and reused, so a stopped run continues. Writes
experiments/results/equivalence/equivalence.md and equivalence.json.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autolora.errors import StudyError
from autolora.files import write_atomic
from autolora.provenance import provenance
from experiments.common.study_outcome import differences, study_outcome

HERE = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results" / "equivalence"
COMMAND = "python -m experiments.equivalence OLD_CHECKOUT"  # without the paths of a machine
# A learning rate per adapter kind at which two short epochs change the renders.
LEARNING_RATES = {"lora": 2e-2, "locon": 1e-2, "dylora": 4e-2, "dora": 2e-2, "loha": 3e-2, "lokr": 4e-2, "ia3": 0.5}
LEARNING_RATE = "optimizer.lr"
# Further keys that the second trial samples. All of them were renamed; they sort in the same order by their old names.
SPACE = {
    "train.prior_preservation_ratio": "{choice: [0.25, 0.5]}",
    "train.min_lora_multiplier": "{linear: [0.6, 0.9]}",
    "train.caption_dropout_rate": "{choice: [0.1, 0.2]}",
}
SETTINGS: dict[str, object] = {
    "adapter.dim": 8,
    "adapter.alpha": 4,
    "train.epochs": 2,
    "train.images_per_concept": 16,
    "train.num_class_images": 8,
    "train.prior_preservation_ratio": 0.25,
    "train.min_lora_multiplier": 0.7,
    "train.caption_dropout_rate": 0.1,
    "model.num_class_images": 8,
    "model.render.num_inference_steps": 2,
    "model.render.search_inference_steps": 2,
    "captions.absorb_tags": "marks",
    "budget.n_trials": 2,
    "budget.minutes": "null",
    "study.n_startup_trials": 1,
    "study.n_finalists": 2,
    "study.final_seeds": 0,
    "scoring.weights": "[1.0]",
    "scoring.n_bootstrap": 20,
    "scoring.num_negative_renders": 16,
    "scoring.num_class_renders": 2,
    "scoring.seeds_per_trigger_prompt": 1,
    "scoring.seeds_per_class_prompt": 1,
    "scoring.trigger_prompts": "['smile, arms up, blue sky']",
    "scoring.outfit_prompts": "['blue dress, glasses, beach, smile', 'red hoodie, city, frown, arms up']",
    "scoring.class_prompts": "['smile, blue sky']",
    "scoring.unrelated_prompts": "[city]",
}
# One kind is scored at two LoRA weights, and its finals train both recipes again with another training seed.
LONGER_KIND, LONGER = "lora", {"scoring.weights": "[0.7, 1.0]", "study.final_seeds": 1}
CONVOLUTIONS = {"locon": {"adapter.conv_dim": 4, "adapter.conv_alpha": 2}}


def study_arguments(kind: str, seed: int, out: Path, cache: Path, old_names: Mapping[str, str]) -> list[str]:
    """The overrides of `autolora tune quickstart` for one small study.

    Args:
        kind: the adapter kind, a file of `conf/adapter`.
        seed: the seed of the study and of the training run.
        out: the study's folder.
        cache: the folder of latents and base renders.
        old_names: config keys that this checkout knows by another name.
    """

    def key_of(name: str) -> str:
        return old_names.get(name, name)

    rate = LEARNING_RATES[kind]
    space = {LEARNING_RATE: f"{{log: [{rate / 2}, {rate * 2}]}}", **SPACE}
    ranges = ", ".join(f"{key_of(name)}: {values}" for name, values in space.items())
    settings = {**SETTINGS, LEARNING_RATE: rate, "train.seed": seed, "study.seed": seed}
    settings |= CONVOLUTIONS.get(kind, {}) | (LONGER if kind == LONGER_KIND else {})
    return [
        f"out={out}",
        f"cache={cache}",
        f"adapter={kind}",
        "~study.recipes",
        f"+study.recipes={{doll-adamw: {{{ranges}}}}}",
        *(f"{key_of(name)}={value}" for name, value in settings.items()),
    ]


def key_names(checkout: Path) -> dict[str, str]:
    """Config keys by their present name, with the names that a checkout has for those it does not know yet."""
    renamed = _renamed_keys(HERE)
    present = set(_renamed_keys(checkout).values())
    names: dict[str, str] = {}
    for old, new in renamed.items():
        same_section = (
            old.rpartition(".")[0] == new.rpartition(".")[0]
        )  # keys that moved to another section did so long ago
        if new not in present and same_section:
            names[new] = old
    return names


def _renamed_keys(checkout: Path) -> dict[str, str]:
    """The table of renamed keys of a checkout, read without importing it; empty where there is none."""
    path = checkout / "autolora" / "renamed_keys.py"
    if not path.is_file():
        return {}
    for node in ast.parse(path.read_text("utf-8")).body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
            return dict(ast.literal_eval(node.value))
    raise StudyError(f"{path} has no table of renamed keys")


def commit_of(checkout: Path) -> str:
    """The commit of a checkout, with a `+` where tracked files differ from it."""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=checkout, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    changed = git("status", "--porcelain", "-uno", "--", "autolora", "conf", "studies")
    return git("rev-parse", "--short=12", "HEAD") + ("+" if changed else "")


def run_study(checkout: Path, kind: str, seed: int, out: Path) -> Path:
    """Run one small study with the code of a checkout, unless it has been run, and return its folder.

    Raises:
        StudyError: the command failed; its last lines are in the message.
    """
    folder = out / commit_of(checkout) / f"{kind}-{seed}"
    if (folder / "result.json").is_file() and not folder.parent.name.endswith("+"):
        return folder
    arguments = study_arguments(kind, seed, folder, folder.parent / "cache", key_names(checkout))
    environment = {k: v for k, v in os.environ.items() if k != "AUTOLORA_STORAGE"}
    environment |= {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    shutil.rmtree(folder, ignore_errors=True)  # a study of a changed checkout is not continued
    folder.mkdir(parents=True)  # the working directory: it has no recipes of its own in `conf/`
    done = subprocess.run(
        [sys.executable, "-m", "autolora.cli", "tune", "quickstart", *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise StudyError(f"{kind}, seed {seed} with {checkout}: exit code {done.returncode}\n{done.stderr[-2000:]}")
    return folder


def compare(old: Path, new: Path, kind: str, seed: int, out: Path) -> dict[str, Any]:
    """Run one study with both checkouts and compare everything that it found."""
    began = time.perf_counter()
    before, after = (study_outcome(run_study(checkout, kind, seed, out)) for checkout in (old, new))
    differing = differences(before, after)
    print(f"{kind}, seed {seed}: {_in_words(differing)} ({time.perf_counter() - began:.0f} s)", flush=True)
    return {
        "kind": kind,
        "seed": seed,
        "compared": len(before),
        "tensors": sum(name.startswith("best/tensor") for name in before),
        "differing": differing,
    }


def _in_words(differing: list[str]) -> str:
    if not differing:
        return "equal"
    rest = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
    return "differs: " + "; ".join(differing[:3]) + rest


def table(comparisons: list[dict[str, Any]], commits: tuple[str, str]) -> str:
    """One row per adapter kind and one column per seed."""
    seeds = sorted({entry["seed"] for entry in comparisons})
    kinds = [kind for kind in LEARNING_RATES if any(entry["kind"] == kind for entry in comparisons)]
    cells = {(entry["kind"], entry["seed"]): entry for entry in comparisons}
    lines = [
        f"The same small studies at commits {commits[0]} and {commits[1]}: tensors and metadata of the exported",
        "files, kept checkpoints, sampled parameters, scores with terms, intervals and constraints, and the selected",
        "checkpoint.",
        "",
        "| adapter | tensors exported | values compared | " + " | ".join(f"seed {seed}" for seed in seeds) + " |",
        "|" + "---|" * (3 + len(seeds)),
    ]
    for kind in kinds:
        rows = [cells[kind, seed] for seed in seeds if (kind, seed) in cells]
        verdicts = [_in_words(cells[kind, seed]["differing"]) if (kind, seed) in cells else "" for seed in seeds]
        compared = sum(row["compared"] for row in rows)
        lines.append(f"| {kind} | {rows[0]['tensors']} | {compared} | {' | '.join(verdicts)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Compare the two checkouts and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path, help="a checkout of the older commit")
    parser.add_argument("--new", type=Path, default=HERE, help="a checkout of the newer commit")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--kinds", nargs="+", choices=LEARNING_RATES, default=list(LEARNING_RATES))
    parser.add_argument("--out", type=Path, default=Path("runs/equivalence"), help="the folder of the studies")
    args = parser.parse_args()
    old, new, out = args.old.resolve(), args.new.resolve(), args.out.resolve()
    comparisons = []
    for seed in args.seeds:
        for kind in args.kinds:
            comparisons.append(compare(old, new, kind, seed, out))
            commits = commit_of(old), commit_of(new)
            facts = provenance() | {"command": COMMAND, "commits": commits, "comparisons": comparisons}
            write_atomic(RESULTS / "equivalence.json", json.dumps(facts, indent=1) + "\n")
            write_atomic(RESULTS / "equivalence.md", table(comparisons, commits))
    if any(entry["differing"] for entry in comparisons):
        sys.exit(1)


if __name__ == "__main__":
    main()
