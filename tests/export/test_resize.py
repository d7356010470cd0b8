"""Smaller ranks: the nearest LoRA by SVD, a DyLoRA's first ranks, and files that every program reads alike."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from autolora.adapters.adapter_set import attach
from autolora.adapters.base import State
from autolora.adapters.deltas import delta_weight, distance, parts_by_layer
from autolora.adapters.formats import layer_weights
from autolora.adapters.kinds import DyLoRA
from autolora.adapters.low_rank import cut
from autolora.adapters.read import read_lora, read_metadata
from autolora.commands.resize import print_resized
from autolora.errors import ConfigError
from autolora.export.compatibility import check_compatibility
from autolora.export.metadata import ExportFacts
from autolora.export.readers import PROGRAMS
from autolora.export.readers.diffusers import DiffusersReference
from autolora.export.resize import MAX_RANK, Resizer, dylora_unit, write_resized
from autolora.export.verify import verify_deltas
from autolora.export.write import export_lora
from autolora.models.stable_diffusion import StableDiffusion
from autolora.publish.resize import ResizedFile, check_dims, search_ranks, smallest_that_keeps_score
from autolora.scoring.intervals import Estimate
from tests.adapters.test_contract import KINDS
from tests.export.test_kinds import export, trained
from tests.export.world import dataset, random_state, run

DYLORA = DyLoRA(dim=8, alpha=4, unit=2)
FACTS = ExportFacts("1girl, zorak", 0.7, "a test", 20)


@pytest.mark.parametrize("kind", ["lora", "rslora", "locon", "dora", "loha", "lokr", "ia3"])
def test_the_nearest_lora_of_each_rank(kind: str, tiny_model: StableDiffusion) -> None:
    """No other matrix of that rank is nearer (Eckart and Young), and a sufficient rank loses nothing."""
    state, changes = trained(tiny_model, kind)
    weights = layer_weights(tiny_model.modules)
    resizer = Resizer(state, weights)
    assert resizer.max_rank == (4 if kind in ("lora", "rslora", "locon") else MAX_RANK)
    for path, parts in parts_by_layer(resizer.to(2)).items():
        matrix = changes[path].flatten(1).double()
        lost = torch.linalg.svdvals(matrix)[2:].square().sum().sqrt()
        apart = torch.linalg.vector_norm(delta_weight(parts).double() - matrix)
        assert float(apart) == pytest.approx(float(lost), rel=1e-3, abs=1e-4), path
        assert len(parts["lora_down.weight"]) <= 2 and float(parts["alpha"]) == 2
    assert distance(resizer.to(resizer.max_rank), state, weights) < (1e-5 if resizer.max_rank == 4 else 1e-2)


def test_every_program_reads_layers_of_several_ranks(tiny_model: StableDiffusion, tmp_path: Path) -> None:
    """A file of dim 3 with convolutions of rank 2 has one alpha for all layers, so every program scales it right."""
    state, _ = trained(tiny_model, "locon")
    source = export(tiny_model, "locon", state, tmp_path)
    source.with_suffix(".png").write_bytes(b"a picture")
    smaller = Resizer(state, layer_weights(tiny_model.modules)).to(3)
    path = write_resized(smaller, 3, source, read_metadata(source), tiny_model, tmp_path, torch.float32)
    assert path.name == "locon-dim3.safetensors"
    assert {len(tensor) for key, tensor in smaller.items() if key.endswith("lora_down.weight")} == {2, 3}
    assert all(result.correct for result in check_compatibility(path, tiny_model).results)
    assert distance(read_lora(path, tiny_model), smaller, layer_weights(tiny_model.modules)) < 1e-6
    after, before = read_metadata(path), read_metadata(source)
    assert (after["ss_network_dim"], after["ss_network_alpha"]) == ("3", "3")
    assert json.loads(after["ss_network_args"]) == {"conv_dim": "3", "conv_alpha": "3"}
    assert after["ss_tag_frequency"] == before["ss_tag_frequency"]
    assert after["sshs_model_hash"] != before["sshs_model_hash"] and after["autolora.resized_from"] == source.name
    assert path.with_suffix(".png").read_bytes() == b"a picture" and path.with_suffix(".json").is_file()


def test_a_dylora_is_cut_with_its_own_alpha(tiny_model: StableDiffusion, tiny_model_dir: Path, tmp_path: Path) -> None:
    """SVD would give another LoRA than the one that was trained at that rank."""
    adapter = attach(tiny_model.modules, DYLORA)
    try:
        adapter.start(0, DYLORA, torch.Generator().manual_seed(0))
        state = adapter.state(0)
    finally:
        adapter.detach()
    generator = torch.Generator().manual_seed(1)
    state |= {k: torch.randn(t.shape, generator=generator) * 0.1 for k, t in state.items() if "lora_up" in k}
    source = export_lora(
        state, replace(run(KINDS["lora"]), adapter=DYLORA), dataset(), tiny_model, tmp_path, "dy", facts=FACTS
    ).path
    metadata, weights = read_metadata(source), layer_weights(tiny_model.modules)
    resizer = Resizer(read_lora(source, tiny_model), weights, dylora_unit(metadata))
    assert resizer.unit == 2
    assert distance(resizer.to(2), cut(state, 2), weights) < 1e-3  # half precision
    assert distance(Resizer(state, weights).to(2), cut(state, 2), weights) > 0.1
    path = write_resized(resizer.to(2), 2, source, metadata, tiny_model, tmp_path)
    assert read_metadata(path)["ss_network_alpha"] == "2"
    assert verify_deltas(resizer.to(2), path, tiny_model).read_by == tuple(PROGRAMS)
    assert DiffusersReference(path, tiny_model_dir, tiny_model).verify_deltas(resizer.to(2)).delta_error < 1e-2


def plain(model: StableDiffusion) -> State:
    return random_state(model, replace(KINDS["lora"], dim=12))


def test_checked_ranks(tiny_model: StableDiffusion) -> None:
    resizer = Resizer(plain(tiny_model), layer_weights(tiny_model.modules))
    assert check_dims(None, resizer) is None
    assert check_dims([2, 8, 2], resizer) == [8, 2]
    resizer.unit, resizer.max_rank = 4, 64
    for wrong in ([6], [0], [128], ["a"], [True]):
        with pytest.raises(ConfigError, match=r"dims=.*expected ranks from 4 to 64 in steps of 4"):
            check_dims(wrong, resizer)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("enough", "most", "first", "unit", "tried"),
    [
        (11, 32, 16, 1, [16, 8, 12, 10, 11]),
        (1, 12, 6, 1, [6, 3, 1]),
        (16, 32, 16, 1, [16, 8, 12, 14, 15]),
        (20, 32, 16, 1, [16, 24, 20, 18, 19]),  # more than half of the file's rank
        (32, 32, 16, 1, [16, 24, 28, 30, 31]),  # the whole rank is needed, so no smaller one is offered
        (20, 64, 32, 4, [32, 16, 24, 20]),  # units of a DyLoRA
        (22, 60, 30, 4, [28, 12, 20, 24]),
        (4, 64, 32, 4, [32, 16, 8, 4]),
        (100, 128, 128, 1, [128, 64, 96, 112, 104, 100, 98, 99]),
        (129, 128, 128, 1, [128]),  # another kind of adapter, for which no rank is enough
        (1, 1, 0, 1, []),
    ],
)
def test_the_smallest_rank_that_keeps_the_score_is_tried(
    enough: int, most: int, first: int, unit: int, tried: list[int]
) -> None:
    """The search goes on between the last rank that kept the score and the first that lost it."""
    ranks: list[int] = []

    def keeps_score(dim: int) -> bool:
        ranks.append(dim)
        return dim >= enough

    search_ranks(keeps_score, most, first, unit)
    assert ranks == tried
    smallest = min((dim for dim in range(unit, most, unit) if dim >= enough), default=None)
    assert min((dim for dim in ranks if dim >= enough), default=None) == smallest


@pytest.mark.parametrize(("kind", "most", "first"), [("lora", 4, 2), ("loha", MAX_RANK, MAX_RANK)])
def test_the_first_rank_to_try(kind: str, most: int, first: int, tiny_model: StableDiffusion) -> None:
    resizer = Resizer(trained(tiny_model, kind)[0], layer_weights(tiny_model.modules))
    assert (resizer.max_rank, resizer.first_rank) == (most, first)


def test_the_smallest_file_that_keeps_the_score_is_offered(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def resized(dim: int | None, keeps_score: bool) -> ResizedFile:
        return ResizedFile(dim, tmp_path / "a.safetensors", Estimate(0.5, 0.4, 0.6), [], keeps_score)

    original, eight, four, two = resized(None, True), resized(8, True), resized(4, False), resized(2, True)
    assert smallest_that_keeps_score([original, eight, four, two]) == eight  # dim 2 keeps it by chance
    assert smallest_that_keeps_score([original, four]) is None and smallest_that_keeps_score([original]) is None
    four.path.touch()
    print_resized([original, four])
    assert "of the ranks tried (4) none keeps the score" in capsys.readouterr().out
