"""What is shown before a study begins, and the commands that tag and edit captions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from autolora.cli import main
from autolora.paperdoll.world import write_dataset
from autolora.preflight import sections as check
from autolora.preflight.cost import Renders, count_renders
from tests.data.folders import noise_image, write_concepts

pytestmark = pytest.mark.slow  # trains, or starts a server, a browser or processes

FULL = "1girl, zorak, {fit}, gold horns, blue hair, red eyes, masterpiece, {place}"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A character with two outfits as a tagger describes it, one picture much wider than the others."""
    places = ("beach", "city", "blue sky", "meadow")
    concepts = {
        f"5_zorak {fit}": [FULL.format(fit=fit, place=places[i % 4]) for i in range(8)] for fit in ("fita", "fitb")
    }
    root = write_concepts(tmp_path / "zorak", concepts)
    noise_image(99, (96, 40)).save(root / "5_zorak fita" / "000.png")
    return root


@pytest.fixture(scope="module")
def checked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, dict[str, list[dict[str, object]]]]]:
    """What `autolora check` writes of a paper doll."""
    out = tmp_path_factory.mktemp("check")
    write_dataset(out / "doll", seed=3, outfits=2, images_per_outfit=6, full=True)
    places = [f"dataset.path={out / 'doll'}", f"out={out / 'run'}", f"cache={out / 'cache'}"]
    assert (
        main(["check", "quickstart", *places, "model.render.search_inference_steps=2", "model.render.batch_size=8"])
        == 0
    )
    return out / "run", json.loads((out / "run" / "check.json").read_text("utf-8"))


def test_check_shows_everything_before_a_step_is_trained(
    checked: tuple[Path, dict[str, dict[str, list[dict[str, object]]]]],
) -> None:
    found = checked[1]
    assert [row["training"] for row in found["Images"]["rows"]] == [3, 3]
    assert [row["bucket"] for row in found["Buckets"]["rows"]] == ["64x64"]
    tags = {row["tag"]: row["kind"] for row in found["Tags"]["rows"]}
    assert tags["1girl" if "1girl" in tags else "1boy"] == "class word" and "pose" in tags.values()
    ledger = found["Recipe doll-adamw: images shown"]["rows"]
    assert [row["shown"] for row in ledger] == [800, 800, 1600]
    assert [row["overlap"] for row in ledger] == [1, 1, 2] and ledger[2]["risk"]
    assert {row["tokens"] for row in found["Triggers"]["rows"]} and found["Triggers"]["words"]
    pruning = {row["tag"]: row for row in found["Pruning"]["rows"]}
    assert {row["level"] for row in pruning.values()} == {"marks", "all"} and {"yes", "no"} >= {
        str(row["drawn"]) for row in pruning.values()
    }
    assert str(found["Pruning"]["words"][0]).startswith("suggested: captions.absorb_tags=")
    rates = {row["recipe"]: row for row in found["Learning rate"]["rows"]}
    assert rates["doll-adamw"]["schedule"] == "cosine_restarts" and rates["doll-adamw"]["highest rate"] == 3e-3
    assert rates["doll-preserve"]["schedule"] == "annealed_cosine" and str(rates["doll-preserve"]["rate"]).count("█")
    page = (checked[0] / "check.html").read_text("utf-8")
    assert all(page.count(f'"name":"{recipe}"') == 1 for recipe in rates)  # a curve each
    cost = {row["recipe"]: row for row in found["Cost"]["rows"]}
    assert set(cost) == {"doll-adamw", "doll-prodigy", "doll-preserve"}
    assert cost["doll-adamw"]["images"] == 1600 and cost["doll-adamw"]["optimizer steps"] == 400
    assert float(str(cost["doll-adamw"]["minutes"])) > 0


def test_check_writes_a_page_that_needs_nothing_else(
    checked: tuple[Path, dict[str, dict[str, list[dict[str, object]]]]],
) -> None:
    page = (checked[0] / "check.html").read_text("utf-8")
    assert "<h2>Triggers</h2>" in page and "http" not in page.replace("http-equiv", "")
    assert not list(checked[0].glob("study.db"))


