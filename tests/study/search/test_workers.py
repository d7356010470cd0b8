"""A worker's life: what it does with trials that fail, that it lost, and with signals; how many start here."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import optuna
import pytest
import torch
from optuna.trial import TrialState

from autolora.adapters.kinds import LoHa, LoRA
from autolora.errors import ConfigError, MemoryFull, StorageError, StudyError
from autolora.evaluation import throughput as speed
from autolora.evaluation.session import Session
from autolora.paperdoll.world import write_dataset
from autolora.settings import Budget, StudySettings
from autolora.stop import Stopped, listening
from autolora.study.definition import StudyDefinition
from autolora.study.lifecycle import join_study
from autolora.study.search import local_workers as workers
from autolora.study.search import worker
from autolora.study.search.failures import TRIES
from autolora.study.search.liveness import OWNER
from autolora.train.run import Run
from tests.study.search import chaos

pytestmark = pytest.mark.slow  # trains, or starts a server, a browser or processes

TRIALS = 3


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Session, str]:
    folder = tmp_path_factory.mktemp("shared")
    write_dataset(folder / "doll", seed=1, outfits=1, images_per_outfit=6, size=32)
    settings = chaos.Settings(str(folder), str(folder / "doll"), None, 1, 0, 0, [])
    return chaos.open_tiny_session(settings), settings.pictures


Begun = tuple[StudyDefinition, optuna.Study, Session, chaos.Said]


@pytest.fixture
def begun(shared: tuple[Session, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Begun:
    """A study of three trials in a folder of its own, not yet run."""
    monkeypatch.chdir(tmp_path)
    session, pictures = shared
    return *begin(tmp_path, pictures), session, chaos.Said()


def begin(folder: Path, pictures: str) -> tuple[StudyDefinition, optuna.Study]:
    definition = chaos.planned(chaos.Settings(str(folder), pictures, None, 1, 0, 0, []))
    definition = replace(definition, settings=replace(definition.settings, budget=Budget(TRIALS)))
    chaos.start(definition)
    return definition, join_study(definition, chaos.BASE_HASH, print)


@contextmanager
def on_measure(act: Any) -> Iterator[None]:
    """Do something whenever a checkpoint is measured, before it is kept."""
    measure = chaos.ScoredByLoss.measure

    def acting(self: Session, checkpoint: Any, *rest: Any) -> Any:
        act(checkpoint)
        return measure(self, checkpoint, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chaos.ScoredByLoss, "measure", acting)
        yield


def states(study: optuna.Study) -> list[str]:
    return [trial.state.name for trial in study.trials[:TRIALS]]


def test_a_trial_that_fails_is_tried_again_and_then_left(begun: Begun) -> None:
    definition, study, session, said = begun
    bad = study.trials[1].system_attrs["fixed_params"]["doll-adamw/optimizer.lr"]
    tried = []

    def fail(checkpoint: Any) -> None:
        if checkpoint.run.optimizer.lr == bad and checkpoint.step == 8:
            tried.append(checkpoint.step)
            raise RuntimeError("CUDA out of memory")

    with on_measure(fail):
        chaos.run(definition, study, session, said)
    assert states(study) == ["COMPLETE", "FAIL", "COMPLETE"] and len(tried) == TRIES
    failed = study.trials[1]
    assert "CUDA out of memory" in failed.user_attrs["reason"]
    assert "RuntimeError" in (definition.folder / "trials" / failed.user_attrs["uid"] / "failure.txt").read_text()
    assert len(study.trials) == chaos.TRIALS  # no copies


def test_trials_trained_at_once_end_as_alone(begun: Begun, shared: tuple[Session, str], tmp_path: Path) -> None:
    definition, packed, session, said = begun
    chaos.run(replace(definition, settings=replace(definition.settings, trials_per_device=2)), packed, session, said)
    assert session.context.adapter.slots == 1 and session.context.adapter.layers  # as it was, for the finals
    (tmp_path / "alone").mkdir()
    definition, alone = begin(tmp_path / "alone", shared[1])
    chaos.run(definition, alone, session, said)
    assert states(packed) == states(alone) == ["COMPLETE"] * TRIALS
    for one, other in zip(packed.trials[:TRIALS], alone.trials[:TRIALS], strict=True):
        assert one.params == other.params and one.user_attrs["reason"] == other.user_attrs["reason"]
        assert one.value == pytest.approx(other.value, rel=1e-4)


def test_a_pack_takes_those_that_can_and_the_others_train_alone(
    begun: Begun, shared: tuple[Session, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second of three trials has an adapter that trains alone: the third takes its turn after it, in a pack."""
    definition, study, session, said = begun
    alone = study.trials[1].system_attrs["fixed_params"]["doll-adamw/optimizer.lr"]

    original = StudyDefinition.run

    def run(self: StudyDefinition, recipe: str, values: dict[str, Any]) -> Run:
        made = original(self, recipe, values)
        return replace(made, adapter=LoHa(dim=2, alpha=2.0)) if values.get("optimizer.lr") == alone else made

    mixed = replace(definition, settings=replace(definition.settings, trials_per_device=2))
    monkeypatch.setattr(StudyDefinition, "run", run)
    sets = []
    with on_measure(
        lambda checkpoint: sets.append((type(checkpoint.run.adapter), session.context.adapter.layers == {}))
    ):
        chaos.run(mixed, study, session, said)
    assert states(study) == ["COMPLETE"] * TRIALS
    assert {widened for kind, widened in sets if kind is LoHa} == {False}
    assert {widened for kind, widened in sets if kind is LoRA} == {True}
    assert [trial.user_attrs.get("failures", 0) for trial in study.trials[:TRIALS]] == [0, 0, 0]


