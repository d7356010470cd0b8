"""The command for sd-scripts says what the run does, and admits what it cannot say."""

from __future__ import annotations

import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from autolora import config as cfg
from autolora.data.concepts import Dataset, load_dataset
from autolora.export.kohya_command import KohyaCommand, kohya_command
from autolora.train.run import Run


def model(architecture: str = "sd1", prediction: str = "epsilon") -> Any:
    found = {"architecture": architecture, "prediction_type": prediction, "resolution": 512, "clip_skip": None}
    snr = torch.tensor([9.0, 0.0] if prediction == "v_prediction" else [9.0, 0.1])
    return SimpleNamespace(**found, tells_guidance=False, train_timesteps=2, snr=lambda steps: snr[steps])


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return load_dataset(cfg.dataset_settings(cfg.compose("train", ["dataset=quickstart"])))


def run_of(*overrides: str) -> Run:
    return cfg.build_run(cfg.compose("train", list(overrides)))


def flags(command: KohyaCommand) -> list[str]:
    return shlex.split(command.text.replace("\\\n", " "))


def test_adamw_with_restarts(dataset: Dataset) -> None:
    run = run_of("recipe=guide-adamw", "train.scale_weight_norms=1", "optimizer.lr=3e-4")
    step = 4 * run.images_per_epoch(dataset)
    found = flags(kohya_command(run, dataset, model(), step))
    assert found[:3] == ["accelerate", "launch", "train_network.py"]
    wanted = [
        "--network_module=networks.lora", "--network_dim=32", "--network_alpha=16", "--network_train_unet_only",
        "--optimizer_type=AdamW", "--learning_rate=0.0003", "--lr_scheduler=cosine_with_restarts",
        "--lr_scheduler_num_cycles=3", "--scale_weight_norms=1", "--min_snr_gamma=5", "--shuffle_caption",
        "--keep_tokens=1", f"--max_train_steps={step // 4}", "--resolution=512,512",
    ]  # fmt: skip
    assert set(wanted) <= set(found)
    assert "--v_parameterization" not in found


def test_what_is_shown_beside_is_not_counted_and_is_named(dataset: Dataset) -> None:
    run = run_of("recipe=doll-preserve")
    command = kohya_command(run, dataset, model(), 3 * run.images_per_epoch(dataset))
    own = 3 * sum(run.images_by_concept(dataset))
    assert f"--max_train_steps={-(-own // run.train.batch_size)}" in flags(command)
    said = " ".join(command.notes)
    assert "train.prior_preservation_ratio" in said and "train.min_lora_multiplier" in said and "schedule.gamma" in said
    assert "d_coef=2" in flags(command)


@pytest.mark.parametrize(
    ("overrides", "wanted"),
    [
        (("recipe=guide-loha",), ["--network_module=lycoris.kohya", "algo=loha"]),
        (("recipe=guide-locon",), ["conv_dim=32", "conv_alpha=16"]),
        (("recipe=guide-dylora",), ["--network_module=networks.dylora", "unit=4"]),
        (("adapter.rank_stabilized=true", "adapter.dim=16", "adapter.alpha=2"), ["--network_alpha=8"]),
        (("recipe=guide-adamw", "optimizer=adafactor", "schedule=constant"), ["relative_step=False"]),
        (("recipe=guide-adamw", "train.loss_type=huber"), ["--loss_type=huber", "--huber_c=0.1"]),
        (("recipe=guide-adamw", "train.flip_aug=true"), ["--flip_aug"]),
        (("adapter.text_encoder=true", "optimizer.text_encoder_lr=0.5"), ["--text_encoder_lr=0.5"]),
    ],
)  # fmt: skip
def test_kinds(overrides: tuple[str, ...], wanted: list[str], dataset: Dataset) -> None:
    found = flags(kohya_command(run_of(*overrides), dataset, model(), 100))
    assert set(wanted) <= set(found)


def test_other_bases(dataset: Dataset) -> None:
    assert "sdxl_train_network.py" in kohya_command(run_of(), dataset, model("sdxl"), 100).text
    velocity = flags(kohya_command(run_of(), dataset, model(prediction="v_prediction"), 100))
    assert {"--v_parameterization", "--zero_terminal_snr"} <= set(velocity)
    assert "--zero_terminal_snr" not in flags(kohya_command(run_of(), dataset, model(), 100))
    assert "--v2" in flags(kohya_command(run_of(), dataset, model("sd2"), 100))
    assert not kohya_command(run_of(), dataset, model("flux", "flow"), 100).text


def test_no_private_path(dataset: Dataset, tmp_path: Path) -> None:
    (tmp_path / "before.safetensors").write_bytes(b"a LoRA")
    command = kohya_command(run_of(f"init_lora={tmp_path / 'before.safetensors'}"), dataset, model(), 100)
    assert "--network_weights=START.safetensors" in flags(command) and "START" in " ".join(command.notes)
    assert "before" not in command.text + " ".join(command.notes)
    assert str(dataset.root) not in command.text + " ".join(command.notes)
    assert "7_" not in command.text and "banin visik" in " ".join(command.notes)
