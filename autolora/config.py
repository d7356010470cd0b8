"""YAML and command-line overrides become the frozen dataclasses of the layers below."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import hashlib
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from autolora.adapters.adapter_set import ADAPTERS
from autolora.data.buckets import BucketSettings
from autolora.data.caption_recipe import CaptionRecipe
from autolora.data.concepts import DatasetSettings
from autolora.errors import ConfigError
from autolora.export.write import ExportSettings
from autolora.models.base import ModelSettings, RenderSettings
from autolora.optim.optimizers import OPTIMIZERS
from autolora.optim.schedules import SCHEDULES
from autolora.paperdoll.weights import QUICKSTART
from autolora.prepare.tagger_base import TaggerSettings
from autolora.renamed_keys import refuse_renamed
from autolora.scoring.settings import ScoringSettings
from autolora.train.run import InitFile, Run, TrainSettings

PACKAGE = Path(__file__).parent
ROOT = (
    PACKAGE if (PACKAGE / "conf").is_dir() else PACKAGE.parent
)  # a wheel carries conf/ and studies/ inside the package
RECIPES = Path("conf") / "recipe"  # of the working directory: recipes of one's own, beside those of autolora
T = TypeVar("T")
_FREE_KEY = re.compile(r"^(train\.concept_images\.)")  # keys of a dataset's own words, which no config can list


def quote(argument: str) -> str:
    """An override as people type it, quoted where Hydra's grammar would reject or misread it."""
    key, sign, value = argument.partition("=")
    if not sign or not value or key.startswith("~"):
        return argument
    try:
        parsed = OverridesParser.create().parse_override(argument)
        if not parsed.is_sweep_override() and "\\" not in value and not _is_call(value):
            return argument
    except HydraException:
        pass
    escaped = re.sub(r"(\\*)'", lambda m: m.group(1) * 2 + "\\'", value)
    tail = re.search(r"\\+$", escaped)
    escaped += tail.group() if tail else ""
    return f"{key}='{escaped}'"


def _is_call(value: str) -> bool:
    return "(" in value and not value.startswith(("'", '"', "[", "{"))


def compose(primary: str, arguments: Sequence[str], study: str | None = None) -> DictConfig:
    """Compose a primary config with a study and overrides.

    Raises:
        ConfigError: a key or a group that does not exist, or a value or file that cannot be read.
    """
    overrides = [_FREE_KEY.sub(r"++\1", quote(argument)) for argument in arguments]
    for argument in overrides:
        if "=" not in argument and not argument.startswith("~"):
            raise ConfigError(f"`{argument}` is not understood; overrides are written key=value")
        refuse_renamed(argument.partition("=")[0])
    GlobalHydra.instance().clear()
    try:
        with _study_overrides(study) as own, initialize_config_dir(str((ROOT / "conf").resolve()), version_base="1.3"):
            config = hydra_compose(primary, overrides=[*own, *overrides])
            OmegaConf.resolve(config)
            return config
    except (HydraException, OmegaConfBaseException) as error:
        keys = _dotted(compose(primary, (), study)) if arguments else ()  # raises where it is the study that is wrong
        raise ConfigError(_explain(error, primary, keys)) from error
    except YAMLError as error:  # in a study's or a recipe's file; a study is read under another name
        words = re.sub(r'in "\S*/study\.yaml"', f"in {study}", " ".join(str(error).split()))
        raise ConfigError(f"this is no YAML: {words}") from error


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
    recipes = [own.as_uri()] if RECIPES.is_dir() and own != (ROOT / "conf").resolve() else []
    if not study:
        yield [f"hydra.searchpath={recipes}"] if recipes else []
        return
    source = find_study(study)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "studies").mkdir()
        shutil.copy(source, Path(folder) / "studies" / "study.yaml")
        yield [f"hydra.searchpath={[Path(folder).as_uri(), *recipes]}", "+studies=study"]


def find_study(study: str) -> Path:
    """The file of a study: one of `studies/`, or a YAML file of one's own.

    Raises:
        ConfigError: there is none; the known ones are listed.
    """
    path = Path(study).expanduser()
    if path.suffix == ".yaml" and path.is_file():
        return path
    known = sorted(p.stem for p in (ROOT / "studies").glob("*.yaml"))
    if study not in known:
        raise ConfigError(f"study `{study}` not found; expected one of {', '.join(known)} or the path of a .yaml file")
    return ROOT / "studies" / f"{study}.yaml"


def build(kind: type[T], node: Any, where: str) -> T:
    """A frozen dataclass from its config node.

    Raises:
        ConfigError: a key it does not have, or a value of another type.
    """
    container = OmegaConf.to_container(node) if isinstance(node, DictConfig) else node
    if not isinstance(container, dict):
        raise ConfigError(f"{where}: expected keys with values, got {container!r}")
    given = {str(key): value for key, value in container.items() if key != "kind"}
    fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    unknown = [key for key in given if key not in fields]
    if unknown:
        refuse_renamed(f"{where}.{unknown[0]}")
        near = difflib.get_close_matches(unknown[0], fields, 1)
        hint = f"; did you mean `{near[0]}`?" if near else f"; it has {', '.join(fields)}"
        raise ConfigError(f"{where}.{unknown[0]} does not exist{hint}")
    missing = [key for key, value in given.items() if value == "???"]
    if missing:
        raise ConfigError(f"{where}.{missing[0]} must be given: add {where}.{missing[0]}=VALUE")
    values = {key: _convert(str(fields[key].type), value, f"{where}.{key}") for key, value in given.items()}
    return kind(**values)


