"""Where a figure comes from: the command, commit and machine that stand beside every number that is kept."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

CODE = (":(top)", ":(top,exclude)experiments/results")  # a figure does not change what it was measured with


def provenance() -> dict[str, str]:
    """Command, commit (`+` where files were changed since), machine and library versions of the running process."""
    import torch  # imported here because everything that reads a config imports this module

    changed = "+" if _git("status", "--porcelain", "-uno", "--", *CODE) else ""
    return {
        "command": " ".join([Path(sys.executable).stem, *sys.argv]),
        "commit": _git("rev-parse", "--short", "HEAD") + changed,
        "machine": f"{_processor()}, {os.cpu_count()} cores",
        "versions": f"Python {platform.python_version()}, torch {torch.__version__}",
    }


def _git(*arguments: str) -> str:
    here = Path(__file__).parent
    done = subprocess.run(["git", *arguments], cwd=here, capture_output=True, text=True, check=False)
    return done.stdout.strip()


def _processor() -> str:
    """The processor's name as Linux tells it, else what Python knows."""
    facts = Path("/proc/cpuinfo")
    lines = facts.read_text("utf-8").splitlines() if facts.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
