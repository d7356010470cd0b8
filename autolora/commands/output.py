"""What a command prints: text for a person, or JSON lines on standard output for a script."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autolora.errors import printable
from autolora.files import takes_any_character
from autolora.progress import Bars
from autolora.settings import Settings


@dataclass(frozen=True)
class Output:
    """How much is printed: `quiet` leaves only the result, `json` prints JSON lines instead of text."""

    quiet: bool = False
    json: bool = False

    @classmethod
    def of(cls, settings: Settings) -> Output:
        """The output that the settings ask for."""
        return cls(settings.quiet, settings.json)

    def bars(self) -> Bars:
        """Progress bars on standard error."""
        return Bars(self.quiet)

    def event(self, name: str, content: dict[str, Any]) -> None:
        """Print an event as a JSON line, for a script only."""
        if self.json:
            escaped = not takes_any_character(sys.stdout)
            print(json.dumps({"event": name, **content}, ensure_ascii=escaped, default=str), flush=True)

    def last(self, words: str | Callable[[], None], content: dict[str, Any]) -> None:
        """Print the result: text, or a function that prints it; for a script the event `result`."""
        if self.json:
            self.event("result", content)
        elif callable(words):
            words()
        else:
            print(printable(words))


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object that was written a moment ago."""
    content: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return content
