"""Which programs read a file of any trainer, and whether they read it correctly."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from peft import LoHaConfig, LoraConfig
from safetensors.torch import load_file, save_file

from autolora.adapters.deltas import parts_by_layer
from autolora.adapters.formats import layer_delta, layer_weights, layers_of
from autolora.adapters.read import read_lora
from autolora.cli import main
from autolora.export import key_names
from autolora.export.compatibility import CompatibilityReport, CompatibilityResult, check_compatibility
from autolora.export.readers import PROGRAMS
from autolora.export.readers.peft import peft_reader
from autolora.models.stable_diffusion import StableDiffusion
from tests.adapters.test_contract import KINDS
from tests.adapters.test_import_formats import trained as peft_trained
from tests.export.test_kinds import export, trained

pytestmark = pytest.mark.slow  # trains, renders or loads many models

EVERY = {*PROGRAMS, "diffusers"}
READ = {
    "lora": EVERY,
    "locon": EVERY,
    "dylora": EVERY,
    "loha": {"A1111", "ComfyUI", "Forge", "InvokeAI"},
    "lokr": {"A1111", "ComfyUI", "Forge", "InvokeAI"},
    "ia3": {"A1111", "InvokeAI"},
    "dora": set(),  # peft and LyCORIS read it, see their tests
}


def by_program(report: CompatibilityReport) -> dict[str, CompatibilityResult]:
    assert [result.program for result in report.results] == [*PROGRAMS, "diffusers"]
    return {result.program: result for result in report.results}


def correct_programs(report: CompatibilityReport) -> list[str]:
    return [result.program for result in report.results if result.correct]


@pytest.mark.parametrize("kind", READ)
def test_programs_that_read_each_kind(kind: str, tiny_model: StableDiffusion, tmp_path: Path) -> None:
    state, changes = trained(tiny_model, kind)
    report = check_compatibility(export(tiny_model, kind, state, tmp_path), tiny_model)
    results = by_program(report)
    assert report.layers == len(changes)
    assert set(correct_programs(report)) == READ[kind]
    # Of a DoRA, kohya reads nothing, diffusers leaves the magnitudes out, the others take other norms.
    differing = {program for program, result in results.items() if result.difference}
    assert differing == ({*EVERY} - {"kohya sd-scripts"} if kind == "dora" else set())


def test_sdxl_in_original_and_in_diffusers_names(tiny_xl: StableDiffusion, tmp_path: Path) -> None:
    """kohya's names are the original UNet's; some programs write diffusers' names with the same prefix."""
    state, _ = trained(tiny_xl, "lora")
    path = export(tiny_xl, "lora", state, tmp_path)
    assert all(result.correct for result in by_program(check_compatibility(path, tiny_xl)).values())
    renamed = {
        f"lora_{layer.replace('.', '_')}.{part}": tensor.contiguous()
        for layer, parts in parts_by_layer(state).items()
        if layer.startswith("unet.")
        for part, tensor in parts.items()
    }
    save_file(renamed, tmp_path / "other.safetensors")
    report = check_compatibility(tmp_path / "other.safetensors", tiny_xl)
    assert report.layers == len(renamed) // 3
    assert all(result.correct for result in report.results if result.program != "diffusers")


def test_only_diffusers_reads_a_file_in_its_own_names(tiny_model: StableDiffusion, tmp_path: Path) -> None:
    wrapped, _ = peft_trained(tiny_model, LoraConfig(r=4, lora_alpha=2, target_modules=["to_q", "proj_in"]))
    layers = {
        key.removeprefix("base_model.model.").replace(".default", ""): value
        for key, value in wrapped.state_dict().items()
        if "lora_" in key
    }
    StableDiffusionPipeline.save_lora_weights(tmp_path, unet_lora_layers=layers)
    report = check_compatibility(tmp_path / "pytorch_lora_weights.safetensors", tiny_model)
    assert correct_programs(report) == ["diffusers"]
    others = [result for result in report.results if result.program not in ("ComfyUI", "Forge", "diffusers")]
    assert all("names" in result.unreadable for result in others)
    # These two find the attention's layers only where old versions of diffusers had them.
    differences = [result.difference for result in report.results if result.program in ("ComfyUI", "Forge")]
    assert all(re.match(r"it leaves out \d+ of \d+ layers, such as unet.*to_q", text) for text in differences)


PEFT_TARGETS = ["to_q", "to_out.0", "proj_in", "ff.net.2", "resnets.0.conv1"]


