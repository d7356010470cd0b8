"""A trial's curve: its best checkpoint, where it overcooked, when it is hopeless."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from autolora.adapters.kinds import LoRA
from autolora.errors import BrokenFile, StudyError
from autolora.evaluation.result import CheckpointResult, load_results
from autolora.evaluation.trial_folder import TrialFolder
from autolora.optim.optimizers import AdamW
from autolora.study.finals.candidates import mean_state
from autolora.train.checkpoint import Checkpoint
from autolora.train.run import Run

LIMIT = 0.5


def point(step: int, objective: float, bleed: tuple[float, float], diverged: bool = False) -> CheckpointResult:
    """A point whose class bleed at weights 0.7 and 1.0 is given; its interval is 0.1 to each side."""
    by_weight = {
        weight: {"bleed_class": {"value": value, "low": value - 0.1, "high": value + 0.1}}
        for weight, value in zip(("0.7", "1"), bleed, strict=True)
    }
    constraints = {"bleed_class": max(bleed) + 0.1 - LIMIT}
    score = {"value": objective}
    return CheckpointResult(
        step, 0.1, 0.1, [1.0], objective, score, by_weight=by_weight, constraints=constraints, diverged=diverged
    )


def record(*points: CheckpointResult) -> TrialFolder:
    return TrialFolder(Path("nowhere"), Run("made-up", LoRA(), AdamW()), list(points))


@pytest.mark.parametrize(
    ("bleeds", "step"),
    [
        ([(0.1, 0.2), (0.2, 0.6), (0.3, 0.7)], 200),  # over the limit at full weight from the second on
        ([(0.1, 0.6), (0.2, 0.3), (0.3, 0.4)], None),  # came back
        ([(0.1, 0.2), (0.2, 0.3)], None),
        ([(0.1, 0.2), (0.2, 0.45)], None),  # only the interval reaches over it
        ([(0.6, 0.7)], 100),
    ],
)
def test_overcooked_from_the_step_after_which_all_are(bleeds: list[tuple[float, float]], step: int | None) -> None:
    curve = [point(100 * (i + 1), 0.5, bleed) for i, bleed in enumerate(bleeds)]
    assert record(*curve).overcooked_step() == step


def test_hopeless_where_it_surely_bleeds_and_more_and_more() -> None:
    mild, sure, surer = (point(100, 0.1, (0.1, bleed)) for bleed in (0.55, 0.7, 0.9))
    assert record(mild, sure, surer).should_stop_overcooked(patience=2)
    assert not record(surer).should_stop_overcooked(patience=2)
    assert not record(mild, surer).should_stop_overcooked(patience=2)
    assert not record(surer, sure).should_stop_overcooked(patience=2)  # it gets better


def test_advice_against_bleed_knows_how_it_was_trained() -> None:
    calm, leaking = point(600, 0.5, (0.1, 0.2)), point(1200, 0.1, (0.1, 0.7))
    leaking = replace(leaking, bleed_by_prompt={"1girl": 0.7, "1girl, taco": 0.6, "1girl, bell": 0.1})
    known = record(calm, leaking)
    assert known.remedy(calm) == ""
    assert known.remedy(leaking).split(", or ") == [
        "48 regularization images of `1girl`, `1girl, taco` (train.reg_ratio=0.5 model.num_class_images=48)",
        "train.prior_preservation_ratio=0.4",
        "use weight 0.7",
        "stop after 600 images",
    ]
    trained = replace(known.run, train=replace(known.run.train, prior_preservation_ratio=1.0, reg_ratio=0.5))
    advice = TrialFolder(known.path, trained, known.results).remedy(leaking)
    assert "train.reg_ratio=1 " in advice and "train.prior_preservation_ratio=2" in advice


def test_the_best_is_the_earliest_of_equals() -> None:
    curve = [point(100, 0.4, (0, 0)), point(200, 0.6, (0, 0)), point(300, 0.6, (0, 0))]
    best = record(*curve).best_result()
    assert best is not None and best.step == 200
    assert record().best_result() is None


def scored(step: int, objective: float, half_width: float = 0.05) -> CheckpointResult:
    score = {"value": objective, "low": objective - half_width, "high": objective + half_width}
    terms = dict.fromkeys(("fidelity", "likeness", "editability", "bleed_class"), score)
    constraints = {"bleed_class": -objective}
    return CheckpointResult(step, 0.1, 0.1, [1.0], objective, score, terms=terms, constraints=constraints)


def checkpoint(run: Run, step: int) -> Checkpoint:
    state = {"layer.lora_down.weight": torch.full((2, 3), float(step))}
    return Checkpoint(run, step, 1.0, state, {}, 0.1, (0.1,), None, 1.0, done=False, diverged=False)


@pytest.mark.parametrize(
    ("objectives", "step", "beside"),
    [
        ([0.5, 0.8, 0.7], 200, [100, 300]),
        ([0.1, 0.9, 0.9, 0.2, 0.1], 200, [100, 300, 500]),  # the last one may stand beside the next best
        ([-0.1, -0.05], 200, [100]),
        ([0.9, 0.1, 0.1], 100, [200, 300]),
    ],
)
def test_what_the_finals_judge_is_kept(objectives: list[float], step: int, beside: list[int], tmp_path: Path) -> None:
    run = Run("made-up", LoRA(), AdamW())
    kept = TrialFolder(tmp_path, run)
    for number, objective in enumerate(objectives, 1):
        kept.append(checkpoint(run, 100 * number), scored(100 * number, objective))
    assert sorted(int(p.stem) for p in (tmp_path / "checkpoints").iterdir()) == sorted([step, *beside])
    best = TrialFolder.open(tmp_path, run).best_result()
    assert best is not None and best.step == step
    assert float(kept.load(best)["layer.lora_down.weight"][0, 0]) == step
    around = [p.step for p in kept.rendered_neighbours(best)]
    assert around == sorted([step, *(other for other in beside if abs(other - step) == 100)])


def test_what_was_not_rendered_is_not_averaged(tmp_path: Path) -> None:
    run = Run("made-up", LoRA(), AdamW())
    kept = TrialFolder(tmp_path, run)
    kept.append(checkpoint(run, 100), replace(scored(100, 0.1), score=None))
    kept.append(checkpoint(run, 200), scored(200, 0.5))
    assert [p.step for p in kept.rendered_neighbours(kept.results[1])] == [200]


def test_the_mean_of_adapters_leaves_what_is_no_weight() -> None:
    states = [{"layer.weight": torch.full((2,), value), "layer.on_input": torch.tensor(True)} for value in (1.0, 4.0)]
    mean = mean_state(states)
    assert mean["layer.weight"].tolist() == [2.5, 2.5] and mean["layer.on_input"].dtype is torch.bool


def test_a_lost_checkpoint_is_named(tmp_path: Path) -> None:
    lost = TrialFolder(tmp_path, Run("made-up", LoRA(), AdamW()))
    with pytest.raises(StudyError, match=r"100\.safetensors"):
        lost.load(scored(100, 0.5))


BROKEN_CHECKPOINTS: list[bytes | dict[str, object]] = [b"", b"no zip", b"PK\x03\x04", {}, {"fingerprint": "x"}]


@pytest.mark.parametrize("content", [None, *BROKEN_CHECKPOINTS])
def test_an_ended_trial_needs_no_checkpoint_to_continue_from(
    content: bytes | dict[str, object] | None, tmp_path: Path
) -> None:
    run, latest = Run("made-up", LoRA(), AdamW()), tmp_path / "latest.pt"
    kept = TrialFolder(tmp_path, run)
    for number, objective in enumerate([0.5, 0.8, 0.7], 1):
        kept.append(checkpoint(run, 100 * number), scored(100 * number, objective))
    if content is None:
        latest.unlink()
    elif isinstance(content, bytes):
        latest.write_bytes(content)
    else:
        torch.save(content, latest)
    ended = TrialFolder.open(tmp_path, run, ended=True)
    assert ended.results == kept.results
    best = ended.best_result()
    assert best is not None and float(ended.load(best)["layer.lora_down.weight"][0, 0]) == 200
    lines: list[str] = []
    assert TrialFolder.open_or_begin(tmp_path, run, lines.append).results == []
    assert content is None or ("latest.pt is broken" in lines[0] and "()" not in lines[0])


def test_the_last_result_of_an_ended_trial_counts_only_with_its_weights(tmp_path: Path) -> None:
    """It failed between both."""
    run = Run("made-up", LoRA(), AdamW())
    kept = TrialFolder(tmp_path, run)
    for number in (1, 2):
        kept.append(checkpoint(run, 100 * number), scored(100 * number, 0.5))
    (tmp_path / "latest.pt").unlink()
    (tmp_path / "checkpoints" / "200.safetensors").unlink()
    assert TrialFolder.open(tmp_path, run, ended=True).results == kept.results[:1]


RESULT = json.dumps(asdict(scored(100, 0.5)))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[",
        "{}",
        "[1]",
        "[" * 100_000,
        f"[{'1' * 100_000}]",
        f'[{RESULT[:-1]}, "unknown": 1}}]',
        f"[{RESULT.replace('0.45', 'null')}]",
        f"[{RESULT.replace('[1.0]', '[]')}]",
        f"[{RESULT.replace('fidelity', 'other')}]",
        f"[{RESULT.replace('100', 'NaN')}]",
    ],
)
def test_a_broken_curve_is_named(text: str, tmp_path: Path) -> None:
    (tmp_path / "curve.json").write_text(text)
    with pytest.raises(BrokenFile, match=r"curve\.json is broken \(.+\).*: restore it from a copy"):
        load_results(tmp_path)
