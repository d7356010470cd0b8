"""The command line: `autolora COMMAND [STUDY or FILE] [key=value ...]`."""

from __future__ import annotations

import importlib
import io
import logging
import os
import sys
import warnings
from collections.abc import Callable, Sequence

from autolora import __version__, stop
from autolora.errors import AutoloraError, ConfigError, MemoryFull, StorageError, memory_full, printable
from autolora.files import explain, is_text, takes_any_character

COMMANDS = {
    "check": "show what would be trained and what it costs: problems, concepts, captions, triggers, GPU memory",
    "tag": "caption images that have no caption: dataset.path=FOLDER tagger.path=FOLDER tagger.prefix=[1girl,mona]",
    "captions": "show how captions are edited (captions.absorb_tags=all ...); out=FOLDER writes an edited copy",
    "train": "train one recipe, score every checkpoint and export the best",
    "tune": "run a study: many recipes, each checkpoint scored, the best LoRA exported with a report",
    "worker": "join a study from another process or machine: worker study=NAME storage=URL out=FOLDER",
    "score": "score LoRA files of any trainer: score FILE, or score FOLDER to rank them",
    "verify": "show which programs read a LoRA file, and whether all of them read the same: verify FILE",
    "resize": "make a LoRA file smaller as long as its score stays within its interval: resize FILE dims=[16,8]",
    "report": "write a study's report again, without a model",
    "compare": "compare studies: which recipe wins how often: compare FOLDER FOLDER ... out=FOLDER",
    "export": "export a study's best LoRA again; save_recipe=NAME keeps its recipe in conf/recipe",
    "dashboard": "open a study in the Optuna dashboard on this machine",
    "paperdoll": "draw a dataset of the synthetic test world: paperdoll dataset OUT --seed N --outfits K",
}
TAKES_STUDY = ("tune", "worker", "report", "export", "dashboard", "check")
TAKES_FILE = ("score", "verify", "resize")
LOADS_MODEL = ("train", "tune", "worker", "score", "resize", "export")
WRITES_OUT = ("check", "train", "tune", "worker", "export")
READS_IMAGES = ("check", "captions", *LOADS_MODEL)
USAGE = """autolora {version}: an overfitting-aware auto-tuning LoRA trainer

usage: autolora COMMAND [STUDY or FILE] [key=value ...]

commands
{commands}

examples
  autolora tune quickstart                                    the synthetic test world; needs no download
  autolora check quickstart dataset.path=~/mona               what would be trained, before training
  autolora tune quickstart dataset.path=~/mona out=runs/mona  your own images
  autolora tune quickstart workers=auto                       one worker per visible GPU, or per core
  autolora train recipe=doll-prodigy dataset.path=~/mona
  autolora score mona.safetensors dataset.path=~/mona
  autolora verify mona.safetensors model=sd15 model.path=~/models/sd15
  autolora resize mona.safetensors dataset.path=~/mona
  autolora compare runs/mona runs/zorak out=runs/both         which recipe wins how often
  autolora tune quickstart --cfg job                          the resolved config

STUDY is a name in studies/ or the path of your own .yaml file. Every key of the config can be set.
Ctrl-C stops; the same command continues. Exit codes: 0 done, 2 configuration, 3 dataset, 4 model,
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
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # peft imports it, and it warns of missing kernels
    _accept_every_character()
    try:
        code = run(arguments)
        sys.stdout.flush()
        return code
    except AutoloraError as error:
        print(f"autolora: {printable(error)}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:  # the reader of the output, such as `head`, has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:  # a disk that is full, a folder that was moved; what is written atomically says more
        if error.errno is None:
            raise
        print(f"autolora: {printable(explain(error, 'use'))}", file=sys.stderr)
        return StorageError.exit_code
    except KeyboardInterrupt as interrupt:
        if isinstance(interrupt, stop.Stopped) and arguments[:1] == ["worker"]:
            return 0  # as it was asked to: its trial is back in the queue
        print("\nautolora: stopped; run the same command again to continue", file=sys.stderr)
        return 143 if isinstance(interrupt, stop.Stopped) else 130


def _accept_every_character() -> None:
    """Let output replace what its encoding lacks (cp1252 of Windows), or what is no text at all (file names)."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            charts = stream is sys.stdout and not takes_any_character(stream)  # unreadable as escapes
            stream.reconfigure(errors="replace" if charts else "backslashreplace")


def run(arguments: list[str]) -> int:
    """Dispatch a command.

    Raises:
        AutoloraError: a user's mistake, or what a command could not do.
    """
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        listed = "\n".join(f"  {name:<10} {text}" for name, text in COMMANDS.items())
        print(USAGE.format(version=__version__, commands=listed))
        return 0
    if arguments[0] in ("--version", "-V"):
        print(__version__)
        return 0
    for argument in arguments:
        if not is_text(argument):
            raise ConfigError(f"`{argument}` is not UTF-8 text: rename the file or folder")
    command, rest = arguments[0], arguments[1:]
    if command not in COMMANDS:
        raise ConfigError(f"unknown command `{command}`; expected one of {', '.join(COMMANDS)}")
    if command == "paperdoll":
        from autolora.commands.paperdoll import paperdoll

        return paperdoll(rest)
    if "-h" in rest or "--help" in rest:
        takes = " [STUDY]" if command in TAKES_STUDY else " FILE" if command in TAKES_FILE else ""
        print(f"autolora {command}{takes} [key=value ...] [--cfg job]\n\n{COMMANDS[command]}\n\n"
              f"`autolora {command} --cfg job` prints every key with its value.")  # fmt: skip
        return 0
    return _configured(command, rest)


