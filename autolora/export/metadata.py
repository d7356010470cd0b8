"""The metadata of an exported file: kohya's `ss_*` keys, ModelSpec 1.0.1, and `autolora.*` keys."""

from __future__ import annotations

import base64
import hashlib
import io
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import safetensors.torch
import torch
from PIL import Image
from torch import Tensor

from autolora.adapters.formats import is_transformer
from autolora.data.concepts import Concept, Dataset
from autolora.export.families import family_of, has_zero_terminal_snr
from autolora.models.base import BaseModel
from autolora.train.run import Run

THUMBNAIL_SIDE = 256  # pixels; ModelSpec advises no more


@dataclass(frozen=True)
class ExportFacts:
    """What the metadata and the sidecar of an exported LoRA say about it."""

    activation_text: str  # the tags that a prompt needs
    preferred_weight: float
    description: str
    step: int  # images shown up to the exported checkpoint
    notes: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)  # further `autolora.*` keys: score, study, trial ...


def build_metadata(
    run: Run, dataset: Dataset, model: BaseModel, name: str, facts: ExportFacts, created_at: datetime
) -> dict[str, str]:
    """Build all metadata but the hashes and the thumbnail. Every value is a string, as safetensors requires."""
    metadata = {
        **_training(run, dataset, name, facts, created_at),
        **_base_model(model),
        **_images(run, dataset, model),
        **_modelspec(dataset, model, name, facts, created_at),
        "autolora.recipe": run.name,
        "autolora.run": run.fingerprint(),
        "autolora.settings": json.dumps(run.settings(), ensure_ascii=False),
        "autolora.step": str(facts.step),
        "autolora.weight": f"{facts.preferred_weight:g}",
        **{f"autolora.{key}": str(value) for key, value in facts.metadata.items()},
    }
    if is_transformer(model.architecture):
        del metadata["ss_network_module"]  # no module of kohya's tools reads such a file
    return metadata


def hashes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> dict[str, str]:
    """The hashes by which programs identify a LoRA.

    `sshs_legacy_hash` is computed, as in kohya's sd-scripts, from a file with only the `ss_*` metadata, because the
    other keys may change later. `sshs_model_hash` and ModelSpec's hash are computed from the bytes after the header.
    """
    training = {key: value for key, value in metadata.items() if key.startswith("ss_")}
    content = safetensors.torch.save(dict(tensors), training)
    header = int.from_bytes(content[:8], "little")
    digest = hashlib.sha256(content[8 + header :]).hexdigest()
    legacy = hashlib.sha256(content[0x100000:0x110000]).hexdigest()[:8]
    return {"sshs_model_hash": digest, "sshs_legacy_hash": legacy, "modelspec.hash_sha256": f"0x{digest}"}


def thumbnail(preview: Image.Image) -> str:
    """Encode an image as a small JPEG data URI."""
    small = preview.convert("RGB")
    small.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=90)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def tag_frequency(concept: Concept) -> dict[str, int]:
    """Count the training captions of a concept that have each tag, the most frequent tag first."""
    counts = Counter(tag for picture in concept.pictures for tag in set(picture.tags))
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def network(run: Run) -> dict[str, Any]:
    """The module of kohya's tools that reads the file, with its dim, its alpha and its arguments (a JSON object)."""
    adapter = run.adapter
    return {
        "network_module": adapter.kohya_module,
        "network_dim": adapter.dim,
        "network_alpha": adapter.alpha_in_file(adapter.dim, adapter.alpha),
        "network_args": json.dumps(adapter.kohya_args()),
    }