@pytest.mark.parametrize(
    "config",
    [
        LoraConfig(r=4, lora_alpha=2, target_modules=PEFT_TARGETS, rank_pattern={"to_q": 2}, use_rslora=True),
        LoraConfig(r=4, lora_alpha=2, target_modules=PEFT_TARGETS, use_dora=True),
        LoHaConfig(r=3, alpha=2, target_modules=PEFT_TARGETS, alpha_pattern={"proj_in": 5}),
    ],
    ids=["lora", "dora", "loha"],
)
def test_peft_reads_a_file_that_it_saved(
    config: Any, tiny_model: StableDiffusion, tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    peft_trained(tiny_model, config)[0].save_pretrained(tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    assert correct_programs(check_compatibility(path, tiny_model)) == ["peft"]
    assert main(command(path, tiny_model_dir)) == 0
    assert "correctly" in capsys.readouterr().out.splitlines()[-1]
    settings = json.loads((tmp_path / "adapter_config.json").read_text("utf-8"))
    name = "lora_alpha" if isinstance(config, LoraConfig) else "alpha"
    state = read_lora(path, tiny_model)
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings | {name: 3, "alpha_pattern": {}}))
    read_layer = peft_reader(load_file(path), path, layers_of(tiny_model.modules), "sd1")
    layer = next(iter(parts_by_layer(state)))
    weight = layer_weights(tiny_model.modules)[layer]
    # peft follows the changed settings, so the values are really its own
    assert not torch.allclose(read_layer(layer, weight), layer_delta(state, layer, weight), rtol=0.01)


def test_a_layer_that_pefts_settings_leave_out_is_reported(tiny_model: StableDiffusion, tmp_path: Path) -> None:
    peft_trained(tiny_model, LoraConfig(r=4, target_modules=PEFT_TARGETS))[0].save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "adapter_config.json").read_text("utf-8"))
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings | {"target_modules": ["to_q", "proj_in"]}))
    report = check_compatibility(tmp_path / "adapter_model.safetensors", tiny_model)
    (peft,) = [result for result in report.results if result.program == "peft"]
    assert "Target modules" in peft.unreadable and "(unet." in peft.unreadable


def test_a_program_that_takes_one_alpha_for_all_layers_is_reported(
    tiny_model: StableDiffusion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The result names the layer that the program's formula reads differently."""
    state, _ = trained(tiny_model, "lora")
    path = export(tiny_model, "lora", state, tmp_path)
    tensors = load_file(path)
    key = sorted(key for key in tensors if key.endswith(".alpha"))[3]
    save_file(tensors | {key: torch.tensor(3.0)}, path)

    def one_alpha(parts: Any, weight: torch.Tensor) -> torch.Tensor:
        return PROGRAMS["A1111"]({**parts, "alpha": torch.tensor(2.0)}, weight)

    monkeypatch.setattr(key_names, "PROGRAMS", {**PROGRAMS, "ComfyUI": one_alpha})
    results = by_program(check_compatibility(path, tiny_model))
    assert results["A1111"].correct and results["kohya sd-scripts"].correct
    layer = key.removesuffix(".alpha").removeprefix("lora_unet_").removeprefix("lora_te_")
    difference = results["ComfyUI"].difference
    assert difference.split(" is ")[0].replace(".", "_").endswith(layer.removeprefix("text_model_"))
    assert "33.3% off" in difference


def command(path: Path, folder: Path) -> list[str]:
    return ["verify", str(path), f"model.path={folder}", "model.resolution=null"]


def test_the_command_lists_the_programs(
    tiny_model: StableDiffusion, tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = export(tiny_model, "locon", trained(tiny_model, "locon")[0], tmp_path)
    assert main(command(plain, tiny_model_dir)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "layers on" in lines[0] and sum("correctly" in line for line in lines) == 6
    assert main([*command(plain, tiny_model_dir), "json=true"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["event"] == "result" and set(result["read_by"].values()) == {"correctly"}
    dora = export(tiny_model, "dora", trained(tiny_model, "dora")[0], tmp_path)
    assert main(command(dora, tiny_model_dir)) == 6
    printed = capsys.readouterr()
    assert "is read differently by A1111: it takes DoRA norms per input" in printed.err
    assert re.search(r"diffusers +differently +its change of", printed.out)
    assert "differently" in printed.out and "norms per input" in printed.out


@pytest.mark.parametrize(
    ("name", "message"),
    [("none.safetensors", "does not exist"), ("other.safetensors", "another model"), ("text.safetensors", "broken")],
)
def test_a_bad_file_gives_one_line(
    name: str, message: str, tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_file({"lora_unet_nowhere.lora_down.weight": torch.zeros(2, 4)}, tmp_path / "other.safetensors")
    (tmp_path / "text.safetensors").write_text("hello")
    assert main(command(tmp_path / name, tiny_model_dir)) == 6
    printed = capsys.readouterr().err
    assert message in printed and "Traceback" not in printed


def test_all_kinds_of_the_contract_are_covered() -> None:
    assert {name.partition("-")[0] for name in KINDS} - {"rslora"} == set(READ)
