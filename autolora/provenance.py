"""Records where a result comes from: the command, the commit, the machine and the library versions."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

CODE = (":(top)", ":(top,exclude)experiments/results")  # a new result does not change the code that measured it


def provenance() -> dict[str, str]:
    """Return the command, commit, machine and library versions of this process; `+` marks uncommitted changes."""
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
    process = subprocess.run(["git", *arguments], cwd=here, capture_output=True, text=True, check=False)
    return process.stdout.strip()


def _processor() -> str:
    """Return the processor's name from Linux, else from Python."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text("utf-8").splitlines() if cpuinfo.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
