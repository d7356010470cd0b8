"""The comparison of two checkouts: studies become flat outcomes, and every difference is named."""

from __future__ import annotations

import json
from pathlib import Path

import optuna
import pytest
import torch
from safetensors.torch import save_file

from experiments.common.study_outcome import differences, study_outcome
from experiments.equivalence import key_names, study_arguments, table

KEY = "adapter.dim"


def write_study(folder: Path, uid: str, value: float = 0.5, weight: float = 1.0, seconds: float = 3.0) -> Path:
    """Write the files of a study with one trial."""
    (folder / "trials" / uid / "checkpoints").mkdir(parents=True)
    (folder / "best").mkdir()
    study = optuna.create_study(storage=f"sqlite:///{folder / 'study.db'}", study_name="small")
    trial = optuna.create_trial(
        value=value,
        params={f"recipe/{KEY}": 8},
        distributions={f"recipe/{KEY}": optuna.distributions.IntDistribution(4, 16)},
        user_attrs={"uid": uid, "training_seconds": seconds},
    )
    study.add_trial(trial)
    result = {"seconds": seconds, "best": {"trial": 0, "score": {"value": value}, "verdict": f"a sentence {seconds}"}}
    (folder / "result.json").write_text(json.dumps(result))
    (folder / "trials" / uid / "curve.json").write_text(json.dumps([{"step": 8, "objective": value}]))
    tensors = {"layer.lora_up.weight": torch.full((2, 2), weight), "layer.alpha": torch.tensor(1.0)}
    save_file(tensors, folder / "trials" / uid / "checkpoints" / "8.safetensors")
    metadata = {"ss_network_dim": "8", "ss_training_started_at": str(seconds)}
    save_file(tensors, folder / "best" / "mona.safetensors", metadata)
    return folder


def test_random_names_times_and_sentences_are_not_compared(tmp_path: Path) -> None:
    first = study_outcome(write_study(tmp_path / "a", "f00", seconds=3.0))
    second = study_outcome(write_study(tmp_path / "b", "ba7", seconds=4.0))
    assert differences(first, second) == []
    assert {"best/tensor/mona/layer.alpha", "trial 0/curve.json/0/objective", "search/trial 0/values"} <= first.keys()


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"weight": 1.0000001}, ["best/tensor/mona/layer.lora_up.weight", "trial 0/checkpoints/8.safetensors/layer"]),
        ({"value": 0.5000001}, ["result/best/score/value", "trial 0/curve.json/0/objective", "search/trial 0/values"]),
    ],
)
def test_every_changed_bit_is_named(tmp_path: Path, change: dict[str, float], names: list[str]) -> None:
    first = study_outcome(write_study(tmp_path / "a", "f00"))
    second = study_outcome(write_study(tmp_path / "b", "f00", **change))
    found = differences(first, second)
    assert len(found) == len(names)
    assert all(any(text.startswith(name) for text in found) for name in names)


def test_a_checkout_is_configured_by_the_names_that_it_knows(tmp_path: Path) -> None:
    renamed = key_names(tmp_path)  # a checkout without a table of renamed keys
    assert renamed["budget.n_trials"] == "budget.trials" and renamed["init_lora"] == "init"
    assert "budget.minutes" not in renamed
    arguments = study_arguments("lora", 3, tmp_path, tmp_path, renamed)
    assert "train.steps_per_concept=16" in arguments and "study.seed=3" in arguments
    assert any("train.preserve_share: {choice" in argument for argument in arguments)
    assert key_names(Path(__file__).parents[2]) == {}


def test_the_table_shows_what_differs() -> None:
    entries = [
        {"kind": "ia3", "seed": seed, "compared": 10, "tensors": 4, "differing": differing}
        for seed, differing in ((0, []), (1, ["a: 1 -> 2", "b: 1 -> 2", "c: 1 -> 2", "d: 1 -> 2"]))
    ]
    text = table(entries, ("old", "new"))
    assert "| ia3 | 4 | 20 | equal | differs: a: 1 -> 2; b: 1 -> 2; c: 1 -> 2 and 1 more |" in text
