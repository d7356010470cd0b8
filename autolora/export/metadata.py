"""What an exported file says about itself: kohya's `ss_*` keys, ModelSpec 1.0.1, and `autolora.*` for the evidence."""

from __future__ import annotations

import base64
import dataclasses
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

from autolora.adapters.base import Adapter
from autolora.adapters.formats import is_transformer
from autolora.adapters.lora import LoRA
from autolora.adapters.peft_adapters import IA3, DoRA, LoHa, LoKr
from autolora.data.captions import split_tags
from autolora.data.concepts import Concept, Dataset
from autolora.errors import ExportError
from autolora.models.base import BaseModel
from autolora.train.run import Run

THUMBNAIL = 256  # pixels, the most that ModelSpec advises


@dataclass(frozen=True)
class Family:
    """How kohya's tools, ModelSpec and A1111 call an architecture."""

    version: str
    spec: str
    webui: str
    v2: bool = False
    kohya_script: str | None = "train_network.py"  # of sd-scripts; None: one whose arguments are not written here


FAMILIES: dict[str, Family] = {
    "sd1": Family("sd_v1", "stable-diffusion-v1", "SD1"),
    "sd1 v": Family("sd_v1_v", "stable-diffusion-v1", "SD1"),
    "sd2": Family("sd_v2", "stable-diffusion-v2-512", "SD2", v2=True),
    "sd2 v": Family("sd_v2_v", "stable-diffusion-v2-768-v", "SD2", v2=True),
    "sdxl": Family("sdxl_base_v1-0", "stable-diffusion-xl-v1-base", "SDXL", kohya_script="sdxl_train_network.py"),
    "sd3": Family("sd3", "stable-diffusion-3", "Unknown", kohya_script=None),
    "flux": Family("flux1", "flux-1", "Flux", kohya_script=None),
    "flux guidance": Family("flux1", "flux-1-dev", "Flux", kohya_script=None),
    "z_image": Family("z_image", "z-image", "Unknown", kohya_script=None),
}


@dataclass(frozen=True)
class ExportFacts:
    """What a person should know of an exported LoRA; `step` counts images shown up to the exported checkpoint."""

    activation_text: str
    preferred_weight: float
    description: str
    step: int
    notes: str = ""
    facts: Mapping[str, str] = field(default_factory=dict)  # more `autolora.*` metadata: score, study, trial ...


def family_of(model: BaseModel) -> Family:
    """The names of a model's architecture; some have others where it predicts v, or is told the guidance.

    Raises:
        ExportError: it has none yet.
    """
    architecture = model.architecture
    variant = "v" if model.prediction_type == "v_prediction" else "guidance" if model.tells_guidance else ""
    if f"{architecture} {variant}" in FAMILIES:
        return FAMILIES[f"{architecture} {variant}"]
    if architecture not in FAMILIES:
        raise ExportError(f"cannot export for architecture {architecture!r}; known: {', '.join(FAMILIES)}")
    return FAMILIES[architecture]


def ends_in_noise(model: BaseModel) -> bool:
    """Whether nothing of the picture is left at the last timestep of a schedule of noise (zero terminal SNR)."""
    last = torch.tensor([model.train_timesteps - 1])
    return model.prediction_type != "flow" and model.snr(last).item() == 0


def build_metadata(
    run: Run, dataset: Dataset, model: BaseModel, name: str, card: ExportFacts, made: datetime
) -> dict[str, str]:
    """All metadata but the hashes and the thumbnail; every value is a string, as safetensors requires."""
    found = {
        **_training(run, dataset, name, card, made),
        **_base(model),
        **_pictures(run, dataset, model),
        **_modelspec(dataset, model, name, card, made),
        "autolora.recipe": run.name,
        "autolora.run": run.fingerprint(),
        "autolora.settings": json.dumps(run.settings(), ensure_ascii=False),
        "autolora.step": str(card.step),
        "autolora.weight": f"{card.preferred_weight:g}",
        **{f"autolora.{key}": str(value) for key, value in card.facts.items()},
    }
    if is_transformer(model.architecture):
        del found["ss_network_module"]  # none of kohya's reads such a file
    return found


def hashes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> dict[str, str]:
    """The hashes that programs know a LoRA by.

    As in kohya sd-scripts, `sshs_legacy_hash` is taken over a file that has only the `ss_*` metadata, since the
    other keys may change later. `sshs_model_hash` and ModelSpec's hash are over the bytes after the header.
    """
    training = {key: value for key, value in metadata.items() if key.startswith("ss_")}
    content = safetensors.torch.save(dict(tensors), training)
    header = int.from_bytes(content[:8], "little")
    whole = hashlib.sha256(content[8 + header :]).hexdigest()
    legacy = hashlib.sha256(content[0x100000:0x110000]).hexdigest()[:8]
    return {"sshs_model_hash": whole, "sshs_legacy_hash": legacy, "modelspec.hash_sha256": f"0x{whole}"}


def thumbnail(preview: Image.Image) -> str:
    """The picture as a small JPEG data URI."""
    small = preview.convert("RGB")
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=90)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def tag_frequency(concept: Concept) -> dict[str, int]:
    """How many of a concept's training captions carry each tag, most frequent first."""
    counts = Counter(tag for picture in concept.pictures for tag in set(split_tags(picture.caption)))
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def network(run: Run) -> dict[str, Any]:
    """The module of kohya's tools that reads the file, and its arguments, all strings as these have them."""
    adapter, args = run.adapter, dict[str, str]()
    algorithms: dict[type[Any], str] = {DoRA: "lora", LoHa: "loha", LoKr: "lokr", IA3: "ia3"}
    algorithm = algorithms.get(type(adapter))
    if algorithm:
        args["algo"] = algorithm
    if isinstance(adapter, DoRA):
        args["dora_wd"] = "True"
    if isinstance(adapter, LoKr):
        args["factor"] = str(adapter.factor)
    if isinstance(adapter, LoRA) and "conv" in adapter.targets:
        dim, alpha = adapter.conv_ranks
        args["conv_dim"], args["conv_alpha"] = str(dim), f"{_alpha_in_file(adapter, dim, alpha):g}"
    return {
        "network_module": "lycoris.kohya" if algorithm else "networks.lora",
        "network_dim": adapter.dim,
        "network_alpha": _alpha_in_file(adapter, adapter.dim, adapter.alpha),
        "network_args": json.dumps(args),
    }


