"""Config keys that had another name before: an old name is refused with its new one."""

from __future__ import annotations

from autolora.errors import ConfigError

RENAMED_KEYS = {
    "train.steps_per_concept": "train.images_per_concept",
    "train.steps_of": "train.concept_images",
    "train.steps_main": "train.min_character_images",
    "train.max_norm": "train.scale_weight_norms",
    "train.loss": "train.loss_type",
    "train.debiased": "train.debiased_estimation_loss",
    "train.preserve_share": "train.prior_preservation_ratio",
    "train.regularization_share": "train.reg_ratio",
    "train.class_pictures": "train.num_class_images",
    "train.min_weight": "train.min_lora_multiplier",
    "train.caption_dropout": "train.caption_dropout_rate",
    "train.preserve_dropout": "train.class_caption_dropout_rate",
    "train.shuffle_tags": "train.shuffle_caption",
    "train.tag_dropout": "train.caption_tag_dropout_rate",
    "train.keep_tags": "train.keep_tokens",
    "train.flip": "train.flip_aug",
    "captions.prune": "captions.absorb_tags",
    "captions.prune_share": "captions.absorb_min_share",
    "captions.decouple_share": "captions.trigger_swap_rate",
    "captions.describe": "captions.swap_tags",
    "captions.drop": "captions.drop_tags",
    "dataset.held_out_share": "dataset.validation_split",
    "dataset.held_out_min": "dataset.min_validation_images",
    "dataset.upscale": "dataset.bucket_upscale",
    "dataset.regularization": "dataset.reg_data_dir",
    "dataset.buckets.step": "dataset.buckets.bucket_reso_steps",
    "dataset.buckets.min_side": "dataset.buckets.min_bucket_reso",
    "dataset.buckets.max_side": "dataset.buckets.max_bucket_reso",
    "model.class_pictures": "model.num_class_images",
    "model.render.steps": "model.render.num_inference_steps",
    "model.render.search_steps": "model.render.search_inference_steps",
    "model.render.guidance": "model.render.guidance_scale",
    "model.render.sampler": "model.render.scheduler",
    "model.render.negative": "model.render.negative_prompt",
    "model.render.prefix": "model.render.prompt_prefix",
    "scoring.bleed_limit": "scoring.max_bleed",
    "scoring.cross_limit": "scoring.max_concept_mixing",
    "scoring.memorisation_limit": "scoring.max_memorization",
    "scoring.burn_limit": "scoring.max_oversaturation",
    "scoring.editability_limit": "scoring.min_editability",
    "scoring.fidelity_limit": "scoring.min_fidelity",
    "scoring.spread_limits": "scoring.diversity_range",
    "scoring.contrast": "scoring.num_negative_renders",
    "scoring.class_alone": "scoring.num_class_renders",
    "scoring.contexts": "scoring.trigger_prompts",
    "scoring.overrides": "scoring.outfit_prompts",
    "scoring.class_contexts": "scoring.class_prompts",
    "scoring.extra_bleed": "scoring.bleed_prompts",
    "scoring.styles": "scoring.style_prompts",
    "scoring.people": "scoring.person_prompts",
    "scoring.unrelated": "scoring.unrelated_prompts",
    "scoring.first_seed": "scoring.seed",
    "scoring.bootstrap": "scoring.n_bootstrap",
    "scoring.trigger_seeds": "scoring.seeds_per_trigger_prompt",
    "scoring.class_seeds": "scoring.seeds_per_class_prompt",
    "study.pack": "study.trials_per_device",
    "study.startup_trials": "study.n_startup_trials",
    "study.finalists": "study.n_finalists",
    "study.retrain_seeds": "study.final_seeds",
    "study.average": "study.average_checkpoints",
    "study.rescale": "study.try_lora_scales",
    "study.heartbeat_seconds": "study.heartbeat_interval",
    "study.grace_seconds": "study.grace_period",
    "budget.trials": "budget.n_trials",
    "budget.steps": "budget.max_images",
    "budget.stagnation": "budget.max_stale_trials",
    "init": "init_lora",
    "audit": "probe_triggers",
    "as_recipe": "save_recipe",
    "preference": "human_preference",
    "artifacts": "artifact_store",
    "study.trials": "budget.n_trials",
    "study.minutes": "budget.minutes",
    "study.steps": "budget.max_images",
    "study.stagnation": "budget.max_stale_trials",
    "verify": "`autolora verify FILE`",
    "resize": "`autolora resize FILE`",
}


def refuse_renamed(key: str) -> None:
    """Refuse a key under its old name; keys below a renamed one are refused too.

    Raises:
        ConfigError: the key has another name now.
    """
    parts = key.lstrip("+~").split(".")
    for length in range(len(parts), 0, -1):
        old = ".".join(parts[:length])
        if old in RENAMED_KEYS:
            raise ConfigError(f"{old} is called {RENAMED_KEYS[old]} now")
