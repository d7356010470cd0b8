"""`autolora dashboard`: a study in the Optuna dashboard."""

from __future__ import annotations

import errno
from collections.abc import Iterable
from contextlib import suppress
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from optuna_dashboard import wsgi

from autolora.commands.request import Request
from autolora.study.definition import define_study
from autolora.study.lifecycle import load_started_study
from autolora.study.optuna_internals import storage_of
from autolora.study.results.dashboard_plots import save_plots
from autolora.study.storage import redact_url

HOST, PORT = "127.0.0.1", 8080
FOR_ARTIFACTS = [  # so that a file of somebody else's study is kept or shown as an image, but never run as a page
    ("Content-Disposition", "attachment"),
    ("Content-Security-Policy", "sandbox; default-src 'none'"),
    ("X-Content-Type-Options", "nosniff"),
]


def dashboard(request: Request) -> int:
    """Serve the Optuna dashboard of a study, on this machine only."""
    definition = define_study(request.settings)
    study = load_started_study(definition, print)
    save_plots(study, definition.trial_files)
    with open_server(wsgi(storage_of(study), definition.store)) as server, suppress(KeyboardInterrupt):
        storage, address = redact_url(definition.storage), f"http://{HOST}:{server.server_port}"
        print(f"Optuna dashboard on {address} for {storage} (Ctrl-C ends it)", flush=True)
        server.serve_forever()
    return 0


def open_server(app: WSGIApplication) -> WSGIServer:
    """A server of the protected dashboard on the usual port, or on a free one where another program has that."""
    try:
        server = make_server(HOST, PORT, app, WSGIServer, _Quiet)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        server = make_server(HOST, 0, app, WSGIServer, _Quiet)
    server.set_app(protected(app, server.server_port))
    return server


def protected(app: WSGIApplication, port: int) -> WSGIApplication:
    """The dashboard without requests that a web page elsewhere has the browser make, under this name or another."""
    hosts = {f"{host}:{port}" for host in (HOST, "localhost")}
    origins = {None, *(f"http://{host}" for host in hosts)}

    def answer(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if environ.get("HTTP_HOST") not in hosts or environ.get("HTTP_ORIGIN") not in origins:
            start_response("403 Forbidden", [("Content-Type", "text/plain")])
            return [f"open the dashboard as http://{HOST}:{port}\n".encode()]

        def start(status: str, headers: list[tuple[str, str]], *error: Any) -> Any:
            replaced = {name for name, _ in FOR_ARTIFACTS} | {"Access-Control-Allow-Origin"}
            own = [("X-Frame-Options", "DENY")]
            if environ.get("PATH_INFO", "").startswith("/artifacts/"):
                headers, own = [pair for pair in headers if pair[0] not in replaced], own + FOR_ARTIFACTS
            return start_response(status, headers + own, *error)

        return app(environ, start)

    return answer


class _Quiet(WSGIRequestHandler):
    """Prints no line for each request."""

    def log_message(self, *_: Any) -> None:
        """Print nothing."""
