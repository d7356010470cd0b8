"""Hydra's part of the configuration: YAML files and command-line overrides become one composed config.

Nothing here imports torch, diffusers or peft, so that a mistake in a key is answered at once.
"""

from __future__ import annotations

import codecs
import copy
import difflib
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from autolora.errors import ConfigError
from autolora.files import expand_user
from autolora.overrides import quote
from autolora.received import read_yaml, refuse_resolvers
from autolora.renamed_keys import refuse_renamed

PACKAGE = Path(__file__).parent
ROOT = (
    PACKAGE if (PACKAGE / "conf").is_dir() else PACKAGE.parent
)  # a wheel carries conf/ and studies/ inside the package
RECIPES = Path("conf") / "recipe"  # of the working directory: recipes of one's own, beside those of autolora
GROUPS = (
    *("adapter", "budget", "captions", "dataset", "export", "model", "optimizer"),
    *("schedule", "scoring", "study", "tagger", "train"),
)
_FREE_KEY = re.compile(r"^(train\.concept_images\.)")  # keys of a dataset's own words, which no config can list
_HYDRA_KEY = re.compile(r"[+~]*hydra[./=]|[^=]*@hydra")


def compose(primary: str, arguments: Sequence[str], study: str | None = None) -> DictConfig:
    """Compose a primary config with a study and overrides.

    Raises:
        ConfigError: a key or a group that does not exist, or a value or file that cannot be read.
    """
    overrides = [_FREE_KEY.sub(r"++\1", quote(argument)) for argument in arguments]
    for argument in overrides:
        if _HYDRA_KEY.match(argument):
            raise ConfigError(f"`{argument}` is refused: Hydra's own settings are no settings of autolora")
        if "=" not in argument and not argument.startswith("~"):
            raise ConfigError(f"`{argument}` is not understood; overrides are written key=value")
        refuse_renamed(argument.partition("=")[0])
        refuse_resolvers(*argument.partition("=")[::2])
    GlobalHydra.instance().clear()
    try:
        with _study_overrides(study) as own, initialize_config_dir(str((ROOT / "conf").resolve()), version_base="1.3"):
            config = _composed(primary, [*own, *overrides], study)
            _refuse_resolvers(config)
            OmegaConf.resolve(config)
            return config
    except (HydraException, OmegaConfBaseException) as error:
        keys = _dotted(compose(primary, (), study)) if arguments else ()  # raises where it is the study that is wrong
        raise ConfigError(_explain(error, primary, keys)) from error
    except YAMLError as error:  # in another file of conf/ of the working directory
        raise ConfigError(f"this is no YAML: {' '.join(str(error).split())}") from error


def _composed(primary: str, overrides: list[str], study: str | None) -> DictConfig:
    """What Hydra composes; a file whose parts are of other kinds than Hydra or a group expects is told as that."""
    try:
        config = hydra_compose(primary, overrides=overrides)
    except (ValueError, TypeError, AttributeError, AssertionError, LookupError, RecursionError) as error:
        words = " ".join(str(error).split())
        raise ConfigError(f"{study or 'a file of conf/'} cannot be composed ({words}): correct it") from error
    for group in GROUPS:
        if group in config and not isinstance(config._get_node(group), DictConfig):
            raise ConfigError(
                f"{group} has keys with values, such as {group}.x=1: correct what {study or primary} says"
            )
    return config


def _check_recipes(folder: Path) -> None:
    """Refuse recipes of one's own that Hydra cannot compose, or whose header it would miss behind a byte order mark.

    Raises:
        ConfigError: names the file.
    """
    for path in sorted(folder.glob("*.yaml")):
        read_yaml(path)
        if path.read_bytes().startswith((codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            raise ConfigError(f"{path} begins with a byte order mark: save it as UTF-8 without one")


def _refuse_resolvers(config: DictConfig) -> None:
    """Refuse values such as `${oc.env:NAME}`: a file from somebody else could read the environment and send it away.

    Raises:
        ConfigError: names the key.
    """
    for key, value in _strings(OmegaConf.to_container(config, resolve=False)):
        refuse_resolvers(key, value)


def _strings(value: object, key: str = "") -> Iterator[tuple[str, str]]:
    """Every string of a config with its key."""
    if isinstance(value, str):
        yield key, value
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, below in items:
        yield from _strings(below, f"{key}.{name}" if key else str(name))


def _explain(error: Exception, primary: str, keys: Sequence[str]) -> str:
    """Hydra's message in one line, with the nearest of the keys where one was misspelt."""
    text = " ".join(str(error).split())
    text = re.sub(r" (See https?://\S+.*|To append to your config.*|full_key:.*|Config search path:.*)$", "", text)
    if isinstance(error, OverrideParseException):
        return f"{error.override} is not understood: check its brackets and quotes"
    missing = re.search(r"[Kk]ey '([\w.-]+)' is not in struct", str(error)) or re.search(
        r"Could not override '([\w.-]+)'", str(error)
    )
    if missing:
        full = re.search(r"full_key: ([\w.-]+)", str(error))
        refuse_renamed(full.group(1) if full else missing.group(1))
        near = difflib.get_close_matches(missing.group(1), keys, 1)
        text = f"there is no key {missing.group(1)}"
        if missing.group(1) in keys:  # a key of a recipe, whose name holds dots
            return f"{missing.group(1)} cannot be set by an override: write it into a study file"
        text += f": did you mean `{near[0]}`?" if near else f"; `autolora {primary} --cfg job` lists every key"
    return text


def _dotted(config: DictConfig, above: str = "") -> list[str]:
    """Every key of a config and of what is in it, such as `train.epochs`."""
    found = []
    for key in map(str, config):
        below = config._get_node(key)
        found += [above + key, *(_dotted(below, f"{above}{key}.") if isinstance(below, DictConfig) else ())]
    return found


@contextmanager
def _study_overrides(study: str | None) -> Iterator[list[str]]:
    """Overrides that bring a study in, and the recipes of one's own in `conf/` of the working directory.

    A study comes from a folder of its own: beside other folders their names would be groups.
    """
    own = Path("conf").resolve()
    _check_recipes(RECIPES)
    recipes = [own.as_uri()] if RECIPES.is_dir() and own != (ROOT / "conf").resolve() else []
    if not study:
        yield [f"hydra.searchpath={recipes}"] if recipes else []
        return
    source = find_study(study)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "studies").mkdir()
        (Path(folder) / "studies" / "study.yaml").write_text(read_yaml(source), encoding="utf-8")
        yield [f"hydra.searchpath={[Path(folder).as_uri(), *recipes]}", "+studies=study"]


def find_study(study: str) -> Path:
    """The file of a study: one of `studies/`, or a YAML file of one's own.

    Raises:
        ConfigError: there is none; the known ones are listed.
    """
    path = expand_user(study)
    if path.suffix == ".yaml" and path.is_file():
        return path
    known = sorted(p.stem for p in (ROOT / "studies").glob("*.yaml"))
    if study not in known:
        raise ConfigError(f"study `{study}` not found; expected one of {', '.join(known)} or the path of a .yaml file")
    return ROOT / "studies" / f"{study}.yaml"


def with_values(config: DictConfig, values: Mapping[str, Any]) -> DictConfig:
    """A copy of a composed config with some keys set, as overrides would set them; the keys must exist."""
    changed = copy.deepcopy(config)
    OmegaConf.set_struct(changed, False)
    for key, value in values.items():
        OmegaConf.update(changed, key, value, force_add=True)
    return changed