def _alpha_in_file(adapter: Adapter, dim: int, alpha: float) -> float:
    """What programs divide by dim: more than its own where rsLoRA divides it by the root of dim."""
    return alpha * dim**0.5 if isinstance(adapter, LoRA) and adapter.rank_stabilized else alpha


def _training(run: Run, dataset: Dataset, name: str, card: ExportFacts, made: datetime) -> dict[str, str]:
    """Recipe and length; kohya's steps are optimizer steps."""
    settings = run.train
    per_epoch, optimizer_steps = run.images_per_epoch(dataset), run.optimizer_steps(dataset)
    optimizer = ", ".join(f"{key}={value}" for key, value in dataclasses.asdict(run.optimizer).items())
    found = {
        "output_name": name,
        "training_started_at": made.timestamp(),
        "training_finished_at": made.timestamp(),
        **network(run),
        "optimizer": f"{type(run.optimizer).__name__}({optimizer})",
        "learning_rate": run.optimizer.lr,
        "unet_lr": run.optimizer.lr,
        "text_encoder_lr": run.optimizer.for_text_encoder().lr if run.adapter.text_encoder else None,
        "lr_scheduler": type(run.schedule).__name__,
        "max_train_steps": optimizer_steps,
        "steps": min(optimizer_steps, -(-card.step // settings.batch_size)),
        "num_epochs": settings.epochs,
        "epoch": -(-card.step // per_epoch),
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
        "caption_dropout_rate": settings.caption_dropout_rate,
        "shuffle_caption": settings.shuffle_caption,
        "keep_tokens": settings.keep_tokens,
        "seed": settings.seed,
        "cache_latents": True,
    }
    return {f"ss_{key}": str(value) for key, value in found.items()}


def _base(model: BaseModel) -> dict[str, str]:
    velocity, family = model.prediction_type == "v_prediction", family_of(model)
    return {
        "ss_sd_model_name": model.name,
        "ss_base_model_version": family.version,
        "ss_mixed_precision": {torch.float16: "fp16", torch.bfloat16: "bf16"}.get(model.dtype, "no"),
        "ss_v2": str(family.v2),
        "ss_v_parameterization": str(velocity),
        "ss_zero_terminal_snr": str(ends_in_noise(model)),
        "ss_clip_skip": str(model.clip_skip),
        "autolora.base": model.name,
        "autolora.base_hash": model.base_hash,
    }


def _pictures(run: Run, dataset: Dataset, model: BaseModel) -> dict[str, str]:
    """Folders, tags and sizes, as the programs that show a LoRA's tags expect them."""
    side, concepts = model.resolution, dataset.concepts
    shown = {c.name: steps / len(c.pictures) for c, steps in zip(concepts, run.images_by_concept(dataset), strict=True)}
    repeats = {name: max(1, round(each)) for name, each in shown.items()}
    names = {concept.name: f"{repeats[concept.name]}_{concept.name}" for concept in concepts}
    folders = {names[c.name]: {"n_repeats": repeats[c.name], "img_count": len(c.pictures)} for c in concepts}
    tags = {names[concept.name]: tag_frequency(concept) for concept in run.with_captions(dataset).concepts}
    beside = run.class_images_per_epoch(dataset)
    counts: dict[tuple[int, int], float] = {}
    for picture in dataset.pictures:
        frame = picture.frame or (side, side)
        counts[frame] = counts.get(frame, 0.0) + shown[picture.concept]
    buckets = {str(i): {"resolution": list(f), "count": round(count)} for i, (f, count) in enumerate(counts.items())}
    return {
        "ss_dataset_dirs": json.dumps(folders, ensure_ascii=False),
        "ss_tag_frequency": json.dumps(tags, ensure_ascii=False),
        "ss_bucket_info": json.dumps({"buckets": buckets}),
        "ss_resolution": f"({side}, {side})",
        "ss_num_reg_images": str(beside["class pictures"] + beside["regularization"]),  # an epoch, as num_train_images
        "ss_reg_dataset_dirs": "{}",
    }


def _modelspec(dataset: Dataset, model: BaseModel, name: str, card: ExportFacts, made: datetime) -> dict[str, str]:
    triggers = [dataset.trigger, *(concept.trigger for concept in dataset.concepts)]
    velocity = model.prediction_type == "v_prediction"
    found = {
        "sai_model_spec": "1.0.1",
        "architecture": f"{family_of(model).spec}/lora",
        "implementation": "diffusers",
        "title": name,
        "description": card.description,
        "date": made.isoformat(timespec="seconds"),
        "resolution": f"{model.resolution}x{model.resolution}",
        **({} if model.prediction_type == "flow" else {"prediction_type": "v" if velocity else "epsilon"}),
        "trigger_phrase": card.activation_text,
        "tags": ", ".join(dict.fromkeys([dataset.class_word, *triggers])),
        "usage_hint": f"weight {card.preferred_weight:g}; prompt: {card.activation_text}",
    }
    return {f"modelspec.{key}": value for key, value in found.items()}
