"""`autolora dashboard`: a study in the Optuna dashboard."""

from __future__ import annotations

from optuna_dashboard import run_server

from autolora.commands.request import Request
from autolora.study.definition import define_study
from autolora.study.lifecycle import load_started_study
from autolora.study.optuna_internals import storage_of
from autolora.study.results.dashboard_plots import save_plots
from autolora.study.storage import redact_url

HOST, PORT = "127.0.0.1", 8080


def dashboard(request: Request) -> int:
    """Serve the Optuna dashboard of a study, on this machine only."""
    definition = define_study(request.settings)
    study = load_started_study(definition, print)
    save_plots(study, definition.trial_files)
    storage = redact_url(definition.storage)
    print(f"Optuna dashboard on http://{HOST}:{PORT} for {storage} (Ctrl-C ends it)", flush=True)
    run_server(storage_of(study), host=HOST, port=PORT, artifact_store=definition.store)
    return 0
