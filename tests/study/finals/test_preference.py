"""Human choice: what a person sees, what a choice may decide and what it may not."""

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
from autolora.study.definition import StudyDefinition
from autolora.study.finals.decision import Finals, select_winner
from autolora.study.finals.preference import KEY, PICTURE, apply_preference, combine_with_preference
from tests.study.finals.test_finals import finalist
from tests.study.results.test_dashboard import RUN, Quiet
from tests.study.test_warm_start import ADAMW, planned, start

NOTHING: Any = None


def finals_of(*objectives: float) -> Finals:
    """Trials 0, 1, ...; scores within .1 tie, and an objective below 0 breaks a constraint."""
    return select_winner(NOTHING, [finalist(number, value) for number, value in enumerate(objectives)], {})


@pytest.mark.parametrize(
    ("objectives", "preferences", "winner", "said"),
    [
        ((0.80, 0.75, 0.30), [], 0, ""),
        ((0.80, 0.75, 0.30), [(1, 0)], 1, "chosen by pictures among trials 0, 1"),
        ((0.80, 0.75, 0.30), [(0, 1)], 0, "chosen by pictures among trials 0, 1"),
        ((0.80, 0.75, 0.30), [(1, 0), (0, 1)], 0, "chosen by pictures"),  # in two minds: by score
        (
            (0.80, 0.75, 0.30),
            [(2, 0), (2, 1), (1, 0)],
            1,
            "trial 2 is preferred to all of them, but scores clearly low",
        ),
        ((0.80, 0.30), [(1, 0)], 0, "pictures decide nothing"),
        ((0.04, -0.02), [(1, 0)], 0, "trial 1 is preferred to all of them, but breaks bleed_class"),
        ((-0.01, -0.02), [(1, 0)], 0, "but breaks bleed_class"),  # all break it: the least broken
        ((0.80, 0.78, 0.77), [(1, 0), (2, 0), (2, 1)], 2, "among trials 0, 1, 2"),  # the worst was clicked twice
    ],
)
def test_a_choice_decides_among_what_ties_and_keeps_all_limits(
    objectives: tuple[float, ...], preferences: list[tuple[int, int]], winner: int, said: str
) -> None:
    found = combine_with_preference(finals_of(*objectives), preferences)
    assert found.winner.trial.number == winner and said in found.choice and bool(said) == bool(found.choice)
    assert sorted(one.trial.number for one in found.finalists) == list(range(len(objectives)))
    assert winner not in found.ties


def shown(storage: optuna.storages.BaseStorage) -> PreferentialStudy:
    return load_study(study_name="mona-preference", storage=storage, sampler=optuna.samplers.RandomSampler())


Candidate = tuple[StudyDefinition, optuna.storages.BaseStorage, Finals]


@pytest.fixture
def asked(tmp_path: Path) -> Candidate:
    """A study with three finalists, of which the first two tie."""
    definition, own = planned(tmp_path / "run", ADAMW, "human_preference=true")
    study, _ = start(definition, own)
    finals = finals_of(0.80, 0.75, 0.30)
    finalists = []
    for number, one in enumerate(finals.finalists):
        record = TrialFolder(definition.folder / "trials" / f"uid{number}", RUN)
        record.samples.mkdir(parents=True)
        Image.new("RGB", (8, 8), (80 * number, 0, 0)).save(record.samples / "100.png")
        finalists.append(replace(one, record=record))
    return definition, study._storage, replace(finals, finalists=finalists)


def test_the_dashboard_asks_and_its_answer_counts(asked: Candidate) -> None:
    definition, storage, finals = asked
    before = apply_preference(definition, storage, NOTHING, NOTHING, finals)
    assert before.winner.trial.number == 0 and "autolora dashboard" in before.choice
    study = shown(storage)
    place = {trial.user_attrs[KEY]: trial.number for trial in study.trials}
    server = make_server("127.0.0.1", 0, wsgi(storage, definition.store), WSGIServer, Quiet)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address, number = f"http://127.0.0.1:{server.server_port}", study._study._study_id
    try:
        for trial in study.trials:
            picture = f"{address}/artifacts/{number}/{trial._trial_id}/{trial.user_attrs[PICTURE]}"
            own = definition.folder / "trials" / trial.user_attrs[KEY].partition("@")[0] / "samples" / "100.png"
            assert urlopen(picture).read() == own.read_bytes()
        clicked = {"mode": "ChooseWorst", "candidates": sorted(place.values()), "clicked": place["uid0@100"]}
        body = json.dumps(clicked).encode()
        headers = {"Content-Type": "application/json"}
        urlopen(Request(f"{address}/api/studies/{number}/preference", body, headers), timeout=30)
    finally:
        server.shutdown()
    after = apply_preference(
        replace(definition, human_preference=False), storage, NOTHING, NOTHING, finals
    )  # `export`, without asking
    assert after.winner.trial.number == 1 and "chosen by pictures among trials 0, 1" in after.choice


def test_asking_again_shows_what_is_new_and_nothing_twice(asked: Candidate, monkeypatch: pytest.MonkeyPatch) -> None:
    definition, storage, finals = asked
    fewer = replace(finals, finalists=finals.finalists[:2])
    monkeypatch.setattr("autolora.study.finals.preference.upload_artifact", lambda **_: 1 / 0)
    with pytest.raises(ZeroDivisionError):  # killed before the first picture was there
        apply_preference(definition, storage, NOTHING, NOTHING, fewer)
    monkeypatch.undo()
    for each in (fewer, finals, finals):
        apply_preference(definition, storage, NOTHING, NOTHING, each)
    study = shown(storage)
    assert sorted(t.user_attrs[KEY] for t in study.trials) == ["uid0@100", "uid1@100", "uid2@100"]
    assert all(PICTURE in trial.user_attrs for trial in study.trials)
    study.report_preference(study.trials[1], study.trials[0])
    weighed = apply_preference(definition, storage, NOTHING, NOTHING, replace(finals, finalists=finals.finalists[2:]))
    assert weighed.winner.trial.number == 2 and "chosen" not in weighed.choice  # of others that are no finalists now


def test_what_was_trained_again_is_rendered_for_the_choice(asked: Candidate, monkeypatch: pytest.MonkeyPatch) -> None:
    definition, storage, finals = asked
    (finals.finalists[0].record.samples / "100.png").unlink()
    monkeypatch.setattr(TrialFolder, "load", lambda *_: {"of": "the checkpoint"})
    loaded = []

    def keep(folder: Path, step: int, *_: object) -> None:
        Image.new("RGB", (4, 4)).save(folder / f"{step}.png")

    monkeypatch.setattr("autolora.study.finals.preference.save_grid", keep)
    context = SimpleNamespace(adapter=SimpleNamespace(load=loaded.append))
    session: Any = SimpleNamespace(scorer="scorer", context=context, render=lambda *_: {})
    apply_preference(definition, storage, session, Bars(quiet=True), finals)
    assert loaded == [{"of": "the checkpoint"}]


def test_nobody_is_asked_who_did_not_want_it(asked: Candidate) -> None:
    definition, storage, finals = asked
    assert apply_preference(replace(definition, human_preference=False), storage, NOTHING, NOTHING, finals) is finals
    assert optuna.get_all_study_names(storage) == ["mona"]