def test_check_without_an_encoder_says_so_and_goes_on(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = [f"dataset.path={folder}", f"out={tmp_path / 'run'}", f"cache={tmp_path / 'cache'}"]
    assert main(["check", *places, "scoring.encoder=local-dir:/no/such", "model.render.search_inference_steps=1"]) == 0
    printed = capsys.readouterr().out
    needed = json.loads((tmp_path / "run" / "check.json").read_text("utf-8"))["Needed"]
    assert needed["rows"][0] == {"setting": "scoring.encoder", "value": "local-dir:/no/such", "state": "missing"}
    assert "give the folder of an open_clip model" in needed["words"][0]
    assert "not looked at" in printed and "Cost" in printed
    assert "masterpiece" in printed.split("Removed tags")[1].split("Tags")[0]
    assert "96x32" in printed and "captions.absorb_tags=marks: zorak absorbs gold horns" in printed


def test_triggers_are_only_counted_where_no_audit_is_wanted(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = [f"dataset.path={folder}", f"out={tmp_path / 'run'}", f"cache={tmp_path / 'cache'}"]
    assert main(["check", *places, "probe_triggers=false", "model.render.search_inference_steps=1"]) == 0
    found = json.loads((tmp_path / "run" / "check.json").read_text("utf-8"))["Triggers"]
    assert [row["trigger"] for row in found["rows"]] == ["zorak", "fita", "fitb"] and found["rows"][0]["tokens"] > 0
    assert found["words"] == ["not looked at: probe_triggers=false"]


def test_class_pictures_that_only_a_range_asks_for_are_counted(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = list[Renders]()

    def count(*given: Any) -> Renders:
        counted.append(count_renders(*given))
        return counted[-1]

    monkeypatch.setattr(check, "count_renders", count)
    places = [f"dataset.path={folder}", f"out={tmp_path / 'run'}", f"cache={tmp_path / 'cache'}"]
    own = ["~study.recipes.doll-prodigy", "~study.recipes.doll-preserve", "model.num_class_images=7000"]
    assert (
        main(["check", "quickstart", *places, *own, "probe_triggers=false", "model.render.search_inference_steps=1"])
        == 0
    )
    assert counted[0].before > 7000


def test_what_is_neither_true_nor_false_is_no_switch(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = [f"dataset.path={folder}", f"out={tmp_path / 'run'}", f"cache={tmp_path / 'cache'}"]
    assert main(["check", *places, "probe_triggers=no"]) == 2
    assert "probe_triggers must be true or false, got no" in capsys.readouterr().err and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("full", "lost", "audit"),
    [
        ("autolora.evaluation.throughput.train_step", {"Cost"}, "false"),
        ("autolora.evaluation.throughput.render", {"Cost"}, "false"),
        ("autolora.sampling.render", {"Triggers", "Pruning"}, "true"),
    ],
)
def test_too_little_memory_costs_only_what_does_not_fit(
    full: str, lost: set[str], audit: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 11 GiB.")

    monkeypatch.setattr(full, refuse)
    places = [f"dataset.path={folder}", f"out={tmp_path / 'run'}", f"cache={tmp_path / 'cache'}"]
    assert main(["check", *places, f"probe_triggers={audit}", "model.render.search_inference_steps=1"]) == 0
    found = json.loads((tmp_path / "run" / "check.json").read_text("utf-8"))
    said = {title for title, section in found.items() if "Tried to allocate 2.00 GiB" in " ".join(section["words"])}
    assert said == lost and all("model.offload=true" in found[title]["words"][0] for title in lost)
    assert found["GPU memory"]["rows"] and ("Cost" in lost or found["Cost"]["rows"])


def test_an_encoder_that_does_not_fit_is_said_too(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: str) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr("autolora.preflight.sections.load_encoder", refuse)
    places = [f"dataset.path={folder}", f"out={tmp_path / 'run'}", f"cache={tmp_path / 'cache'}"]
    assert main(["check", *places, "model.render.search_inference_steps=1"]) == 0
    found = json.loads((tmp_path / "run" / "check.json").read_text("utf-8"))
    assert "the GPU's memory is full" in found["Needed"]["words"][0] and found["GPU memory"]["rows"]


def test_captions_shows_changes_and_writes_a_copy_only_when_asked(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    edit = ["captions", f"dataset.path={folder}", "captions.absorb_tags=all", "captions.drop_tags=[city]"]
    assert main(edit) == 0
    printed = capsys.readouterr().out
    assert "+ 1girl, zorak, fita, beach" in printed and "16 of 16 captions change" in printed
    assert "nothing is written" in printed
    assert main([*edit, f"out={tmp_path / 'copy'}"]) == 0
    captions = sorted(path.read_text("utf-8").strip() for path in (tmp_path / "copy").rglob("*.txt"))
    assert len(captions) == 16 and captions[0] == "1girl, zorak, fita" and "masterpiece" not in "".join(captions)
    assert len(list((tmp_path / "copy").rglob("*.png"))) == 16
    assert main([*edit, f"out={tmp_path / 'copy'}"]) == 3
    assert "not an empty folder" in capsys.readouterr().err
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_tag_captions_only_what_has_no_caption(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_dataset(tmp_path / "doll", seed=3, outfits=1, images_per_outfit=6)
    captions = sorted((tmp_path / "doll").rglob("*.txt"))
    kept = captions[0].read_text("utf-8")
    for path in captions[1:]:
        path.unlink()
    assert main(["tag", f"dataset.path={tmp_path / 'doll'}", "tagger.prefix=[1girl, solo]"]) == 0
    assert "wrote 5 captions" in capsys.readouterr().out
    assert captions[0].read_text("utf-8") == kept
    words = captions[1].parent.name.partition("_")[2].split()
    for path in captions[1:]:
        tags = path.read_text("utf-8").strip().split(", ")
        assert tags[:4] == ["1girl", "solo", *words] and len(tags) > 6 and len(set(tags)) == len(tags)
    assert main(["tag", f"dataset.path={tmp_path / 'doll'}"]) == 0
    assert "wrote 0 captions" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["tag"], 3, "no images given"),
        (["tag", "dataset.path=/no/such"], 3, "the folder does not exist"),
        (
            ["captions", "dataset=quickstart", "captions.absorb_tags=some"],
            2,
            "captions.absorb_tags=some: must be one of",
        ),
        (["captions", "dataset=quickstart", "captions.trigger_swap_rate=0.5"], 3, "captions.swap_tags="),
        (
            ["check", "dataset=quickstart", "train.concept_images.hat=5"],
            2,
            "train.concept_images.hat: the dataset has no such",
        ),
        (
            ["check", "dataset=quickstart", "dataset.buckets.bucket_reso_steps=48"],
            2,
            "dataset.buckets.bucket_reso_steps=48 does not divide",
        ),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == code
    printed = capsys.readouterr().err
    assert message in printed and "Traceback" not in printed
