"""The command line: `autolora COMMAND [study] [key=value ...]`."""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import sys
import warnings
from collections.abc import Callable, Sequence

from autolora import __version__, stop
from autolora.errors import AutoloraError, ConfigError, MemoryFull, memory_full

COMMANDS = {
    "check": "show what would be trained and its cost: problems, concepts, ledger, buckets, captions, triggers",
    "tag": "caption pictures that have no caption: dataset.path=FOLDER tagger.path=FOLDER tagger.prefix=[1girl, mona]",
    "captions": "show how captions are edited (captions.absorb_tags=all ...); out=FOLDER writes an edited copy",
    "train": "train one recipe, score every checkpoint and export the best",
    "tune": "run a study: many recipes, each checkpoint scored, the best LoRA exported with a report",
    "worker": "join a study from another process or machine: worker study=NAME storage=URL out=FOLDER",
    "score": "score LoRA files made anywhere: lora=FILE, or lora=FOLDER to rank them",
    "report": "write a study's report again; report FOLDER FOLDER ... compares studies: which recipe wins how often",
    "export": "export a study's best LoRA again; save_recipe=NAME: its recipe into conf/recipe; verify=FILE: who reads a "
    "file; resize=FILE: a smaller rank as good",
    "dashboard": "open a study in the Optuna dashboard on this machine",
    "paperdoll": "draw a dataset of the embedded world: paperdoll dataset OUT --seed N --outfits K",
}
TAKES_STUDY = ("tune", "worker", "report", "export", "dashboard", "check")
OF_A_FILE = ("verify=", "resize=")  # what `export` does with a file instead of a study
USAGE = """autolora {version}: an overfitting-aware auto-tuning LoRA trainer

usage: autolora COMMAND [STUDY] [key=value ...]

commands
{commands}

examples
  autolora tune quickstart                                    the embedded world; needs no download
  autolora check quickstart dataset.path=~/mona               what would be trained, before training
  autolora tune quickstart dataset.path=~/mona out=runs/mona  your own pictures
  autolora tune quickstart workers=auto                       one worker per visible GPU, or per core
  autolora train recipe=doll-prodigy dataset.path=~/mona
  autolora score lora=mona.safetensors dataset.path=~/mona
  autolora export verify=mona.safetensors model=sd15 model.path=~/models/sd15
  autolora export resize=mona.safetensors dataset.path=~/mona
  autolora report runs/mona runs/zorak out=runs/both          which recipe wins how often
  autolora tune quickstart --cfg job                          the resolved config

STUDY is a name in studies/ or the path of your own .yaml file. Every key of the config can be set.
Ctrl-C stops; the same command continues. Exit codes: 0 done, 2 configuration, 3 pictures, 4 model,
5 study, 6 LoRA file, 7 disk, 8 done but unmeasured, 9 GPU memory, 130 or 143 interrupted.
"""


