"""A study that starts from earlier ones: what is tried first, what the sampler knows, what does not fit."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from autolora import config as cfg
from autolora.errors import ConfigError, StudyError
from autolora.evaluation.result import DIVERGED
from autolora.settings import build_settings
from autolora.study.definition import StudyDefinition, define_study
from autolora.study.lifecycle import is_started, join_study, open_study
from autolora.study.space import suggest
from autolora.study.storage import open_storage, storage_url, study_storage
from autolora.study.trials import ORIGIN, WINNER
from autolora.study.warm_start import gather_priors, known_priors

pytestmark = pytest.mark.slow  # trains, renders or loads many models

LR = "doll-adamw/optimizer.lr"
ADAMW = "doll-adamw: {optimizer.lr: {log: [1.0e-4, 1.0e-2]}, adapter.dim: {choice: [8, 16]}}"


def planned(folder: Path, recipes: str, *more: str, name: str = "mona") -> StudyDefinition:
    folder.mkdir(exist_ok=True)
    file = folder / "mine.yaml"
    file.write_text(f"# @package _global_\ndefaults: [override /model: paperdoll, override /scoring: paperdoll]\n"
                    f"budget: {{n_trials: 8}}\nstudy:\n  name: {name}\n  recipes:\n    {recipes}\n")  # fmt: skip
    storage = [argument.removeprefix("storage=") for argument in more if argument.startswith("storage=")]
    others = [argument for argument in more if not argument.startswith("storage=")]
    arguments = [f"out={folder}", "dataset.path=doll", *others]
    config = cfg.compose("tune", arguments, str(file))
    config.storage = storage[0] if storage else None
    return define_study(build_settings(config, str(file), arguments))


def start(definition: StudyDefinition) -> tuple[optuna.Study, str]:
    """As `autolora tune` does; the study and what was said."""
    said: list[str] = []
    priors = gather_priors(definition, said.append) if not is_started(definition, said.append) else []
    return open_study(definition, "tiny", said.append, priors), "\n".join(said)


def run(
    study: optuna.Study, definition: StudyDefinition, score: Callable[[Mapping[str, Any]], float], trials: int = 8
) -> None:
    for _ in range(trials):
        trial = study.ask()
        recipe, values = suggest(trial, definition.space)
        trial.set_user_attr("recipe", recipe)
        trial.set_user_attr("uid", f"uid{trial.number}")
        study.tell(trial, score(values))


def near(best: float) -> Callable[[Mapping[str, Any]], float]:
    """A score that is the higher the nearer the learning rate is."""
    return lambda values: -abs(math.log10(values["optimizer.lr"] / best))


@pytest.fixture
def earlier(tmp_path: Path) -> Path:
    """A study whose best learning rate was near 2e-4."""
    definition = planned(tmp_path / "earlier", ADAMW)
    run(start(definition)[0], definition, near(2e-4))
    return definition.folder


def best_of(folder: Path) -> list[Mapping[str, Any]]:
    trials = optuna.load_study(study_name="mona", storage=study_storage(folder)).trials
    return [dict(t.params) for t in sorted(trials, key=lambda t: -(t.value or 0))]


def test_the_best_are_tried_first_and_all_inform(earlier: Path, tmp_path: Path) -> None:
    definition = planned(tmp_path / "new", ADAMW, f"warm_start={earlier}")
    study, said = start(definition)
    assert f"warm start from {earlier}: 8 trials inform the search" in said
    waiting = [trial.system_attrs["fixed_params"] for trial in study.trials]
    assert waiting[0][LR] == definition.default_values["doll-adamw"]["optimizer.lr"]
    unlike = [params for params in best_of(earlier) if params[LR] != waiting[0][LR]]
    assert [{k: v for k, v in params.items() if k != "recipe"} for params in waiting[1:]] == unlike[:3]
    assert len(known_priors(definition, study._storage)) == 8
    run(study, definition, near(2e-4))
    assert len(study.trials) == 8 and all(t.state is TrialState.COMPLETE for t in study.trials)  # its own alone


def test_the_sampler_draws_where_earlier_studies_were_good(tmp_path: Path) -> None:
    known = planned(tmp_path / "earlier", ADAMW)
    run(start(known)[0], known, near(2e-4), trials=40)

    def distance(name: str, *more: str) -> float:
        definition = planned(tmp_path / name, ADAMW, *more)
        start(definition)
        study = join_study(definition, "tiny", print)
        drawn = []
        for _ in range(24):
            trial = study.ask()
            drawn.append(-near(2e-4)({"optimizer.lr": trial.suggest_float(LR, 1e-4, 1e-2, log=True)}))
            study.tell(trial, state=TrialState.FAIL)  # nothing is learnt here
        return sum(drawn[4:]) / 20  # the first were given

    assert distance("new", f"warm_start={known.folder}") < 0.7 * distance("alone")


def test_nothing_is_imported_twice(earlier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not by a second `tune`, by no worker, nor after an interruption in the midst of it."""
    definition = planned(tmp_path / "new", ADAMW, f"warm_start={earlier}")
    enqueue, calls = optuna.Study.enqueue_trial, []

    def interrupted(self: optuna.Study, *args: Any, **kwargs: Any) -> None:
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        enqueue(self, *args, **kwargs)

    monkeypatch.setattr(optuna.Study, "enqueue_trial", interrupted)
    with pytest.raises(KeyboardInterrupt):
        start(definition)
    monkeypatch.undo()
    for _ in range(2):
        study, _ = start(definition)
        joined = join_study(definition, "tiny", print)
        assert len(study.trials) == len(joined.trials) == 4
        assert len({trial.user_attrs.get(ORIGIN) for trial in study.trials}) == 4
        assert len(known_priors(definition, study._storage)) == len(joined.sampler.priors) == 8


