"""Human choice: the images that a person sees, and what the choice may decide."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.request import Request, urlopen
from wsgiref.simple_server import WSGIServer, make_server

import optuna
import pytest
from optuna_dashboard import wsgi
from optuna_dashboard.preferential import PreferentialStudy, load_study
from PIL import Image

from autolora.evaluation.trial_folder import TrialFolder
from autolora.progress import Bars
from autolora.study.finals.decision import Finals, select_winner
from autolora.study.finals.preference import KEY, PICTURE, apply_preference, combine_with_preference
from autolora.study.optuna_internals import storage_of
from autolora.study.running import RunningStudy
from tests.study.finals.test_finals import finalist
from tests.study.results.test_dashboard import RUN, Quiet
from tests.study.test_warm_start import ADAMW, planned, start

pytestmark = pytest.mark.slow  # trains, or starts a server, a browser or processes

NOTHING: Any = None


def finals_of(*objectives: float) -> Finals:
    """Trials 0, 1, ...; scores within .1 tie, and an objective below 0 breaks a constraint."""
    return select_winner(NOTHING, [finalist(number, value) for number, value in enumerate(objectives)], {})


@pytest.mark.parametrize(
    ("objectives", "preferences", "winner", "words"),
    [
        ((0.80, 0.75, 0.30), [], 0, ""),
        ((0.80, 0.75, 0.30), [(1, 0)], 1, "chosen by images among trials 0, 1"),
        ((0.80, 0.75, 0.30), [(0, 1)], 0, "chosen by images among trials 0, 1"),
        ((0.80, 0.75, 0.30), [(1, 0), (0, 1)], 0, "chosen by images"),  # undecided: the score decides
        (
            (0.80, 0.75, 0.30),
            [(2, 0), (2, 1), (1, 0)],
            1,
            "trial 2 is preferred to all of them, but scores clearly low",
        ),
        ((0.80, 0.30), [(1, 0)], 0, "the choice by images decides nothing"),
        ((0.04, -0.02), [(1, 0)], 0, "trial 1 is preferred to all of them, but breaks bleed_class"),
        ((-0.01, -0.02), [(1, 0)], 0, "but breaks bleed_class"),  # all break it: the smallest violation wins
        ((0.80, 0.78, 0.77), [(1, 0), (2, 0), (2, 1)], 2, "among trials 0, 1, 2"),  # the worst image was clicked twice
    ],
)
def test_a_choice_decides_among_what_ties_and_keeps_all_limits(
    objectives: tuple[float, ...], preferences: list[tuple[int, int]], winner: int, words: str
) -> None:
    finals = combine_with_preference(finals_of(*objectives), preferences)
    assert finals.winner.trial.number == winner and words in finals.choice and bool(words) == bool(finals.choice)
    assert sorted(one.trial.number for one in finals.finalists) == list(range(len(objectives)))
    assert winner not in finals.ties


def preferential_study(running: RunningStudy) -> PreferentialStudy:
    storage = storage_of(running.study)
    return load_study(study_name="mona-preference", storage=storage, sampler=optuna.samplers.RandomSampler())


def without_preference(running: RunningStudy) -> RunningStudy:
    """The same study with `human_preference=false`."""
    definition = running.definition
    return replace(
        running, definition=replace(definition, settings=replace(definition.settings, human_preference=False))
    )


@pytest.fixture
def study_and_finals(tmp_path: Path) -> tuple[RunningStudy, Finals]:
    """A study with three finalists, of which the first two tie."""
    definition = planned(tmp_path / "run", ADAMW, "human_preference=true")
    study, _ = start(definition)
    finals = finals_of(0.80, 0.75, 0.30)
    finalists = []
    for number, one in enumerate(finals.finalists):
        trial_folder = TrialFolder(definition.folder / "trials" / f"uid{number}", RUN)
        trial_folder.samples.mkdir(parents=True)
        Image.new("RGB", (8, 8), (80 * number, 0, 0)).save(trial_folder.samples / "100.png")
        finalists.append(replace(one, trial_folder=trial_folder))
    return RunningStudy(definition, study, NOTHING, NOTHING, NOTHING), replace(finals, finalists=finalists)


StudyAndFinals = tuple[RunningStudy, Finals]


def test_a_choice_in_the_dashboard_counts(study_and_finals: StudyAndFinals) -> None:
    running, finals = study_and_finals
    before = apply_preference(running, finals)
    assert before.winner.trial.number == 0 and "autolora dashboard" in before.choice
    study, store = preferential_study(running), running.definition.store
    place = {trial.user_attrs[KEY]: trial.number for trial in study.trials}
    server = make_server("127.0.0.1", 0, wsgi(storage_of(running.study), store), WSGIServer, Quiet)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address, number = f"http://127.0.0.1:{server.server_port}", study._study._study_id
    try:
        for trial in study.trials:
            image = f"{address}/artifacts/{number}/{trial._trial_id}/{trial.user_attrs[PICTURE]}"
            uid = trial.user_attrs[KEY].partition("@")[0]
            file = running.definition.folder / "trials" / uid / "samples" / "100.png"
            assert urlopen(image).read() == file.read_bytes()
        clicked = {"mode": "ChooseWorst", "candidates": sorted(place.values()), "clicked": place["uid0@100"]}
        body = json.dumps(clicked).encode()
        headers = {"Content-Type": "application/json"}
        urlopen(Request(f"{address}/api/studies/{number}/preference", body, headers), timeout=30)
    finally:
        server.shutdown()
    after = apply_preference(without_preference(running), finals)  # as `export` does later
    assert after.winner.trial.number == 1 and "chosen by images among trials 0, 1" in after.choice


def test_new_finalists_are_shown_and_none_twice(
    study_and_finals: StudyAndFinals, monkeypatch: pytest.MonkeyPatch
) -> None:
    running, finals = study_and_finals
    fewer = replace(finals, finalists=finals.finalists[:2])
    monkeypatch.setattr("autolora.study.finals.preference.upload_artifact", lambda **_: 1 / 0)
    with pytest.raises(ZeroDivisionError):  # killed before the first image was there
        apply_preference(running, fewer)
    monkeypatch.undo()
    for each in (fewer, finals, finals):
        apply_preference(running, each)
    study = preferential_study(running)
    assert sorted(t.user_attrs[KEY] for t in study.trials) == ["uid0@100", "uid1@100", "uid2@100"]
    assert all(PICTURE in trial.user_attrs for trial in study.trials)
    study.report_preference(study.trials[1], study.trials[0])
    weighed = apply_preference(running, replace(finals, finalists=finals.finalists[2:]))
    assert weighed.winner.trial.number == 2 and "chosen" not in weighed.choice  # that choice was between others


def test_a_recipe_that_was_trained_again_is_rendered_for_the_choice(
    study_and_finals: StudyAndFinals, monkeypatch: pytest.MonkeyPatch
) -> None:
    running, finals = study_and_finals
    (finals.finalists[0].trial_folder.samples / "100.png").unlink()
    monkeypatch.setattr(TrialFolder, "load", lambda *_: {"of": "the checkpoint"})
    loaded = []

    def save(folder: Path, step: int, *_: object) -> None:
        Image.new("RGB", (4, 4)).save(folder / f"{step}.png")

    monkeypatch.setattr("autolora.study.finals.preference.save_grid", save)
    context = SimpleNamespace(adapter=SimpleNamespace(load=loaded.append))
    session: Any = SimpleNamespace(scorer="scorer", context=context, render=lambda *_: {})
    apply_preference(replace(running, session=session, bars=Bars(quiet=True)), finals)
    assert loaded == [{"of": "the checkpoint"}]


def test_without_human_preference_no_study_is_created(study_and_finals: StudyAndFinals) -> None:
    running, finals = study_and_finals
    assert apply_preference(without_preference(running), finals) is finals
    assert optuna.get_all_study_names(storage_of(running.study)) == ["mona"]