@stop.listening()
def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; a user's mistake is one line, never a traceback."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a missing file is an error here, never a download
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    warnings.filterwarnings("ignore")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # imported by peft, it tells of missing kernels
    try:
        code = run(arguments)
        sys.stdout.flush()
        return code
    except AutoloraError as error:
        print(f"autolora: {error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:  # whoever reads the output, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt as interrupt:
        if isinstance(interrupt, stop.Stopped) and arguments[:1] == ["worker"]:
            return 0  # as it was asked to: its trial is back in the queue
        print("\nautolora: stopped; run the same command again to continue", file=sys.stderr)
        return 143 if isinstance(interrupt, stop.Stopped) else 130


def run(arguments: list[str]) -> int:
    """Dispatch a command."""
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        listed = "\n".join(f"  {name:<10} {text}" for name, text in COMMANDS.items())
        print(USAGE.format(version=__version__, commands=listed))
        return 0
    if arguments[0] in ("--version", "-V"):
        print(__version__)
        return 0
    command, rest = arguments[0], arguments[1:]
    if command not in COMMANDS:
        raise ConfigError(f"unknown command `{command}`; expected one of {', '.join(COMMANDS)}")
    if command == "paperdoll":
        return _paperdoll(rest)
    if "-h" in rest or "--help" in rest:
        study = " [STUDY]" if command in TAKES_STUDY else ""
        print(f"autolora {command}{study} [key=value ...] [--cfg job]\n\n{COMMANDS[command]}\n\n"
              f"`autolora {command} --cfg job` prints every key with its value.")  # fmt: skip
        return 0
    return _configured(command, rest)


def _configured(command: str, rest: list[str]) -> int:
    show = "--cfg" in rest
    if show:
        at = rest.index("--cfg")
        del rest[at : at + (2 if rest[at + 1 : at + 2] == ["job"] else 1)]
    storage, rest = _storage(command, rest)
    study = None
    if command == "report" and sum("=" not in argument and not argument.startswith("-") for argument in rest) > 1:
        return _compare(rest)
    if rest and "=" not in rest[0] and command in TAKES_STUDY:
        study = rest.pop(0)
    flags = [argument for argument in rest if argument.startswith("-")]
    if flags:
        raise ConfigError(
            f"unknown option {flags[0]}; settings are written key=value, `autolora --help` shows examples"
        )
    from autolora import config

    if command == "worker" and study is None:
        from autolora.study.lifecycle import resolve_study

        study, rest = resolve_study(storage, rest)
    of_a_file = command == "export" and any(argument.startswith(OF_A_FILE) for argument in rest)
    if command in TAKES_STUDY and command != "check" and study is None and not of_a_file:
        study = "quickstart"
    primary = "tune" if study else "train"
    composed = config.compose(primary, rest, study)
    if storage and command in TAKES_STUDY and study:
        composed.storage = storage
    if show:
        from omegaconf import OmegaConf

        from autolora.study.storage import redact_url

        if composed.get("storage"):
            composed.storage = redact_url(composed.storage)
        print(OmegaConf.to_yaml(composed), end="")
        return 0
    import torch

    action: Callable[..., int] = getattr(importlib.import_module(f"autolora.commands.{command}"), command)
    try:
        return action(composed, study, rest)
    except torch.OutOfMemoryError as error:
        raise MemoryFull(memory_full(error)) from error


def _compare(rest: list[str]) -> int:
    """`autolora report FOLDER FOLDER ...`."""
    from autolora import config
    from autolora.commands.compare import compare

    given = [argument for argument in rest if "=" in argument]
    folders = [argument for argument in rest if "=" not in argument]
    unknown = [argument for argument in given if argument.partition("=")[0] not in ("out", "quiet", "json")]
    if unknown or any(folder.startswith("-") for folder in folders):
        raise ConfigError("comparing studies takes their folders and out=FOLDER, quiet=true or json=true; "
                          f"got {' '.join(rest)}")  # fmt: skip
    return compare(config.compose("train", given), folders)


def _storage(command: str, rest: list[str]) -> tuple[str | None, list[str]]:
    """The storage, and the other arguments: it may hold a password, which no config, report or message is to show."""
    given = [argument for argument in rest if argument.startswith("storage=")]
    if given and command not in TAKES_STUDY:
        raise ConfigError(f"`autolora {command}` has no storage; {', '.join(TAKES_STUDY)} have")
    url = given[-1].removeprefix("storage=") if given else os.environ.get("AUTOLORA_STORAGE")
    return url or None, [argument for argument in rest if argument not in given]


def _paperdoll(rest: list[str]) -> int:
    """`autolora paperdoll dataset OUT`."""
    from pathlib import Path

    parser = argparse.ArgumentParser(prog="autolora paperdoll", description=COMMANDS["paperdoll"])
    actions = parser.add_subparsers(dest="action", required=True)
    dataset = actions.add_parser("dataset", help="write a kohya-style folder of a novel character")
    dataset.add_argument("out", type=Path)
    dataset.add_argument("--seed", type=int, default=0, help="0-99 for development, 100 and up for evaluation")
    dataset.add_argument("--outfits", type=int, default=2, help="1 to 4")
    dataset.add_argument("--images", type=int, default=14, help="pictures of each outfit")
    dataset.add_argument("--full", action="store_true", help="captions with everything that is seen, as by a tagger")
    try:
        given = parser.parse_args(rest)
    except SystemExit as stop:
        return int(stop.code or 0)
    from autolora.paperdoll.world import write_dataset

    character = write_dataset(given.out.expanduser(), given.seed, given.outfits, given.images, full=given.full)
    outfits = ", ".join(outfit.trigger for outfit in character.outfits)
    print(f"wrote {given.out}: character `{character.trigger}`, outfits {outfits}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