def test_a_pack_that_fails_goes_on_one_at_a_time(begun: Begun) -> None:
    """Of several trials at once none can be blamed."""
    definition, study, session, said = begun
    bad = study.trials[1].system_attrs["fixed_params"]["doll-adamw/optimizer.lr"]

    def fail(checkpoint: Any) -> None:
        if checkpoint.run.optimizer.lr == bad:
            raise RuntimeError("no such kernel")

    with on_measure(fail):
        chaos.run(replace(definition, settings=replace(definition.settings, trials_per_device=2)), study, session, said)
    assert states(study) == ["COMPLETE", "FAIL", "COMPLETE"]
    assert [trial.user_attrs.get("failures", 0) for trial in study.trials[:TRIALS]] == [0, TRIES, 0]
    assert "go on 1 at a time" in Path("said").read_text()


def test_a_pack_that_needs_too_much_memory_goes_on_half_as_wide(begun: Begun) -> None:
    definition, study, session, said = begun
    failed = []

    def fail(_: Any) -> None:
        if not failed:
            failed.append(True)
            raise torch.OutOfMemoryError("CUDA out of memory")

    with on_measure(fail):
        chaos.run(replace(definition, settings=replace(definition.settings, trials_per_device=4)), study, session, said)
    assert "its trials go on 2 at a time" in Path("said").read_text()
    assert states(study) == ["COMPLETE"] * TRIALS and not any("failures" in t.user_attrs for t in study.trials)


@pytest.mark.parametrize(
    ("rates", "trials", "expected"),
    [({1: 1.0, 2: 1.8, 4: 1.7}, 20, 2), ({1: 1.0, 2: 0.9}, 20, 1), ({}, 20, 1), (None, 5, 1)],
)
def test_auto_takes_what_is_fastest(
    begun: Begun, monkeypatch: pytest.MonkeyPatch, rates: dict[int, float] | None, trials: int, expected: int
) -> None:
    """And does not even try where a fifth of the trials is one; one at a time where not even one fits."""
    definition, _, session, said = begun
    asked = []
    monkeypatch.setattr(
        worker, "packed_speeds", lambda run, context, most: asked.append((run.name, most)) or rates or {}
    )
    budget = replace(definition.settings.budget, n_trials=trials)
    auto = replace(definition, settings=replace(definition.settings, trials_per_device="auto", budget=budget))
    assert worker.auto_batch_trials(auto, session, said) == expected
    assert asked == ([] if rates is None else [("doll-adamw", 4)])


def test_speeds_are_tried_until_they_rise_no_more_or_memory_is_out(
    begun: Begun, monkeypatch: pytest.MonkeyPatch
) -> None:
    definition, _, session, _ = begun
    run = definition.run("doll-adamw", {})
    rates = speed.packed_speeds(run, session.context, 3)
    assert rates.keys() == {1, 2} and min(rates.values()) > 0 and session.context.adapter.slots == 1
    full = [MemoryFull("too small"), torch.OutOfMemoryError()]
    few = [([1.0, error], [1]) for error in full] + [([error], []) for error in full]
    for given, tried in (([1.0, 2.0, 2.1, 9.0], [1, 2, 4]), *few):
        monkeypatch.setattr(speed, "_packed_speed", Mock(side_effect=given))
        assert list(speed.packed_speeds(run, session.context, 8)) == tried


