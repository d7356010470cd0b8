"""Workers that share a database and a bucket, but no folder: against a local S3 server."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.request import urlopen

import boto3
import optuna
import pytest
from moto.server import ThreadedMotoServer
from optuna.artifacts import get_all_artifact_meta

from autolora import config as cfg
from autolora.errors import ConfigError, StorageError
from autolora.evaluation.trial_folder import TrialFolder
from autolora.paperdoll.world import write_dataset
from autolora.settings import build_settings
from autolora.stop import Stopped
from autolora.study.artifacts import Store, TrialFiles, local_store, open_bucket
from autolora.study.definition import define_study
from autolora.study.finals.evaluator import CandidateEvaluator
from autolora.study.finals.finalist import Candidate
from autolora.study.lifecycle import join_study
from autolora.study.results.dashboard_plots import study_curves
from autolora.study.trials import load_trials
from tests.study.results.test_dashboard import RUN, finish, point
from tests.study.search import chaos
from tests.study.search.test_workers import TRIALS, begin, on_measure, states

pytestmark = pytest.mark.slow  # trains, or starts a server, a browser or processes

SECRET = "hushhushhush"


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    running = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    yield f"http://{host}:{port}"
    running.stop()


@pytest.fixture
def s3(server: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A client of an empty server with a bucket `mona`; the environment says where it is."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    for name, value in (("ACCESS_KEY_ID", "me"), ("SECRET_ACCESS_KEY", SECRET), ("ENDPOINT_URL", server)):
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    urlopen(f"{server}/moto-api/reset", data=b"")
    client = boto3.client("s3")
    client.create_bucket(Bucket="mona")
    return client


def opened(address: str = "s3://mona/some/where") -> Store:
    found = open_bucket(address)
    assert found is not None
    return found


def keys(s3: Any) -> list[str]:
    return [entry["Key"] for entry in s3.list_objects_v2(Bucket="mona").get("Contents", [])]


def write(folder: Path, **files: str) -> None:
    for name, content in files.items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)


def test_a_folder_is_found_elsewhere_as_it_was_sent(s3: Any, tmp_path: Path) -> None:
    here, there = (TrialFiles(tmp_path / name, opened()) for name in ("here", "there"))
    write(here["uid"], curve="1", checkpoints__100="a", latest="1")
    here.send("uid")
    assert there.fetch("uid", only="curve") == there["uid"] and [p.name for p in there["uid"].iterdir()] == ["curve"]
    there.fetch("uid")
    assert (there["uid"] / "checkpoints" / "100").read_text() == "a"
    write(there["uid"], curve="1 2", checkpoints__200="b", latest="2", _hidden="")
    (there["uid"] / "checkpoints" / "100").unlink()
    (there["uid"] / "_hidden").rename(there["uid"] / ".hidden")  # left by a writer that was killed
    there.send("uid")
    write(here["uid"], curve="1 2'", latest="2'")  # scored, but its worker was killed before it could send it
    here.fetch("uid")
    assert [(here["uid"] / name).read_text() for name in ("curve", "latest", "checkpoints/200")] == ["1 2", "2", "b"]
    assert len(keys(s3)) == 4 and all(key.startswith("some/where/uid") for key in keys(s3))  # nothing old is left


def test_what_was_sent_half_does_not_count(s3: Any, tmp_path: Path) -> None:
    here, there = (TrialFiles(tmp_path / name, opened()) for name in ("here", "there"))
    write(here["uid"], curve="1", latest="1")
    here.send("uid")
    write(here["uid"], curve="1 2", latest="2")

    class Killed(Exception): ...

    class Dying:
        def __init__(self) -> None:
            self.behind, self.writes = opened(), 0

        def __getattr__(self, name: str) -> Any:
            return getattr(self.behind, name)

        def write(self, artifact_id: str, body: Any) -> None:
            self.writes += 1
            if self.writes == 2:
                raise Killed
            self.behind.write(artifact_id, body)

    with pytest.raises(Killed):
        TrialFiles(here.folder, Dying()).send("uid")
    there.fetch("uid")
    assert [(there["uid"] / name).read_text() for name in ("curve", "latest")] == ["1", "1"]


def test_what_has_ended_is_asked_for_once(s3: Any, tmp_path: Path) -> None:
    files = TrialFiles(tmp_path / "here", opened())
    write(files["uid"], curve="1")
    files.send("uid")
    assert files.fetch("uid", ended=True)
    s3.delete_object(Bucket="mona", Key="some/where/uid.json")
    write(files["uid"], curve="2")
    assert (files.fetch("uid", ended=True) / "curve").read_text() == "2"


def test_without_a_bucket_nothing_is_moved(tmp_path: Path) -> None:
    files = TrialFiles(tmp_path)
    files.send("uid")
    assert files.fetch("uid") == tmp_path / "uid" and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("runs/mona", "expected s3://BUCKET/PREFIX"),
        ("s3://", "expected s3://BUCKET/PREFIX"),
        ("s3://me:hushhushhush@mona/x", "must hold no keys"),
        ("s3://zorak/x", r"cannot be opened \(.*404"),
    ],
)
def test_a_bucket_that_cannot_be_opened_is_explained(address: str, message: str, s3: Any, tmp_path: Path) -> None:
    arguments = [f"artifact_store={address}", f"out={tmp_path}"]
    with pytest.raises(ConfigError, match=message) as caught:
        define_study(build_settings(cfg.compose("tune", arguments, "quickstart"), "quickstart", arguments))
    assert SECRET not in str(caught.value)


def test_a_bucket_that_is_gone_stops_a_worker_without_its_keys(s3: Any, tmp_path: Path) -> None:
    files = TrialFiles(tmp_path, opened())
    s3.delete_bucket(Bucket="mona")
    write(files["uid"], curve="1")
    with pytest.raises(StorageError, match="artifact_store=s3://mona/some/where cannot be reached") as caught:
        files.send("uid")
    assert SECRET not in str(caught.value)


def test_a_trial_goes_on_on_a_machine_that_has_only_database_and_bucket(
    s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_dataset(tmp_path / "doll", seed=1, outfits=1, images_per_outfit=6, size=32)
    for name in ("here", "alone"):
        (tmp_path / name).mkdir()
    work = chaos.open_tiny_session(chaos.Settings(str(tmp_path / "here"), str(tmp_path / "doll"), None, 1, 0, 0, []))
    definition, study = begin(tmp_path / "here", str(tmp_path / "doll"))
    here = replace(definition, bucket=opened())
    there = replace(
        here, folder=tmp_path / "there", settings=replace(here.settings, storage=here.storage), bucket=opened()
    )
    before, alone = begin(tmp_path / "alone", str(tmp_path / "doll"))
    chaos.run(before, alone, work, chaos.Said())
    Path("measured").unlink()

    def stop(checkpoint: Any) -> None:
        if checkpoint.step == 12:
            raise Stopped

    with on_measure(stop), pytest.raises(Stopped):
        chaos.run(here, study, work, chaos.Said())
    chaos.run(there, join_study(there, chaos.BASE_HASH, print), work, chaos.Said())
    assert states(study) == ["COMPLETE"] * TRIALS
    measured = Path("measured").read_text().splitlines()
    assert len(measured) == len(set(measured)) == TRIALS * chaos.CHECKPOINTS  # nothing twice
    undisturbed = {trial.number: record.results for trial, record in load_trials(before, alone, print)}
    for one in (here, there):  # and each of them has all of it
        found = {trial.number: record for trial, record in load_trials(one, study, print)}
        assert {number: record.results for number, record in found.items()} == undisturbed
        assert all(record.load(record.results[-1]) for record in found.values())
        assert len(study_curves(study, one.trial_files)) == TRIALS
    shown = [path for path in tmp_path.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()]
    assert not shown


def test_pictures_lie_in_the_bucket_too(s3: Any, tmp_path: Path) -> None:
    study = optuna.create_study(direction="maximize")
    finish(study.ask(), tmp_path, point(100, 0.5, 0.05), store=opened())
    (meta,) = get_all_artifact_meta(study.trials[0], storage=study._storage)
    assert f"some/where/{meta.artifact_id}" in keys(s3) and not (tmp_path / "artifacts").exists()
    assert local_store(tmp_path) and (tmp_path / "artifacts").is_dir()


def test_a_recipe_trained_again_is_found_elsewhere(s3: Any, tmp_path: Path) -> None:
    """As its trial: by the finals of whoever goes on with them."""
    here, there = (TrialFiles(tmp_path / name, opened()) for name in ("here", "there"))
    write(here["uid-seed1"], curve="[]")
    here.send("uid-seed1")
    nothing: Any = None
    scorer: Any = SimpleNamespace(only=lambda *_: None)
    bars: Any = SimpleNamespace(log=print)
    evaluator = CandidateEvaluator(nothing, scorer, there, bars)
    folder = evaluator.folder_of(Candidate(nothing, TrialFolder(there["uid"], RUN), nothing, 1))
    assert (folder.path / "curve").read_text() == "[]"