def test_a_study_that_has_begun_says_that_it_is_too_late(earlier: Path, tmp_path: Path) -> None:
    start(planned(tmp_path / "new", ADAMW))
    study, said = start(planned(tmp_path / "new", ADAMW, f"warm_start={earlier}"))
    assert "has begun already" in said and len(study.trials) == 1


def test_what_was_exported_is_tried_before_what_merely_scored_high(earlier: Path, tmp_path: Path) -> None:
    study = optuna.load_study(study_name="mona", storage=study_storage(earlier))
    by_search = sorted(study.trials[1:], key=lambda t: -(t.value or 0))
    exported, judged = by_search[5], by_search[4]
    study.set_user_attr(WINNER, exported.number)
    finals = optuna.create_study(study_name="mona/finals", storage=study_storage(earlier), direction="maximize")
    finals.enqueue_trial({}, user_attrs={"key": f"{judged.user_attrs['uid']}@100"})
    finals.tell(finals.ask(), 0.1)
    definition = planned(tmp_path / "new", ADAMW, f"warm_start={earlier}")
    tried = [trial.user_attrs.get(ORIGIN) for trial in start(definition)[0].trials]
    assert [f"{earlier}, trial {one.number}" for one in (exported, judged)] == tried[1:3]


def test_several_studies_give_in_turn_and_a_diverged_trial_is_not_tried(earlier: Path, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'shared.db'}"
    other = planned(tmp_path / "other", ADAMW, f"storage={url}", name="zorak")
    run(start(other)[0], other, lambda values: 0.5 if values["optimizer.lr"] == 3e-3 else DIVERGED, trials=3)
    definition = planned(tmp_path / "new", ADAMW, f"storage={url}", f"warm_start=[{earlier},zorak]")
    study, _ = start(definition)
    names = [str(trial.user_attrs.get(ORIGIN)).partition(",")[0] for trial in study.trials]
    assert names.count(str(earlier)) == 3 and "zorak" not in names[2:]
    assert len(known_priors(definition, study._storage)) == 11  # the sampler learns to stay away


def test_keys_that_only_one_of_the_studies_varies(tmp_path: Path) -> None:
    """What was fixed then is known by what it was started with; what is fixed now must have been so."""
    then = "doll-adamw: {optimizer.lr: {log: [1.0e-4, 1.0e-2]}, train.scale_weight_norms: {choice: [null, 1.0]}}"
    definition = planned(tmp_path / "earlier", then, "adapter.dim=16")
    run(start(definition)[0], definition, near(2e-3))
    unlimited = [
        params for params in best_of(definition.folder) if params["doll-adamw/train.scale_weight_norms"] is None
    ]
    assert 0 < len(unlimited) < 8
    new = planned(tmp_path / "new", ADAMW, f"warm_start={definition.folder}")
    study, said = start(new)
    priors = known_priors(new, study._storage)
    assert {p.params["doll-adamw/adapter.dim"] for p in priors} == {16} and len(priors) == len(unlimited)
    assert (
        f"left out: {8 - len(unlimited)} as doll-adamw/train.scale_weight_norms is None here and does not vary" in said
    )


def test_what_lies_outside_the_ranges_is_left_out(earlier: Path, tmp_path: Path) -> None:
    narrow = "doll-adamw: {optimizer.lr: {log: [1.0e-3, 1.0e-2]}, adapter.dim: {choice: [8, 16]}}"
    definition = planned(tmp_path / "new", narrow, f"warm_start={earlier}")
    study, said = start(definition)
    inside = [params for params in best_of(earlier) if params[LR] >= 1e-3]
    assert len(known_priors(definition, study._storage)) == len(inside) > 0
    assert f"{8 - len(inside)} as doll-adamw/optimizer.lr was outside log: [0.001, 0.01]" in said


@pytest.fixture(scope="module")
def unfit(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of studies that no study can be started from; tests only read them."""
    tmp_path = tmp_path_factory.mktemp("unfit")
    folders = {name: tmp_path / name for name in ("begun", "empty", "minimized", "foreign", "prodigy")}
    start(planned(folders["begun"], ADAMW))
    definition = planned(folders["prodigy"], "doll-prodigy: {optimizer.d_coef: {linear: [1.0, 4.0]}}")
    run(start(definition)[0], definition, lambda _: 0.5)
    for name, direction in (("empty", "maximize"), ("minimized", "minimize"), ("foreign", "maximize")):
        study = optuna.create_study(
            study_name=name, storage=open_storage(storage_url(None, folders[name]), print), direction=direction
        )
        if name != "empty":
            study.set_user_attr("space", {})
            study.tell(study.ask(), 1.0)
    return folders


@pytest.mark.parametrize(
    ("given", "kind", "message"),
    [
        ("nowhere", ConfigError, "warm_start=nowhere is no earlier study"),
        ("{begun}", StudyError, "has no complete trial yet"),
        ("{empty}", StudyError, "never started"),
        ("{minimized}", StudyError, "minimized its objective"),
        ("{foreign}", StudyError, r"no trial of .* fits into this study \(1 as recipe None is not in this study"),
        ("{prodigy}", StudyError, "8 as recipe doll-prodigy is not in this study"),
        ("3", ConfigError, "warm_start=3 is no earlier study"),
    ],
)
def test_what_cannot_be_started_from_is_explained(
    given: str, kind: type[Exception], message: str, unfit: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(kind, match=message):
        start(planned(tmp_path / "new", ADAMW, f"warm_start={given.format(**unfit)}"))
    assert not (tmp_path / "new" / "study.db").exists()
