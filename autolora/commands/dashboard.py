"""`autolora dashboard`."""

from __future__ import annotations

from omegaconf import DictConfig
from optuna_dashboard import run_server

from autolora.study.definition import define_study
from autolora.study.lifecycle import load_started_study
from autolora.study.results.dashboard_plots import save_plots
from autolora.study.storage import redact_url


def dashboard(config: DictConfig, study: str | None, arguments: list[str]) -> int:
    """Serve the Optuna dashboard of a study on this machine only."""
    assert study is not None
    definition, _ = define_study(config, study, arguments)
    opened = load_started_study(definition, print)
    save_plots(opened, definition.trial_files)
    print(
        f"Optuna dashboard on http://127.0.0.1:8080 for {redact_url(definition.storage)} (Ctrl-C ends it)", flush=True
    )
    run_server(opened._storage, host="127.0.0.1", port=8080, artifact_store=definition.store)
    return 0
