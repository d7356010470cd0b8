"""Smaller ranks: the nearest LoRA by SVD, a DyLoRA's own cuts, and files that every program reads alike."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from autolora.adapters.adapter_set import attach
from autolora.adapters.base import State
from autolora.adapters.deltas import change, distance, parts_by_layer
from autolora.adapters.formats import layer_weights
from autolora.adapters.kinds import DyLoRA
from autolora.adapters.low_rank import cut
from autolora.adapters.read import read_lora, read_metadata
from autolora.commands.resize import Resized, print_resized, seek, smallest_kept, wanted_dims
from autolora.errors import ConfigError
from autolora.export.compatibility import check_compatibility
from autolora.export.metadata import ExportFacts
from autolora.export.readers import PROGRAMS
from autolora.export.readers.diffusers import DiffusersReference
from autolora.export.resize import MAX_RANK, Resizer, dylora_unit, write_resized
from autolora.export.verify import verify_deltas
from autolora.export.write import export_lora
from autolora.models.stable_diffusion import StableDiffusion
from autolora.scoring.intervals import Estimate
from tests.adapters.test_contract import KINDS
from tests.export.test_kinds import export, trained
from tests.export.world import dataset, random_state, run

DYLORA = DyLoRA(dim=8, alpha=4, unit=2)
FACTS = ExportFacts("1girl, zorak", 0.7, "a test", 20)


@pytest.mark.parametrize("kind", ["lora", "rslora", "locon", "dora", "loha", "lokr", "ia3"])
def test_the_nearest_lora_of_each_rank(kind: str, tiny_model: StableDiffusion) -> None:
    """No other matrix of that rank is nearer (Eckart and Young), and a rank that is enough loses nothing."""
    state, changes = trained(tiny_model, kind)
    weights = layer_weights(tiny_model.modules)
    resizer = Resizer(state, weights)
    assert resizer.max_rank == (4 if kind in ("lora", "rslora", "locon") else MAX_RANK)
    for path, parts in parts_by_layer(resizer.to(2)).items():
        matrix = changes[path].flatten(1).double()
        lost = torch.linalg.svdvals(matrix)[2:].square().sum().sqrt()
        apart = torch.linalg.vector_norm(change(parts).double() - matrix)
        assert float(apart) == pytest.approx(float(lost), rel=1e-3, abs=1e-4), path
        assert len(parts["lora_down.weight"]) <= 2 and float(parts["alpha"]) == 2
    assert distance(resizer.to(resizer.max_rank), state, weights) < (1e-5 if resizer.max_rank == 4 else 1e-2)


def test_layers_of_several_ranks_are_read_alike_everywhere(tiny_model: StableDiffusion, tmp_path: Path) -> None:
    """Convolutions of rank 2 in a file of dim 3: one alpha for all, so that no program takes a wrong scale."""
    state, _ = trained(tiny_model, "locon")
    source = export(tiny_model, "locon", state, tmp_path)
    source.with_suffix(".png").write_bytes(b"a picture")
    smaller = Resizer(state, layer_weights(tiny_model.modules)).to(3)
    path = write_resized(smaller, 3, source, read_metadata(source), tiny_model, tmp_path, torch.float32)
    assert path.name == "locon-dim3.safetensors"
    assert {len(tensor) for key, tensor in smaller.items() if key.endswith("lora_down.weight")} == {2, 3}
    assert all(one.alike for one in check_compatibility(path, tiny_model)[1])
    assert distance(read_lora(path, tiny_model), smaller, layer_weights(tiny_model.modules)) < 1e-6
    said, before = read_metadata(path), read_metadata(source)
    assert (said["ss_network_dim"], said["ss_network_alpha"]) == ("3", "3")
    assert json.loads(said["ss_network_args"]) == {"conv_dim": "3", "conv_alpha": "3"}
    assert said["ss_tag_frequency"] == before["ss_tag_frequency"]
    assert said["sshs_model_hash"] != before["sshs_model_hash"] and said["autolora.resized_from"] == source.name
    assert path.with_suffix(".png").read_bytes() == b"a picture" and path.with_suffix(".json").is_file()


def test_a_dylora_is_cut_with_its_own_alpha(tiny_model: StableDiffusion, tiny_model_dir: Path, tmp_path: Path) -> None:
    """By SVD it would be another LoRA than the one that was trained at that rank."""
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


def test_ranks_that_are_given(tiny_model: StableDiffusion) -> None:
    resizer = Resizer(plain(tiny_model), layer_weights(tiny_model.modules))
    assert wanted_dims(None, resizer) is None
    assert wanted_dims([2, 8, 2], resizer) == [8, 2]
    resizer.unit, resizer.max_rank = 4, 64
    for wrong in ([6], [0], [128], ["a"], [True]):
        with pytest.raises(ConfigError, match=r"dims=.*expected ranks from 4 to 64 in steps of 4"):
            wanted_dims(wrong, resizer)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("enough", "most", "first", "unit", "tried"),
    [
        (11, 32, 16, 1, [16, 8, 12, 10, 11]),
        (1, 12, 6, 1, [6, 3, 1]),
        (16, 32, 16, 1, [16, 8, 12, 14, 15]),
        (20, 32, 16, 1, [16, 24, 20, 18, 19]),  # more than half of its own
        (32, 32, 16, 1, [16, 24, 28, 30, 31]),  # all of its own: none smaller is offered
        (20, 64, 32, 4, [32, 16, 24, 20]),  # a DyLoRA's units
        (22, 60, 30, 4, [28, 12, 20, 24]),
        (4, 64, 32, 4, [32, 16, 8, 4]),
        (100, 128, 128, 1, [128, 64, 96, 112, 104, 100, 98, 99]),
        (129, 128, 128, 1, [128]),  # another kind, which no rank comes near
        (1, 1, 0, 1, []),
    ],
)
def test_the_smallest_rank_that_keeps_the_score_is_found(
    enough: int, most: int, first: int, unit: int, tried: list[int]
) -> None:
    """Halves alone end where the first of them loses."""
    seen: list[int] = []

    def keeps(dim: int) -> bool:
        seen.append(dim)
        return dim >= enough

    seek(keeps, most, first, unit)
    assert seen == tried
    smallest = min((dim for dim in range(unit, most, unit) if dim >= enough), default=None)
    assert min((dim for dim in seen if dim >= enough), default=None) == smallest


@pytest.mark.parametrize(("kind", "most", "first"), [("lora", 4, 2), ("loha", MAX_RANK, MAX_RANK)])
def test_where_to_begin(kind: str, most: int, first: int, tiny_model: StableDiffusion) -> None:
    resizer = Resizer(trained(tiny_model, kind)[0], layer_weights(tiny_model.modules))
    assert (resizer.max_rank, resizer.first_rank) == (most, first)


def test_the_smallest_rank_is_offered_of_those_that_keep_the_score(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def made_up(dim: int | None, kept: bool) -> Resized:
        return Resized(dim, tmp_path / "a.safetensors", Estimate(0.5, 0.4, 0.6), [], kept)

    whole, eight, four, two = made_up(None, True), made_up(8, True), made_up(4, False), made_up(2, True)
    assert smallest_kept([whole, eight, four, two]) == eight  # what is smaller than one that loses is luck
    assert smallest_kept([whole, four]) is None and smallest_kept([whole]) is None
    four.path.touch()
    print_resized([whole, four])
    assert "of the ranks tried (4) none keeps the score" in capsys.readouterr().out