def test_a_worker_on_which_everything_fails_stops(begun: Begun) -> None:
    def fail(_: Any) -> None:
        raise RuntimeError("no such device")

    definition, study, session, said = begun
    with on_measure(fail), pytest.raises(StudyError, match=r"in a row failed here.*no such device"):
        chaos.run(definition, study, session, said)
    assert states(study)[2] == "WAITING"  # another worker may do better
    chaos.run(definition, study, session, said)
    assert states(study)[2] == "COMPLETE"


def test_a_full_disk_hands_the_trial_back(begun: Begun) -> None:
    def full(_: Any) -> None:
        raise StorageError("no space left")

    definition, study, session, said = begun
    with on_measure(full), pytest.raises(StorageError):
        chaos.run(definition, study, session, said)
    assert states(study) == ["WAITING"] * TRIALS
    assert all("failures" not in trial.user_attrs for trial in study.trials)


def test_a_zombie_keeps_nothing(begun: Begun) -> None:
    """While a checkpoint is measured another worker takes the trial over, and ends it."""
    definition, study, session, said = begun
    lost = []

    def lose(checkpoint: Any) -> None:
        running = [trial for trial in study.trials if trial.state is TrialState.RUNNING]
        if checkpoint.step == 8 and not lost:
            lost.append(running[0].number)
            study._storage.set_trial_user_attr(running[0]._trial_id, OWNER, "elsewhere/1/1.0")
            study._storage.set_trial_state_values(running[0]._trial_id, TrialState.COMPLETE, [0.5])

    with on_measure(lose):
        chaos.run(definition, study, session, said)
    assert lost == [0] and states(study) == ["COMPLETE"] * TRIALS
    assert study.trials[0].value == 0.5 and "another worker runs it now" in Path("said").read_text()
    kept = (definition.folder / "trials" / study.trials[0].user_attrs["uid"] / "curve.json").read_text()
    assert kept.count('"step"') == 1


def test_a_signal_hands_the_trial_back(begun: Begun) -> None:
    def stop(checkpoint: Any) -> None:
        if checkpoint.step == 8:
            raise Stopped

    definition, study, session, said = begun
    with on_measure(stop), pytest.raises(Stopped):
        chaos.run(definition, study, session, said)
    assert states(study) == ["WAITING"] * TRIALS and study.trials[0].user_attrs[OWNER] == ""
    chaos.run(definition, study, session, said)
    assert states(study) == ["COMPLETE"] * TRIALS
    measured = Path("measured").read_text().splitlines()
    assert len(measured) == len(set(measured)) == TRIALS * chaos.CHECKPOINTS


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="no SIGUSR1 on Windows")
@pytest.mark.parametrize("warning", ["SIGUSR1", "SIGUSR2"])  # the second is submitit's
def test_slurm_warns_by_a_signal(warning: str) -> None:
    with listening(), pytest.raises(Stopped):
        os.kill(os.getpid(), getattr(signal, warning))


def test_a_signal_that_arrives_in_a_destructor_stops_at_the_next_step(
    begun: Begun, capsys: pytest.CaptureFixture[str]
) -> None:
    class Signalled:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGTERM)

    def lose(checkpoint: Any) -> None:
        if checkpoint.step == 8:
            Signalled()

    definition, study, session, said = begun
    with listening(), on_measure(lose), pytest.raises(Stopped):
        chaos.run(definition, study, session, said)
    assert states(study) == ["WAITING"] * TRIALS and study.trials[0].user_attrs[OWNER] == ""
    assert "Traceback" not in capsys.readouterr().err


def test_a_trial_draws_the_same_in_whatever_worker(begun: Begun) -> None:
    definition, *_ = begun
    uniform = optuna.distributions.FloatDistribution(0, 1)

    def draw(number: int) -> float:
        study = join_study(definition, chaos.BASE_HASH, print)
        return float(study.sampler.sample_independent(study, study.trials[number], "lr", uniform))

    assert draw(2) == draw(2) != draw(1)


def test_one_worker_a_gpu_or_a_core(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert workers.count_workers("auto") == 3
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    assert workers.count_workers("auto") == 2
    assert workers.environments(3) == [{"CUDA_VISIBLE_DEVICES": gpu} for gpu in ("2", "5", "2")]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(workers, "cores", lambda: 8)
    assert workers.count_workers("auto") == 8
    assert workers.environments(2) == [{"OMP_NUM_THREADS": "4"}] * 2
    for given in (0, "many", True, 1.5):
        with pytest.raises(ConfigError, match="workers must be auto or a whole number"):
            StudySettings("mona", {}, workers=given)
