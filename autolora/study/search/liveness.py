"""Whether the worker that holds a trial is still alive."""

from __future__ import annotations

import os
import platform

import psutil

OWNER = "owner"  # user attribute: the worker that holds a running trial; empty while none does


def this_machine() -> str:
    """The name of this machine or container; processes with the same name can see each other."""
    space = "/proc/self/ns/pid"
    return platform.node() + (os.readlink(space).removeprefix("pid:") if os.path.exists(space) else "")


def is_gone(owner: str, machine: str, worker: str) -> bool:
    """Whether the owner of a trial was a process of this machine that has ended, or is this process, which forgot it.

    Args:
        owner: machine, process id and start time of the process that holds the trial.
        machine: the name of this machine.
        worker: the same of this process.
    """
    owner_machine, _, process = owner.partition("/")
    if owner_machine != machine or not process:
        return False
    pid, _, started = process.partition("/")
    try:
        running = psutil.Process(int(pid))
        dead = running.status() == psutil.STATUS_ZOMBIE or abs(running.create_time() - float(started)) > 1
    except psutil.NoSuchProcess:
        return True
    return dead or owner == worker
