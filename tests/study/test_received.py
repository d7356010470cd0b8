"""A study, bucket or YAML file that somebody else made: it writes and deletes nothing outside, and reads no secret."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from autolora.cli import main
from autolora.config import compose
from autolora.errors import ConfigError, StorageError, StudyError
from autolora.files import path_below, remove_leftovers
from autolora.publish.gallery_files import Strip
from autolora.study.artifacts import TrialFiles, local_store
from autolora.study.search.local_workers import worker_command
from tests.study.test_warm_start import ADAMW, planned, start

OUTSIDE = ["/etc", "..", "../x", "a/../../x", "a/..", ".ssh", "a/.git", "", "a//b", "C:\\x", "..\\x", "a\0b", "~"]
STUDY = "# @package _global_\nstudy: {name: mona, recipes: {guide-adamw: {}}}\n"


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_name_that_leads_out_of_a_folder_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="refused as a name below"):
        path_below(tmp_path, name)
    with pytest.raises(StorageError):
        TrialFiles(tmp_path)[name]
    with pytest.raises(StorageError):
        Strip("finals", name).read(tmp_path) if name else path_below(tmp_path, name)


@given(st.text() | st.lists(st.sampled_from(["..", ".", "/", "a", "\\", ".git", "~", ":"])).map("".join))
@example("trials/0123456789ab/samples/100.webp")
def test_whatever_is_accepted_lies_below_the_folder(name: str) -> None:
    folder = Path("/study/trials")
    try:
        path = path_below(folder, name)
    except StorageError:
        return
    assert path != folder and path.resolve().is_relative_to(folder)
    assert not any(part.startswith(".") for part in path.relative_to(folder).parts)


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    home, trials = tmp_path / "home", tmp_path / "trials"
    (home / ".ssh").mkdir(parents=True)
    trials.mkdir()
    (trials / "0123456789ab").symlink_to(home)
    with pytest.raises(StorageError, match="it is a link"):
        TrialFiles(trials)["0123456789ab"]
    remove_leftovers(trials)
    assert (home / ".ssh").is_dir()


def test_only_temporary_files_are_removed(tmp_path: Path) -> None:
    for kept in (
        ".git/HEAD",
        ".gitattributes",
        ".gitlab-ci.yml",
        ".env-local",
        ".env",
        "sub/.hidden",
        ".git/.new-abcdefgh/x",
    ):
        (tmp_path / kept).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / kept).write_text("mine")
    outside = tmp_path.parent / f"{tmp_path.name}-outside"
    outside.mkdir()
    (tmp_path / ".new-linked_1").symlink_to(outside)
    before = sorted(tmp_path.rglob("*"))
    for left in (".mona-abcdefgh.safetensors", ".latest-0a_b1c2d.pt", "sub/.100-abcdefgh.webp", ".tmpAb12Cd"):
        (tmp_path / left).write_text("half")
    (tmp_path / ".new-abcdefgh" / "diffusers").mkdir(parents=True)
    remove_leftovers(tmp_path)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    "listing",
    [
        {"../../escaped": "0" * 32},
        {"/tmp/escaped": "0" * 32},
        {".bashrc": "0" * 32},
        {"curve.json": "../../other"},
        ["no list of files"],
    ],
)
def test_a_buckets_listing_writes_nothing_outside_of_the_trial(listing: object, tmp_path: Path) -> None:
    store = local_store(tmp_path / "bucket")
    store.write("0123456789ab.json", io.BytesIO(json.dumps(listing).encode()))
    store.write(f"0123456789ab-{'0' * 32}", io.BytesIO(b"evil"))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(StorageError):
        TrialFiles(tmp_path / "run" / "trials", store).fetch("0123456789ab")
    assert sorted(tmp_path.rglob("*")) == before


def test_the_id_of_a_trial_in_a_database_is_no_path(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`tune` once deleted every hidden file below such a path."""
    (tmp_path / "home" / ".ssh").mkdir(parents=True)
    definition = planned(tmp_path / "run", ADAMW)
    study, _ = start(definition)
    trial = study.ask()
    trial.set_user_attr("recipe", "doll-adamw")
    trial.set_user_attr("uid", str(tmp_path / "home"))
    assert main(["report", definition.source, *definition.arguments]) == StudyError.exit_code
    assert "holds what no study writes (uid" in capsys.readouterr().err
    assert (tmp_path / "home" / ".ssh").is_dir()


@pytest.mark.parametrize(
    "line",
    [
        "storage: 'postgresql://u:${oc.env:SECRET}@host/x'",
        "storage: 'postgresql://u:${ oc.env : SECRET }@host/x'",
        "artifact_store: 's3://${oc.env:SECRET,none}/x'",
        "out: '${${study.name}:SECRET}'",
        "scoring: {trigger_prompts: ['${oc.decode:1}']}",
        "defaults: ['override /recipe: ${oc.env:SECRET}']",
    ],
)
def test_a_study_file_reads_no_environment(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "hush")
    (tmp_path / "received.yaml").write_text(f"{STUDY}{line}\n")
    with pytest.raises(ConfigError, match="is refused") as refused:
        compose("tune", (), str(tmp_path / "received.yaml"))
    assert "hush" not in str(refused.value)


def test_a_study_file_may_refer_to_its_own_keys(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(f"{STUDY}out: 'runs/${{study.name}}'\n")
    assert compose("tune", (), str(tmp_path / "mine.yaml")).out == "runs/mona"


@pytest.mark.parametrize("key", ["hydra.searchpath", "++hydra.searchpath", "hydra/launcher", "model@hydra.x"])
def test_the_kept_arguments_of_a_study_cannot_name_code(key: str) -> None:
    with pytest.raises(ConfigError, match="Hydra's own settings"):
        compose("tune", [f"{key}=[pkg://evil]"])


def test_workers_import_nothing_from_the_folder_they_start_in(tmp_path: Path) -> None:
    assert "-P" in worker_command(planned(tmp_path / "run", ADAMW))


def test_a_study_whose_database_is_gone_begins_anew_and_says_so(tmp_path: Path) -> None:
    definition = planned(tmp_path / "run", ADAMW)
    (definition.folder / "trials").mkdir()
    assert "holds trials, but no study.db: the study begins anew" in start(definition)[1]
    assert start(definition)[1] == ""
