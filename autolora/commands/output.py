"""What a command says: to a person, or to a script as JSON lines on standard output."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from autolora.config import flag
from autolora.progress import Bars


@dataclass(frozen=True)
class Output:
    """How much is said: `quiet` leaves only the last words, `json` turns these into JSON lines."""

    quiet: bool = False
    json: bool = False

    @classmethod
    def of(cls, config: DictConfig) -> Output:
        """As the config asks.

        Raises:
            ConfigError: `quiet` or `json` is neither true nor false.
        """
        return cls(flag(config.quiet, "quiet"), flag(config.json, "json"))

    def bars(self) -> Bars:
        """What shows progress, on standard error."""
        return Bars(self.quiet)

    def event(self, name: str, content: dict[str, Any]) -> None:
        """Tell a script that something happened; a person sees it elsewhere."""
        if self.json:
            print(json.dumps({"event": name, **content}, ensure_ascii=False, default=str), flush=True)

    def last(self, words: str | Callable[[], None], content: dict[str, Any]) -> None:
        """The last words, or what shows them; for a script the `result`."""
        if self.json:
            self.event("result", content)
        elif callable(words):
            words()
        else:
            print(words)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object that was written a moment ago."""
    content: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return content
