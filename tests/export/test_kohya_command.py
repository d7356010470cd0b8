"""The command for sd-scripts has the settings of the run, and its notes name what sd-scripts cannot do."""

from __future__ import annotations

import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from autolora.config import compose
from autolora.data.concepts import Dataset, load_dataset
from autolora.export.kohya_command import KohyaCommand, kohya_command
from autolora.settings import build_run, build_settings
from autolora.train.run import Run


def model(architecture: str = "sd1", prediction: str = "epsilon") -> Any:
    settings = {"architecture": architecture, "prediction_type": prediction, "resolution": 512, "clip_skip": None}
    snr = torch.tensor([9.0, 0.0] if prediction == "v_prediction" else [9.0, 0.1])
    return SimpleNamespace(**settings, guidance_embeds=False, train_timesteps=2, snr=lambda steps: snr[steps])


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return load_dataset(build_settings(compose("train", ["dataset=quickstart"])).dataset)


def run_of(*overrides: str) -> Run:
    return build_run(compose("train", list(overrides)))


def flags(command: KohyaCommand) -> list[str]:
    return shlex.split(command.text.replace("\\\n", " "))


def test_adamw_with_restarts(dataset: Dataset) -> None:
    run = run_of("recipe=guide-adamw", "train.scale_weight_norms=1", "optimizer.lr=3e-4")
    step = 4 * run.images_per_epoch(dataset)
    arguments = flags(kohya_command(run, dataset, model(), step))
    assert arguments[:3] == ["accelerate", "launch", "train_network.py"]
    expected = [
        "--network_module=networks.lora", "--network_dim=32", "--network_alpha=16", "--network_train_unet_only",
        "--optimizer_type=AdamW", "--learning_rate=0.0003", "--lr_scheduler=cosine_with_restarts",
        "--lr_scheduler_num_cycles=3", "--scale_weight_norms=1", "--min_snr_gamma=5", "--shuffle_caption",
        "--keep_tokens=1", f"--max_train_steps={step // 4}", "--resolution=512,512",
    ]  # fmt: skip
    assert set(expected) <= set(arguments)
    assert "--v_parameterization" not in arguments


def test_class_images_are_not_counted_and_are_named(dataset: Dataset) -> None:
    run = run_of("recipe=doll-preserve")
    command = kohya_command(run, dataset, model(), 3 * run.images_per_epoch(dataset))
    shown = 3 * sum(run.images_by_concept(dataset))
    assert f"--max_train_steps={-(-shown // run.train.batch_size)}" in flags(command)
    notes = " ".join(command.notes)
    assert all(key in notes for key in ("prior_preservation_ratio", "train.min_lora_multiplier", "schedule.gamma"))
    assert "d_coef=2" in flags(command)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (("recipe=guide-loha",), ["--network_module=lycoris.kohya", "algo=loha", "preset=attn-mlp"]),
        (("recipe=guide-lokr",), ["algo=lokr", "preset=attn-mlp"]),
        (("adapter=dora",), ["algo=lora", "dora_wd=True", "preset=attn-mlp"]),
        (("recipe=guide-ia3",), ["algo=ia3", "preset=ia3"]),
        (("recipe=guide-locon",), ["conv_dim=32", "conv_alpha=16"]),
        (("recipe=guide-dylora",), ["--network_module=networks.dylora", "unit=4"]),
        (("adapter.rank_stabilized=true", "adapter.dim=16", "adapter.alpha=2"), ["--network_alpha=8"]),
        (("recipe=guide-adamw", "optimizer=adafactor", "schedule=constant"), ["relative_step=False"]),
        (("recipe=guide-adamw", "train.loss_type=huber"), ["--loss_type=huber", "--huber_c=0.1"]),
        (("recipe=guide-adamw", "train.flip_aug=true"), ["--flip_aug"]),
        (("adapter.text_encoder=true", "optimizer.text_encoder_lr=0.5"), ["--text_encoder_lr=0.5"]),
    ],
)  # fmt: skip
def test_adapter_optimizer_and_schedule_kinds(
    overrides: tuple[str, ...], expected: list[str], dataset: Dataset
) -> None:
    arguments = flags(kohya_command(run_of(*overrides), dataset, model(), 100))
    assert set(expected) <= set(arguments)


def test_a_preset_is_for_training_without_convolutions(dataset: Dataset) -> None:
    """With convolutions LyCORIS' default comes nearest; the metadata of a file hold what loads it, without a preset."""
    conv = run_of("recipe=guide-loha", "adapter.targets=[attention,conv]")
    assert not [flag for flag in flags(kohya_command(conv, dataset, model(), 100)) if flag.startswith("preset")]
    assert "preset" not in conv.adapter.kohya_args() | run_of("recipe=guide-loha").adapter.kohya_args()


def test_ia3_is_said_to_fail_in_lycoris(dataset: Dataset) -> None:
    notes = " ".join(kohya_command(run_of("recipe=guide-ia3"), dataset, model(), 100).notes)
    assert "cannot train IA3" in notes


def test_other_base_models(dataset: Dataset) -> None:
    assert "sdxl_train_network.py" in kohya_command(run_of(), dataset, model("sdxl"), 100).text
    velocity = flags(kohya_command(run_of(), dataset, model(prediction="v_prediction"), 100))
    assert {"--v_parameterization", "--zero_terminal_snr"} <= set(velocity)
    assert "--zero_terminal_snr" not in flags(kohya_command(run_of(), dataset, model(), 100))
    assert "--v2" in flags(kohya_command(run_of(), dataset, model("sd2"), 100))
    assert not kohya_command(run_of(), dataset, model("flux", "flow"), 100).text


def test_the_command_holds_no_private_path(dataset: Dataset, tmp_path: Path) -> None:
    (tmp_path / "before.safetensors").write_bytes(b"a LoRA")
    command = kohya_command(run_of(f"init_lora={tmp_path / 'before.safetensors'}"), dataset, model(), 100)
    assert "--network_weights=START.safetensors" in flags(command) and "START" in " ".join(command.notes)
    assert "before" not in command.text + " ".join(command.notes)
    assert str(dataset.root) not in command.text + " ".join(command.notes)
    assert "7_" not in command.text and "banin visik" in " ".join(command.notes)
