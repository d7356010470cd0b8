"""The dashboard is for the browser on this machine: no web page elsewhere reads or changes a study through it."""

from __future__ import annotations

import socket
from collections.abc import Iterable
from typing import Any
from wsgiref.types import StartResponse

import pytest

from autolora.commands import dashboard
from autolora.commands.dashboard import open_server, protected


def app(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
    start_response("200 OK", [("Content-Type", "text/html"), ("Access-Control-Allow-Origin", "*")])
    return [b"content"]


def ask(path: str, host: str | None = "127.0.0.1:8080", origin: str | None = None) -> tuple[str, dict[str, str]]:
    """The status and the headers of an answer."""
    answers: list[tuple[str, dict[str, str]]] = []

    def start(status: str, headers: list[tuple[str, str]], *_: Any) -> Any:
        answers.append((status, dict(headers)))

    environ = {"PATH_INFO": path, "HTTP_HOST": host, "HTTP_ORIGIN": origin}
    list(protected(app, 8080)({key: value for key, value in environ.items() if value is not None}, start))
    return answers[0]


@pytest.mark.parametrize(
    ("host", "origin", "status"),
    [
        ("127.0.0.1:8080", None, "200"),
        ("localhost:8080", "http://localhost:8080", "200"),
        ("evil.example", None, "403"),
        ("evil.example:8080", "http://evil.example:8080", "403"),
        ("127.0.0.1:8080", "http://evil.example", "403"),
        ("127.0.0.1:8080", "null", "403"),
        (None, None, "403"),
    ],
)
def test_only_the_dashboards_own_pages_may_ask(host: str | None, origin: str | None, status: str) -> None:
    assert ask("/api/studies", host, origin)[0].startswith(status)


def test_artifacts_are_never_run_as_pages() -> None:
    _, headers = ask("/artifacts/1/x")
    assert headers["Content-Disposition"] == "attachment" and "sandbox" in headers["Content-Security-Policy"]
    assert headers["X-Content-Type-Options"] == "nosniff" and "Access-Control-Allow-Origin" not in headers
    assert "Content-Disposition" not in ask("/dashboard")[1]


def test_a_port_in_use_is_replaced_by_a_free_one(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as other:
        other.bind((dashboard.HOST, 0))
        other.listen()
        monkeypatch.setattr(dashboard, "PORT", other.getsockname()[1])
        with open_server(app) as server:
            assert server.server_port != dashboard.PORT