def _convert(annotation: str, value: Any, where: str) -> Any:
    """Check a value against a field's annotation; lists become tuples and whole numbers floats where wanted."""
    if value is None and "None" in annotation:
        return None
    if isinstance(value, str) and annotation.endswith(" | str"):
        return value
    base = annotation.split(" | ")[0]
    if base.startswith("tuple["):
        if not isinstance(value, list):
            raise ConfigError(f"{where}: expected a list such as [a, b], got {value!r}")
        inner = base[len("tuple[") :].split(",")[0]
        return tuple(_convert(inner, item, where) for item in value)
    if base.startswith("Mapping["):
        if not isinstance(value, dict):
            raise ConfigError(f"{where}: expected keys with values such as {{a: 1}}, got {value!r}")
        return value
    wanted = {"int": (int,), "float": (int, float), "str": (str, int, float), "bool": (bool,)}.get(base)
    if wanted is None:
        return build(_NESTED[base], value, where) if base in _NESTED else value
    if not isinstance(value, wanted) or (isinstance(value, bool) and base != "bool"):
        raise ConfigError(f"{where}: expected {annotation}, got {value!r}")
    return {"float": float, "str": str}.get(base, lambda v: v)(value)


_NESTED: dict[str, type[Any]] = {"RenderSettings": RenderSettings, "BucketSettings": BucketSettings}


def build_run(config: DictConfig) -> Run:
    """The run that a composed config describes."""
    tables: list[tuple[str, Mapping[str, Any]]] = [
        ("adapter", ADAPTERS),
        ("optimizer", OPTIMIZERS),
        ("schedule", SCHEDULES),
    ]
    parts: dict[str, Any] = {}
    for name, table in tables:
        kind = config[name].get("kind")
        if kind not in table:
            raise ConfigError(f"{name}.kind={kind} is unknown; expected one of {', '.join(table)}")
        parts[name] = build(table[kind], config[name], name)
    train, captions = build(TrainSettings, config.train, "train"), build(CaptionRecipe, config.captions, "captions")
    return Run(config.recipe_name, **parts, train=train, captions=captions, init_lora=_init_file(config.init_lora))


def _init_file(given: Any) -> InitFile | None:
    """The file that training starts from, by its content."""
    if given is None:
        return None
    path = Path(str(given)).expanduser()
    if not path.is_file():
        raise ConfigError(
            f"init_lora={given} is no file: give the path of a .safetensors LoRA to start from, or leave it out"
        )
    found = path.stat()
    return InitFile(str(path), _sha256(path, found.st_size, found.st_mtime_ns))


@functools.cache
def _sha256(path: Path, size: int, changed_ns: int) -> str:
    """Of a file as it is now; a study composes its runs often."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ConfigError(
            f"init_lora={path} cannot be read ({error.strerror}): give a file that you may read"
        ) from error


def dataset_settings(config: DictConfig) -> DatasetSettings:
    """The dataset part; `quickstart` is the packaged folder."""
    settings = build(DatasetSettings, config.dataset, "dataset")
    return dataclasses.replace(settings, path=str(QUICKSTART)) if settings.path == "quickstart" else settings


def model_settings(config: DictConfig) -> ModelSettings:
    """The base model part."""
    return build(ModelSettings, config.model, "model")


def scoring_settings(config: DictConfig) -> ScoringSettings:
    """The scoring part."""
    return build(ScoringSettings, config.scoring, "scoring")


def tagger_settings(config: DictConfig) -> TaggerSettings:
    """The tagger's part."""
    return build(TaggerSettings, config.tagger, "tagger")


def export_settings(config: DictConfig) -> ExportSettings:
    """How LoRAs are exported."""
    return build(ExportSettings, config.export, "export")


def flag(given: Any, key: str) -> bool:
    """The value of a key that is true or false.

    Raises:
        ConfigError: it is neither.
    """
    if not isinstance(given, bool):
        raise ConfigError(f"{key} must be true or false, got {given}")
    return given


def names(given: Any, key: str) -> tuple[str, ...]:
    """The value of a key that takes one name, a list of them, or none.

    Raises:
        ConfigError: it is something else.
    """
    found = [given] if isinstance(given, str) else list(given or []) if isinstance(given, list | ListConfig) else given
    if found is None:
        return ()
    if not isinstance(found, list) or not all(isinstance(one, str) and one for one in found):
        raise ConfigError(f"{key} must be a name, or several as {key}=[a,b], got {given}")
    return tuple(dict.fromkeys(found))


def run_folder(config: DictConfig, name: str) -> Path:
    """Where a study or a single run lies: `out`, or runs/<name>-<dataset folder>."""
    if config.out:
        return Path(str(config.out)).expanduser()
    return Path("runs") / f"{name}-{Path(dataset_settings(config).path).expanduser().resolve().name}"
