"""The dashboard as a person sees it: pictures, notes, constraints and plots, in a real browser without a screen."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState
from optuna_dashboard import wsgi

from autolora.adapters.kinds import LoRA
from autolora.evaluation.result import CheckpointResult
from autolora.evaluation.samples import labelled
from autolora.evaluation.trial_folder import TrialFolder
from autolora.optim.optimizers import AdamW
from autolora.study.artifacts import Store, TrialFiles, local_store
from autolora.study.results.dashboard_plots import save_plots
from autolora.study.search.trial_note import note_text, publish_trial_note
from autolora.study.storage import open_storage, storage_url
from autolora.study.trials import keep_constraints
from autolora.train.checkpoint import Checkpoint
from autolora.train.run import Run

pytestmark = pytest.mark.slow  # trains, renders or loads many models

RUN = Run("doll-adamw", LoRA(), AdamW())


def chromium() -> str:
    """The browser; the test is skipped where there is none, which .ci/run does not allow."""
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        assert "AUTOLORA_CI" not in os.environ, "no Chromium: .ci/run installs it"
        pytest.skip("no Chromium here: apt-get install chromium")
    return found


def point(step: int, fidelity: float, bleed: float) -> CheckpointResult:
    def term(value: float) -> dict[str, float]:
        return {"value": value, "low": value - 0.1, "high": value + 0.1}

    terms = {
        "fidelity": term(fidelity),
        "likeness": term(fidelity),
        "editability": term(0.8),
        "bleed_class": term(bleed),
    }
    constraints = {"bleed_class": bleed + 0.1 - 0.3, "undercooked": -0.2}
    verdict = f"bleed: the class word alone shows the character in {bleed:.0%}" if bleed > 0.2 else "good"
    return CheckpointResult(
        step, 0.1, 0.1, [1.0], fidelity - bleed, term(fidelity - bleed), terms=terms, by_weight={"1": terms},
        constraints=constraints, verdict=verdict,
    )  # fmt: skip


def finish(trial: optuna.Trial, folder: Path, *points: CheckpointResult, store: Store | None = None) -> None:
    """End a trial as a worker does."""
    trial.set_user_attr("recipe", RUN.name)
    trial.set_user_attr("uid", f"uid{trial.number}")
    trial.suggest_float("doll-adamw/optimizer.lr", 1e-4, 1e-2, log=True)
    record = TrialFolder(folder / "trials" / f"uid{trial.number}", RUN)
    for one in points:
        record.append(Checkpoint(RUN, one.step, 1.0, {}, {}, 0.1, (0.1,), None, 1.0, done=False, diverged=False), one)
        trial.report(one.objective, one.step)
    rng = np.random.default_rng(trial.number)
    rows = [(name, rng.integers(0, 255, (4, 64, 64, 3), np.uint8)) for name in ("base: 1girl", "LoRA at 1: 1girl")]
    record.samples.mkdir()
    labelled(rows).save(record.samples / f"{points[-1].step}.png")
    publish_trial_note(trial, record, "trained to its end", store or local_store(folder))
    best = record.best_result()
    assert best is not None
    keep_constraints(trial.storage, trial, best.constraints)
    trial.study.tell(trial, best.objective, state=TrialState.COMPLETE)


class Quiet(WSGIRequestHandler):
    def log_message(self, *_: Any) -> None: ...


@dataclass(frozen=True)
class Shown:
    """A dashboard that runs, and what a browser makes of its pages."""

    address: str
    folder: Path

    def page(self, path: str) -> str:
        """A page's text and elements once its scripts ran; a screenshot lies beside."""
        profile = self.folder / "profile"
        command = [chromium(), "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}"]
        command += ["--window-size=1400,3600", "--virtual-time-budget=20000", "--hide-scrollbars"]
        picture = self.folder / f"{re.sub(r'[^a-z0-9]+', '-', path) or 'study'}.png"
        command += [f"--screenshot={picture}", "--dump-dom", f"{self.address}{path}"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=True)
        return done.stdout


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shown]:
    folder = tmp_path_factory.mktemp("dashboard")
    storage = open_storage(storage_url(None, folder), print)
    study = optuna.create_study(storage=storage, study_name="mona", direction="maximize")
    finish(study.ask(), folder, point(100, 0.5, 0.05), point(200, 0.8, 0.1))
    finish(study.ask(), folder, point(100, 0.6, 0.4), point(200, 0.9, 0.7))
    sweep = {
        w: {name: {"value": 0.5, "low": 0.4, "high": 0.6} for name in ("fidelity", "editability", "bleed_class")}
        for w in ("0.6", "1")
    }
    save_plots(study, TrialFiles(folder / "trials"), sweep)
    server = make_server("127.0.0.1", 0, wsgi(storage, local_store(folder)), WSGIServer, Quiet)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield Shown(f"http://127.0.0.1:{server.server_port}/dashboard/studies/1", folder)
    server.shutdown()


def test_a_trial_has_its_note_and_its_pictures(shown: Shown) -> None:
    page = shown.page("/trials?numbers=0")
    assert "<strong>good</strong>" in page  # the note, as Markdown
    assert "fidelity" in page and "0.700 to 0.900" in page
    assert len(set(re.findall(r'<img[^>]+src="[^"]*(/artifacts/1/1/[0-9a-f-]+)"', page))) == 1  # in note and list


def test_a_study_has_its_plots_and_what_breaks_a_limit_is_infeasible(shown: Shown) -> None:
    page = shown.page("")
    assert "trial #1 (infeasible)" in page and "trial #0 (infeasible)" not in page
    for title in ("Likeness against bleed", "Learning curves", "Parameter effects", "Weight sweep"):
        assert title in page


def test_a_note_says_what_is_wrong_and_what_may_help(tmp_path: Path) -> None:
    record = TrialFolder(tmp_path, RUN, [point(100, 0.9, 0.7)])
    text = note_text(record, "overcooked after step 100", "/artifacts/1/1/x")
    assert "**bleed: the class word alone" in text and "Try " in text
    assert "| bleed_class | 0.700 | 0.600 to 0.800 | broken |" in text
    assert "![" in text and "/artifacts/1/1/x" in text
    assert note_text(TrialFolder(tmp_path, RUN), "diverged at step 10", None) == "**diverged at step 10**"
