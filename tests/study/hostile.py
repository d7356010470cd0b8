"""Mutations of a study's database, folder and YAML file and of a LoRA file, as an attacker or a broken disk makes them.

Every mutation follows from its seed alone.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import yaml

SECRET = "hush-cf1f0d"  # in the environment, where no file may read it
TABLES = (
    "studies",
    "study_directions",
    "study_user_attributes",
    "study_system_attributes",
    "trials",
    "trial_user_attributes",
    "trial_system_attributes",
    "trial_params",
    "trial_values",
    "trial_intermediate_values",
    "version_info",
)


@dataclass(frozen=True)
class Fence:
    """A copy of a study, and beside it what no command may read out, change or import."""

    root: Path
    port: int  # where a socket listens for secrets

    @property
    def run(self) -> Path:
        """The study's folder; commands may write there."""
        return self.root / "run"

    @property
    def home(self) -> Path:
        """Files that must stay as they are."""
        return self.root / "home"

    @property
    def study(self) -> Path:
        """The study's YAML file."""
        return self.root / "mine" / "small.yaml"

    @property
    def lora(self) -> Path:
        """A LoRA file."""
        return self.root / "given.safetensors"

    def values(self) -> list[Any]:
        """What is put in the place of another value."""
        home, secret = str(self.home), "${oc.env:SECRET}"
        urls = [f"postgresql+psycopg://u:{secret}@127.0.0.1:{self.port}/x", f"s3://127.0.0.1:{self.port}/{secret}"]
        names = [home, f"{home}/.ssh", "../../home", "..", ".", "", "/", "~", ".git", "a\0b", "\x1b[2J", "0" * 12]
        code = ["hydra.searchpath=[pkg://evil]", "pkg://evil", "evil.Evil", "!!python/name:evil.Evil", secret, *urls]
        numbers = [-1, 0, 1, 2**31, 2**70, 1e300, float("nan"), float("inf"), -0.5, True, None]
        many = [[], {}, [[]], ["hydra.searchpath=[pkg://evil]"], {"value": 1}, {"_target_": "evil.Evil"}, [home] * 3]
        return [*names, *code, *numbers, *many, "x" * 5000, json.loads("[" * 100 + "]" * 100)]