def _training(run: Run, dataset: Dataset, name: str, facts: ExportFacts, created_at: datetime) -> dict[str, str]:
    """The recipe and the length of the training; kohya counts optimizer steps."""
    settings = run.train
    per_epoch, optimizer_steps = run.images_per_epoch(dataset), run.optimizer_steps(dataset)
    optimizer = ", ".join(f"{key}={value}" for key, value in run.settings()["optimizer"].items())
    values = {
        "output_name": name,
        "training_started_at": created_at.timestamp(),
        "training_finished_at": created_at.timestamp(),
        **network(run),
        "optimizer": f"{type(run.optimizer).__name__}({optimizer})",
        "learning_rate": run.optimizer.lr,
        "unet_lr": run.optimizer.lr,
        "text_encoder_lr": run.optimizer.for_text_encoder().lr if run.adapter.text_encoder else None,
        "lr_scheduler": type(run.schedule).__name__,
        "max_train_steps": optimizer_steps,
        "steps": min(optimizer_steps, -(-facts.step // settings.batch_size)),
        "num_epochs": settings.epochs,
        "epoch": -(-facts.step // per_epoch),
        "num_train_images": per_epoch,
        "num_batches_per_epoch": optimizer_steps // settings.epochs,
        "batch_size_per_device": settings.batch_size,
        "total_batch_size": settings.batch_size,
        "gradient_accumulation_steps": 1,
        "loss_type": settings.loss_type,
        "huber_c": settings.huber_delta if settings.loss_type == "huber" else None,
        "min_snr_gamma": settings.min_snr_gamma,
        "debiased_estimation": settings.debiased_estimation_loss,
        "noise_offset": settings.noise_offset or None,
        "scale_weight_norms": settings.scale_weight_norms,
        "max_grad_norm": settings.max_grad_norm or 0.0,
        "caption_dropout_rate": settings.caption_dropout_rate,
        "shuffle_caption": settings.shuffle_caption,
        "keep_tokens": settings.keep_tokens,
        "seed": settings.seed,
        "cache_latents": True,
    }
    return {f"ss_{key}": str(value) for key, value in values.items()}


def _base_model(model: BaseModel) -> dict[str, str]:
    velocity, family = model.prediction_type == "v_prediction", family_of(model)
    return {
        "ss_sd_model_name": model.name,
        "ss_base_model_version": family.version,
        "ss_mixed_precision": {torch.float16: "fp16", torch.bfloat16: "bf16"}.get(model.dtype, "no"),
        "ss_v2": str(family.v2),
        "ss_v_parameterization": str(velocity),
        "ss_zero_terminal_snr": str(has_zero_terminal_snr(model)),
        "ss_clip_skip": str(model.clip_skip),
        "autolora.base": model.name,
        "autolora.base_hash": model.base_hash,
    }


def _images(run: Run, dataset: Dataset, model: BaseModel) -> dict[str, str]:
    """Folders, tags and sizes of the training images, in the form that programs show."""
    side, concepts = model.resolution, dataset.concepts
    totals = run.images_by_concept(dataset)  # shown in an epoch
    showings = {c.name: total / len(c.pictures) for c, total in zip(concepts, totals, strict=True)}  # of each image
    repeats = {name: max(1, round(count)) for name, count in showings.items()}
    names = {concept.name: f"{repeats[concept.name]}_{concept.name}" for concept in concepts}
    folders = {names[c.name]: {"n_repeats": repeats[c.name], "img_count": len(c.pictures)} for c in concepts}
    tags = {names[concept.name]: tag_frequency(concept) for concept in run.with_captions(dataset).concepts}
    class_images = run.class_images_per_epoch(dataset)
    counts: dict[tuple[int, int], float] = {}
    for picture in dataset.pictures:
        size = picture.bucket or (side, side)
        counts[size] = counts.get(size, 0.0) + showings[picture.concept]
    buckets = {str(i): {"resolution": list(s), "count": round(count)} for i, (s, count) in enumerate(counts.items())}
    return {
        "ss_dataset_dirs": json.dumps(folders, ensure_ascii=False),
        "ss_tag_frequency": json.dumps(tags, ensure_ascii=False),
        "ss_bucket_info": json.dumps({"buckets": buckets}),
        "ss_resolution": f"({side}, {side})",
        "ss_num_reg_images": str(class_images["class images"] + class_images["regularization"]),  # in an epoch
        "ss_reg_dataset_dirs": "{}",
    }


def _modelspec(
    dataset: Dataset, model: BaseModel, name: str, facts: ExportFacts, created_at: datetime
) -> dict[str, str]:
    triggers = [dataset.trigger, *(concept.trigger for concept in dataset.concepts)]
    velocity = model.prediction_type == "v_prediction"
    values = {
        "sai_model_spec": "1.0.1",
        "architecture": f"{family_of(model).spec}/lora",
        "implementation": "diffusers",
        "title": name,
        "description": facts.description,
        "date": created_at.isoformat(timespec="seconds"),
        "resolution": f"{model.resolution}x{model.resolution}",
        **({} if model.prediction_type == "flow" else {"prediction_type": "v" if velocity else "epsilon"}),
        "trigger_phrase": facts.activation_text,
        "tags": ", ".join(dict.fromkeys([dataset.class_word, *triggers])),
        "usage_hint": f"weight {facts.preferred_weight:g}; prompt: {facts.activation_text}",
    }
    return {f"modelspec.{key}": value for key, value in values.items()}
