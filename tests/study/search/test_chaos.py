"""Workers killed at random, on every storage: nothing is lost, repeated or left half, and the pick is the same."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from autolora.paperdoll.world import write_dataset
from autolora.study.storage import open_storage, storage_url
from tests import processes
from tests.study.postgres import postgres
from tests.study.search import chaos
from tests.study.search.chaos import CHECKPOINTS, TRIALS, Settings

KILLS, WORKERS = 20, 4
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="workers are forked, which Windows cannot"),
]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("pictures") / "doll"
    write_dataset(out, seed=1, outfits=1, images_per_outfit=6, size=32)
    return out


def run(settings: Settings) -> list[optuna.trial.FrozenTrial]:
    """A study to its end, in a process of its own; returns its trials."""
    errors, log = Path(settings.folder) / "errors", Path(settings.folder) / "said"
    process = processes.start(chaos.main, settings, errors=errors)
    process.join()
    assert process.exitcode == 0, errors.read_text()[-3000:] + (log.read_text() if log.is_file() else "")
    storage = open_storage(storage_url(settings.storage, Path(settings.folder)), print)
    return optuna.load_study(study_name="chaos", storage=storage).trials


def curves(folder: Path, trials: list[optuna.trial.FrozenTrial]) -> dict[int, Any]:
    """Every trial's scored checkpoints."""
    return {t.number: json.loads((folder / "trials" / t.user_attrs["uid"] / "curve.json").read_text()) for t in trials}


def pick(folder: Path, trials: list[optuna.trial.FrozenTrial]) -> tuple[int, int]:
    """The trial and the step that a study would export."""
    points = [(p["objective"], -number, p["step"]) for number, curve in curves(folder, trials).items() for p in curve]
    _, number, step = max(points)
    return -number, step


@pytest.fixture(scope="module")
def undisturbed(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("undisturbed")
    return folder, run(Settings(str(folder), str(pictures), None, workers=2, kills=0, seed=0, outage=[]))


@contextmanager
def storage(kind: str) -> Iterator[tuple[str | None, list[list[str]]]]:
    """A storage URL, and what crashes its server and starts it again."""
    if kind == "postgres":
        with postgres() as server:
            yield server.url, server.outage
    else:
        yield None if kind == "sqlite" else kind, []


@pytest.mark.parametrize("kind", ["postgres", "sqlite", "journal"])
def test_twenty_workers_are_killed_and_nothing_is_lost(
    kind: str, pictures: Path, undisturbed: tuple[Path, Any], tmp_path: Path
) -> None:
    with storage(kind) as (url, outage):
        trials = run(Settings(str(tmp_path), str(pictures), url, WORKERS, KILLS, seed=1, outage=outage))
    assert len((tmp_path / "killed").read_text().split()) == KILLS
    assert [t.number for t in trials] == list(range(TRIALS))
    assert {t.state for t in trials} <= {TrialState.COMPLETE, TrialState.PRUNED}
    assert len({t.user_attrs["uid"] for t in trials}) == TRIALS == len(list((tmp_path / "trials").iterdir()))
    measured = Counter((tmp_path / "measured").read_text().splitlines())
    assert len(measured) == TRIALS * CHECKPOINTS
    assert measured.total() <= TRIALS * CHECKPOINTS + KILLS  # at most one interval repeated for each kill
    said = (tmp_path / "said").read_text()
    assert said.count("trained to its end") <= TRIALS  # one that is killed right after it told cannot say so
    assert all("failures" not in t.user_attrs for t in trials)
    assert not [path for path in tmp_path.rglob("*") if path.name.startswith(".")]
    if kind == "postgres":
        assert "is unreachable" in said and "is reachable again" in said
        assert "s3cret" not in "".join(
            p.read_text(errors="ignore") for p in tmp_path.rglob("*") if p.is_file() and p.suffix != ".json"
        )
    before, known = undisturbed
    assert curves(tmp_path, trials) == curves(before, known)  # bit for bit: losses, steps, verdicts
    assert pick(tmp_path, trials) == pick(before, known)
