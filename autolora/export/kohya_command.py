"""The command of kohya's sd-scripts that comes closest to a run, and how its training differs."""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from autolora.data.concepts import Dataset
from autolora.export.families import family_of, has_zero_terminal_snr
from autolora.export.metadata import network
from autolora.models.base import BaseModel
from autolora.train.run import Run


@dataclass(frozen=True)
class KohyaCommand:
    """A command, broken into several lines, and one sentence for each way in which its training differs."""

    text: str  # empty for a family that is not supported here
    notes: tuple[str, ...]


def kohya_command(run: Run, dataset: Dataset, model: BaseModel, step: int) -> KohyaCommand:
    """Translate a run up to a checkpoint into a command for sd-scripts.

    It uses the documented arguments of `train_network.py`, and is empty for a family that is
    trained by another script.

    Args:
        run: the recipe.
        dataset: the training images; the command has placeholders instead of paths.
        model: the base model.
        step: images shown up to the checkpoint, class images included; sd-scripts counts batches.
    """
    family = family_of(model)
    if family.kohya_script is None:
        return KohyaCommand(
            "", ("sd-scripts trains this family by scripts and arguments that are not supported here.",)
        )
    shown = sum(run.images_by_concept(dataset))  # images of the dataset in an epoch
    batches = -(-round(step * shown / run.images_per_epoch(dataset)) // run.train.batch_size)
    total_batches = -(-shown * run.train.epochs // run.train.batch_size)
    side = model.resolution
    flags = [
        "--pretrained_model_name_or_path=BASE.safetensors",
        "--train_data_dir=IMAGES",
        *(["--reg_data_dir=CLASS_IMAGES"] if run.train.reg_ratio else []),
        "--caption_extension=.txt",
        "--output_dir=out",
        f"--output_name={dataset.trigger}",
        "--save_model_as=safetensors",
        f"--resolution={side},{side}",
        *(["--enable_bucket"] if any(picture.bucket for picture in dataset.pictures) else []),
        *(["--v2"] if family.v2 else []),
        *([f"--clip_skip={model.clip_skip}"] if model.clip_skip else []),
        *(["--v_parameterization"] if model.prediction_type == "v_prediction" else []),
        *(["--zero_terminal_snr"] if has_zero_terminal_snr(model) else []),
        *_network(run),
        *_optimizer(run),
        *_schedule(run, total_batches),
        *_training(run),
        f"--max_train_steps={batches}",
    ]
    lines = [f"accelerate launch {family.kohya_script}"]
    for flag in flags:
        if flag.startswith("--"):
            lines.append(shlex.quote(flag))
        else:
            lines[-1] += f" {shlex.quote(flag)}"
    return KohyaCommand(" \\\n  ".join(lines), tuple(_differences(run, dataset, batches, total_batches)))


def _network(run: Run) -> list[str]:
    settings, adapter = network(run), run.adapter
    args = [f"{key}={value}" for key, value in adapter.kohya_args(training=True).items()]
    return [
        f"--network_module={adapter.kohya_trainer or adapter.kohya_module}",
        f"--network_dim={settings['network_dim']}",
        f"--network_alpha={settings['network_alpha']:g}",
        *(["--network_args", *args] if args else []),
        *([] if adapter.text_encoder else ["--network_train_unet_only"]),
        *(["--network_weights=START.safetensors"] if run.init_lora else []),
    ]


def _optimizer(run: Run) -> list[str]:
    optimizer = run.optimizer
    flags = [f"--optimizer_type={optimizer.kohya_name or type(optimizer).__name__}"]
    flags += ["--optimizer_args", *optimizer.kohya_args(), f"--learning_rate={optimizer.lr:g}"]
    text_encoder_lr = getattr(optimizer, "text_encoder_lr", None)
    if run.adapter.text_encoder and text_encoder_lr:
        flags.append(f"--text_encoder_lr={text_encoder_lr:g}")
    return flags


def _schedule(run: Run, total_batches: int) -> list[str]:
    if run.optimizer.replaces_schedule or run.schedule.kohya_name is None:
        return []
    schedule = run.schedule
    flags = [f"--lr_scheduler={schedule.kohya_name}"]
    cycles = getattr(schedule, "cycles", None)
    if cycles is not None:
        flags.append(f"--lr_scheduler_num_cycles={cycles}")
    warmup = getattr(schedule, "warmup", 0.0) / (cycles or 1)
    return [*flags, f"--lr_warmup_steps={round(warmup * total_batches)}"] if warmup else flags


def _training(run: Run) -> list[str]:
    settings = run.train
    arguments = {
        "train_batch_size": settings.batch_size,
        "min_snr_gamma": settings.min_snr_gamma,
        "noise_offset": settings.noise_offset or None,
        "scale_weight_norms": settings.scale_weight_norms,
        "max_grad_norm": settings.max_grad_norm or 0.0,
        "caption_dropout_rate": settings.caption_dropout_rate or None,
        "caption_tag_dropout_rate": settings.caption_tag_dropout_rate or None,
        "keep_tokens": settings.keep_tokens if settings.shuffle_caption else None,
        "loss_type": "huber" if settings.loss_type == "huber" else None,
        "huber_c": settings.huber_delta if settings.loss_type == "huber" else None,
        "huber_schedule": "constant" if settings.loss_type == "huber" else None,
        "seed": settings.seed,
    }
    switches = {
        "debiased_estimation_loss": settings.debiased_estimation_loss,
        "shuffle_caption": settings.shuffle_caption,
        "flip_aug": settings.flip_aug,
        "cache_latents": not settings.flip_aug,
    }
    flags = [
        f"--{key}={value:g}" if isinstance(value, float) else f"--{key}={value}"
        for key, value in arguments.items()
        if value is not None
    ]
    return flags + [f"--{key}" for key, on in switches.items() if on]


def _differences(run: Run, dataset: Dataset, batches: int, total_batches: int) -> list[str]:
    """What a user has to do by hand, and what sd-scripts has no argument for."""
    settings = run.train
    totals = zip(dataset.concepts, run.images_by_concept(dataset), strict=True)
    folders = ", ".join(f"{max(1, round(total / len(c.pictures)))}_{c.name}" for c, total in totals)
    notes = [f"IMAGES holds the folders {folders}: the number is how often an epoch shows each image."]
    if batches < total_batches:
        notes.append(
            f"The command stops after {batches} of {total_batches} optimizer steps, where this checkpoint is. The "
            "schedule there spans --max_train_steps: for the same learning rates set it to "
            f"{total_batches} and save in between."
        )
    unsupported = {
        "preserving the base model (train.prior_preservation_ratio)": settings.prior_preservation_ratio,
        "training at lower LoRA weights (train.min_lora_multiplier)": settings.min_lora_multiplier < 1,
        "peaks that fall from cycle to cycle (schedule.gamma)": hasattr(run.schedule, "gamma"),
        f"this schedule ({type(run.schedule).__name__})": run.schedule.kohya_name is None,
        "a loss weight outside masks (train.unmasked_weight)": any(picture.mask for picture in dataset.pictures),
        "editing captions while they are read (captions.*; `autolora captions out=FOLDER` writes them)": (
            run.captions.absorb_tags != "none" or run.captions.drop_tags or run.captions.trigger_swap_rate
        ),
    }
    if used := [name for name, is_used in unsupported.items() if is_used]:
        notes.append(f"sd-scripts has no argument for {'; '.join(used)}: the result will differ.")
    if run.adapter.kohya_note:
        notes.append(run.adapter.kohya_note)
    if run.init_lora:
        notes.append("START.safetensors is the LoRA that training starts from (init_lora).")
    if settings.reg_ratio:
        notes.append("sd-scripts shows one of CLASS_IMAGES for each of your images, whatever train.reg_ratio is.")
    return notes
