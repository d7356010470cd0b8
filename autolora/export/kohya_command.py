"""The command that trains nearest to a run with kohya's sd-scripts, and what that cannot do."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass

from autolora.adapters.lora import DyLoRA
from autolora.data.concepts import Dataset
from autolora.export.metadata import ends_in_noise, family_of, network
from autolora.models.base import BaseModel
from autolora.optim.optimizers import CAME, Adafactor, AdamW, Lion, OptimizerSpec, Prodigy, ScheduleFree
from autolora.optim.schedules import AnnealedCosine, Constant, Cosine, CosineRestarts, Linear
from autolora.train.run import Run

OPTIMIZERS = {ScheduleFree: "AdamWScheduleFree", CAME: "pytorch_optimizer.CAME"}  # the others are called as here
SCHEDULES = {
    Constant: "constant",
    Linear: "linear",
    Cosine: "cosine",
    CosineRestarts: "cosine_with_restarts",
    AnnealedCosine: "cosine_with_restarts",
}


@dataclass(frozen=True)
class KohyaCommand:
    """A command line over several lines, and how its training differs, a sentence each."""

    text: str
    notes: tuple[str, ...]


def kohya_command(run: Run, dataset: Dataset, model: BaseModel, step: int) -> KohyaCommand:
    """The arguments of sd-scripts' `train_network.py` (its documented names) for a run up to a step; none for others.

    Args:
        run: the recipe.
        dataset: what it trains on; paths are left to be filled in.
        model: the base.
        step: images shown up to the checkpoint, those beside the dataset's own included; there a step is a batch.
    """
    family = family_of(model)
    if family.kohya_script is None:
        return KohyaCommand("", ("sd-scripts trains this family by scripts and arguments that are not written here.",))
    own = round(step * sum(run.images_by_concept(dataset)) / run.images_per_epoch(dataset))
    batches = -(-own // run.train.batch_size)
    total = -(-sum(run.images_by_concept(dataset)) * run.train.epochs // run.train.batch_size)
    side = model.resolution
    flags = [
        "--pretrained_model_name_or_path=BASE.safetensors",
        "--train_data_dir=PICTURES",
        *(["--reg_data_dir=CLASS_PICTURES"] if run.train.reg_ratio else []),
        "--caption_extension=.txt",
        "--output_dir=out",
        f"--output_name={dataset.trigger}",
        "--save_model_as=safetensors",
        f"--resolution={side},{side}",
        *(["--enable_bucket"] if any(picture.frame for picture in dataset.pictures) else []),
        *(["--v2"] if family.v2 else []),
        *([f"--clip_skip={model.clip_skip}"] if model.clip_skip else []),
        *(["--v_parameterization"] if model.prediction_type == "v_prediction" else []),
        *(["--zero_terminal_snr"] if ends_in_noise(model) else []),
        *_network(run),
        *_optimizer(run),
        *_schedule(run, total),
        *_training(run),
        f"--max_train_steps={batches}",
    ]
    lines = [f"accelerate launch {family.kohya_script}"]
    for flag in flags:
        if flag.startswith("--"):
            lines.append(shlex.quote(flag))
        else:
            lines[-1] += f" {shlex.quote(flag)}"
    return KohyaCommand(" \\\n  ".join(lines), tuple(_differences(run, dataset, batches, total)))


def _network(run: Run) -> list[str]:
    found, adapter = network(run), run.adapter
    args = [f"{key}={value}" for key, value in json.loads(found["network_args"]).items()]
    args += [f"unit={adapter.unit}"] if isinstance(adapter, DyLoRA) else []
    return [
        f"--network_module={'networks.dylora' if isinstance(adapter, DyLoRA) else found['network_module']}",
        f"--network_dim={found['network_dim']}",
        f"--network_alpha={found['network_alpha']:g}",
        *(["--network_args", *args] if args else []),
        *([] if adapter.text_encoder else ["--network_train_unet_only"]),
        *(["--network_weights=START.safetensors"] if run.init_lora else []),
    ]


def _optimizer(run: Run) -> list[str]:
    optimizer = run.optimizer
    kind = type(optimizer)
    args = [f"weight_decay={optimizer.weight_decay:g}"]
    if isinstance(optimizer, Adafactor):
        args += ["scale_parameter=False", "relative_step=False", "warmup_init=False"]
    elif isinstance(optimizer, CAME):
        args.append(f"betas={optimizer.beta1:g},{optimizer.beta2:g},{optimizer.beta3:g}")
    elif isinstance(optimizer, AdamW | Lion | ScheduleFree | Prodigy):
        args.append(f"betas={optimizer.beta1:g},{optimizer.beta2:g}")
    if isinstance(optimizer, Prodigy):
        args += [f"d_coef={optimizer.d_coef:g}", f"d0={optimizer.d0:g}", "safeguard_warmup=True"]
        args.append("use_bias_correction=True")
    found = [f"--optimizer_type={OPTIMIZERS.get(kind, kind.__name__)}", "--optimizer_args", *args]
    found.append(f"--learning_rate={optimizer.lr:g}")
    if run.adapter.text_encoder and isinstance(optimizer, OptimizerSpec) and optimizer.text_encoder_lr:
        found.append(f"--text_encoder_lr={optimizer.text_encoder_lr:g}")
    return found


def _schedule(run: Run, total: int) -> list[str]:
    if isinstance(run.optimizer, ScheduleFree):
        return []
    schedule = run.schedule
    found = [f"--lr_scheduler={SCHEDULES[type(schedule)]}"]
    if isinstance(schedule, CosineRestarts | AnnealedCosine):
        found.append(f"--lr_scheduler_num_cycles={schedule.cycles}")
    warmup = getattr(schedule, "warmup", 0.0) / getattr(schedule, "cycles", 1)
    return [*found, f"--lr_warmup_steps={round(warmup * total)}"] if warmup else found


def _training(run: Run) -> list[str]:
    settings = run.train
    given = {
        "train_batch_size": settings.batch_size,
        "min_snr_gamma": settings.min_snr_gamma,
        "noise_offset": settings.noise_offset or None,
        "scale_weight_norms": settings.scale_weight_norms,
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
    values = [f"--{key}={value:g}" if isinstance(value, float) else f"--{key}={value}" for key, value in given.items()
              if value is not None]  # fmt: skip
    return values + [f"--{key}" for key, on in switches.items() if on]


def _differences(run: Run, dataset: Dataset, batches: int, total: int) -> list[str]:
    """What has to be done by hand, and what sd-scripts has no argument for."""
    settings = run.train
    steps = zip(dataset.concepts, run.images_by_concept(dataset), strict=True)
    folders = ", ".join(f"{max(1, round(count / len(c.pictures)))}_{c.name}" for c, count in steps)
    notes = [f"PICTURES holds the folders {folders}: the number is how often an epoch shows each picture."]
    if batches < total:
        notes.append(
            f"It stops after {batches} of {total} optimizer steps, where this checkpoint is; the schedule there spans "
            "what is asked for, so set --max_train_steps to the whole and save on the way to have the same rates."
        )
    missing = {
        "preserving the base model (train.prior_preservation_ratio)": settings.prior_preservation_ratio,
        "training at lower LoRA weights (train.min_lora_multiplier)": settings.min_lora_multiplier < 1,
        "peaks that fall from cycle to cycle (schedule.gamma)": isinstance(run.schedule, AnnealedCosine),
        "masks with a remainder (train.unmasked_weight)": any(picture.mask for picture in dataset.pictures),
        "editing captions while they are read (captions.*; `autolora captions out=FOLDER` writes them)": (
            run.captions.absorb_tags != "none" or run.captions.drop_tags or run.captions.trigger_swap_rate
        ),
    }
    if found := [name for name, used in missing.items() if used]:
        notes.append(f"sd-scripts has no argument for {'; '.join(found)}: the result will differ.")
    if isinstance(run.adapter, DyLoRA):
        notes.append("Its DyLoRA runs every rank at each step, here the ranks above the drawn one are left out.")
    if run.init_lora:
        notes.append("START.safetensors is the LoRA that training starts from (init).")
    if settings.reg_ratio:
        notes.append("CLASS_PICTURES are shown once for each picture of yours there, whatever their share is here.")
    return notes