class _Evil:
    """Code that a pickle runs."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


def inside(value: Any, random: Random, new: Any) -> Any:
    """A JSON value with one part, at any depth, replaced, removed or added."""
    if isinstance(value, dict) and value and random.random() < 0.9:
        key = random.choice(list(value))
        if random.random() < 0.1:
            return {name: part for name, part in value.items() if name != key}
        if random.random() < 0.1:
            return {**value, str(new)[:40]: value[key]}
        return {**value, key: inside(value[key], random, new)}
    if isinstance(value, list) and value and random.random() < 0.9:
        place = random.randrange(len(value))
        return [*value[:place], inside(value[place], random, new), *value[place + 1 :]]
    return new


def damaged(content: bytes, random: Random) -> bytes:
    """Bytes cut short, with some changed, or with some added."""
    place = random.randrange(len(content)) if content else 0
    few = bytes(random.randrange(256) for _ in range(random.choice([1, 4, 64])))
    return random.choice([content[:place], content[:place] + few + content[place + len(few) :], few + content, b""])


def mutate_database(fence: Fence, random: Random) -> None:
    """Change a value of a row, remove rows, add an attribute, or damage the file."""
    path = fence.run / "study.db"
    if random.random() < 0.08:
        path.write_bytes(damaged(path.read_bytes(), random))
        return
    with closing(sqlite3.connect(path)) as database, suppress(sqlite3.Error, OverflowError, UnicodeEncodeError):
        table = random.choice(TABLES)
        rows = database.execute(f"SELECT rowid, * FROM {table}").fetchall()
        if not rows:
            return
        row, new = random.choice(rows), random.choice(fence.values())
        columns = [column[1] for column in database.execute(f"PRAGMA table_info({table})")]
        at = random.randrange(len(columns))
        if random.random() < 0.1:
            database.execute(f"DELETE FROM {table} WHERE rowid = ?", (row[0],))
        else:
            column = columns[at]
            if column.endswith("_json") and random.random() < 0.8:
                new = json.dumps(inside(json.loads(row[at + 1]), random, new))
            elif not isinstance(new, str | int | float | None):
                new = json.dumps(new)
            database.execute(f"UPDATE {table} SET {column} = ? WHERE rowid = ?", (new, row[0]))
        database.commit()


def mutate_file(path: Path, fence: Fence, random: Random) -> None:
    """Damage a file, change a part of its JSON, or put a link, a folder, a pickle or nothing in its place."""
    content = path.read_bytes()
    kinds = ["damage", "link", "folder link", "folder", "pickle", "none", *["json"] * 10 * (path.suffix == ".json")]
    kind = random.choice(kinds)
    path.unlink()  # it is linked to the file of the study that was copied
    if kind == "json":
        path.write_text(json.dumps(inside(json.loads(content), random, random.choice(fence.values()))))
    elif kind == "damage":
        path.write_bytes(damaged(content, random))
    elif kind.endswith("link"):
        path.symlink_to(fence.home / (".ssh/id" if kind == "link" else ".ssh"))
    elif kind == "folder":
        path.mkdir()
    elif kind == "pickle":
        path.write_bytes(pickle.dumps(_Evil(fence.home / "ran")))


def mutate_folder(fence: Fence, random: Random) -> None:
    """Change a file of the study, or put a link in the place of a folder."""
    paths = sorted(path for path in fence.run.rglob("*") if path.name != "study.db")
    path = random.choice([path for path in paths if path.suffix == ".json" or random.random() < 0.3] or paths)
    if path.is_file():
        mutate_file(path, fence, random)
    elif path.is_dir():
        shutil.rmtree(path)
        if random.random() < 0.5:
            path.symlink_to(fence.home)


def mutate_lora(fence: Fence, random: Random) -> None:
    """Change the LoRA file, or only its header, which holds names, shapes and metadata."""
    content = fence.lora.read_bytes()
    if random.random() < 0.5:
        return mutate_file(fence.lora, fence, random)
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.dumps(inside(json.loads(content[8:end]), random, random.choice(fence.values()))).encode()
    fence.lora.unlink()
    fence.lora.write_bytes(len(header).to_bytes(8, "little") + header + content[end:])


def mutate_yaml(fence: Fence, random: Random) -> None:
    """Change a part of the study's YAML file, add a key, or damage its text."""
    text = fence.study.read_text()
    if random.random() < 0.2:
        fence.study.write_bytes(damaged(text.encode(), random))
        return
    content, new = yaml.safe_load(text), random.choice(fence.values())
    if random.random() < 0.5:
        keys = [
            "storage",
            "artifact_store",
            "warm_start",
            "hydra",
            "study",
            "budget",
            "_target_",
            "init_lora",
            "tagger",
        ]
        keys += ["dataset", "model", "scoring", "adapter", "optimizer", "train", "export", "workers", "save_recipe"]
        content[random.choice(keys)] = new
    else:
        content = inside(content, random, new)
    fence.study.write_text("# @package _global_\n" + yaml.safe_dump(content, allow_unicode=True, sort_keys=False))


MUTATIONS: dict[str, tuple[Callable[[Fence, Random], None], tuple[str, ...]]] = {
    "database": (mutate_database, ("report", "export", "worker", "joined", "dashboard", "compare", "warm", "recipe")),
    "folder": (mutate_folder, ("report", "export", "dashboard", "compare", "warm", "recipe")),
    "yaml": (mutate_yaml, ("report", "check", "worker", "export", "joined")),
    "lora": (mutate_lora, ("score", "verify")),
}