def _configured(command: str, rest: list[str]) -> int:
    """Compose the config, build the settings and run the command; torch is imported only after that."""
    show = "--cfg" in rest
    if show:
        at = rest.index("--cfg")
        del rest[at : at + (2 if rest[at + 1 : at + 2] == ["job"] else 1)]
    storage, rest = _storage(command, rest)
    places, overrides = _split(command, rest)
    if command == "compare":
        _refuse_all_but(overrides, ("out", "quiet", "json"))
    from autolora import config

    source = places[0] if command in TAKES_STUDY and places else None
    if command == "worker" and source is None:
        from autolora.study.lifecycle import resolve_study

        source, overrides = resolve_study(storage, overrides)
    if command in TAKES_STUDY and command != "check" and source is None:
        source = "quickstart"
    if command in TAKES_FILE and places:
        overrides.append(f"lora={places[0]}")
    composed = config.compose("tune" if source else "train", overrides, source)
    if storage and source:
        composed.storage = storage
    if show:
        return _print_config(composed)
    from autolora.commands.request import Request
    from autolora.settings import build_settings

    request = Request(build_settings(composed, source, overrides), tuple(places))
    if command in WRITES_OUT:
        request.check_writable()
    if command in READS_IMAGES:  # a mistake is told before torch is imported, which takes seconds
        request.dataset  # noqa: B018
        if command != "captions":  # which writes only a copy, where it is asked to
            request.check_places("cache", *(["out"] if request.settings.out or command not in TAKES_FILE else []))
    if command in LOADS_MODEL:
        request.check_model()
    return _run(command, request)


def _run(command: str, request: object) -> int:
    """Run a command; some of them, such as `report`, import no torch."""
    action: Callable[[object], int] = getattr(importlib.import_module(f"autolora.commands.{command}"), command)
    try:
        return action(request)
    except Exception as error:
        torch = sys.modules.get("torch")
        if torch is not None and isinstance(error, torch.OutOfMemoryError):
            raise MemoryFull(memory_full(error)) from error
        raise


def _split(command: str, rest: list[str]) -> tuple[list[str], list[str]]:
    """The study, file or folders that a command was given, and the overrides.

    Raises:
        ConfigError: an unknown option, or another number of files or studies than the command takes.
    """
    options = [argument for argument in rest if argument.startswith("-")]
    if options:
        raise ConfigError(
            f"unknown option {options[0]}; settings are written key=value, `autolora --help` shows examples"
        )
    places = [a for a in rest if "=" not in a and (not a.startswith("~") or "/" in a)]  # ~KEY removes a key
    overrides = [argument for argument in rest if argument not in places]
    if command == "report" and len(places) > 1:
        raise ConfigError(f"studies are compared by `autolora compare {' '.join(places)}`")
    most = {**dict.fromkeys(TAKES_STUDY, 1), **dict.fromkeys(TAKES_FILE, 1), "compare": len(places)}.get(command, 0)
    if len(places) > most:
        raise ConfigError(f"`{places[most]}` is not understood; overrides are written key=value")
    if command == "compare" and not places:
        raise ConfigError("no studies given: autolora compare FOLDER FOLDER ...")
    return places, overrides


def _refuse_all_but(overrides: list[str], keys: Sequence[str]) -> None:
    unknown = [argument for argument in overrides if argument.partition("=")[0] not in keys]
    if unknown:
        raise ConfigError(f"comparing studies takes their folders and out=FOLDER, quiet=true or json=true; "
                          f"got {' '.join(unknown)}")  # fmt: skip


def _print_config(composed: object) -> int:
    """Print a composed config as YAML, without the storage's password."""
    from omegaconf import DictConfig, OmegaConf

    assert isinstance(composed, DictConfig)
    if composed.get("storage"):
        from autolora.study.storage import redact_url

        composed.storage = redact_url(composed.storage)
    print(OmegaConf.to_yaml(composed), end="")
    return 0


def _storage(command: str, rest: list[str]) -> tuple[str | None, list[str]]:
    """The storage, and the other arguments: it may hold a password, which no config, report or message may show."""
    storages = [argument for argument in rest if argument.startswith("storage=")]
    if storages and command not in TAKES_STUDY:
        raise ConfigError(f"`autolora {command}` has no storage; {', '.join(TAKES_STUDY)} have")
    url = storages[-1].removeprefix("storage=") if storages else os.environ.get("AUTOLORA_STORAGE")
    return url or None, [argument for argument in rest if argument not in storages]


if __name__ == "__main__":
    sys.exit(main())
