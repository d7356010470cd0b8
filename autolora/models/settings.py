"""The config's settings of the base model and of its renders. Nothing here imports torch."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from autolora.errors import ConfigError

DTYPE_NAMES = ("float32", "bfloat16", "float16")
QUANTIZERS = ("nf4", "int8")
PREDICTION_TYPES = ("epsilon", "v_prediction")
TIMESTEP_SAMPLINGS = ("logit_normal", "uniform")
SAMPLERS = ("ddim", "euler", "dpmpp_2m")
MAX_INFERENCE_STEPS = 500  # a scheduler cannot take more denoising steps than it has training timesteps


@dataclass(frozen=True)
class RenderSettings:
    """How evaluation prompts are rendered."""

    num_inference_steps: int = 12
    search_inference_steps: int | None = None  # fewer steps during the search; the finals use num_inference_steps
    guidance_scale: float = 4.0  # 1 renders without guidance, which takes half the time
    batch_size: int = 32
    size: int | None = None  # side of a render in pixels; null: the model's resolution
    prompt_prefix: str = ""  # text in front of every prompt, such as quality tags
    negative_prompt: str = ""
    scheduler: str = "ddim"  # one of SAMPLERS; none draws noise between steps, so a seed always gives the same image
    guidance_rescale: float = 0.0  # share of the contrast added by guidance that is removed; 0.7 for v-prediction

    def __post_init__(self) -> None:
        mistakes = []
        if not 1 <= self.num_inference_steps <= MAX_INFERENCE_STEPS:
            mistakes.append(
                f"model.render.num_inference_steps must be from 1 to {MAX_INFERENCE_STEPS}, "
                f"got {self.num_inference_steps}"
            )
        if self.search_inference_steps is not None and self.search_inference_steps < 1:
            mistakes.append(
                f"model.render.search_inference_steps must be at least 1 or null, got {self.search_inference_steps}"
            )
        if self.size is not None and self.size < 1:
            mistakes.append(f"model.render.size must be at least 1 pixel or null, got {self.size}")
        if not self.guidance_scale >= 1:
            mistakes.append(f"model.render.guidance_scale must be 1 (none) or more, got {self.guidance_scale}")
        if self.scheduler not in SAMPLERS:
            mistakes.append(f"model.render.scheduler must be one of {', '.join(SAMPLERS)}, got {self.scheduler}")
        if not 0 <= self.guidance_rescale <= 1:
            mistakes.append(f"model.render.guidance_rescale must be from 0 (none) to 1, got {self.guidance_rescale}")
        if self.batch_size < 1:
            mistakes.append(f"model.render.batch_size must be at least 1, got {self.batch_size}")
        if mistakes:
            raise ConfigError("; ".join(mistakes))

    def side(self, resolution: int) -> int:
        """Return the side of a render in pixels, which is at most the model's resolution."""
        return min(self.size or resolution, resolution)

    def prompt(self, prompt: str) -> str:
        """Return a prompt with the prefix in front of it."""
        return ", ".join(part for part in (self.prompt_prefix, prompt) if part)

    @property
    def search(self) -> RenderSettings:
        """The settings of the search, which never takes more steps than the finals."""
        return replace(
            self,
            num_inference_steps=min(self.num_inference_steps, self.search_inference_steps or self.num_inference_steps),
        )


@dataclass(frozen=True)
class ModelSettings:
    """Which base model to load, and how.

    For prior preservation the base model renders `num_class_images` images of the class word and of each of
    `class_tags` in turn.
    """

    family: str = "sd1"
    path: str = "paperdoll"  # a folder, a file or an id of the Hugging Face hub; `paperdoll` is the packaged model
    vae: str | None = None  # a folder or .safetensors file of a VAE that replaces the model's own
    clip_skip: int | None = None  # 2: the text encoder's output before its last layer, as in A1111; null: the last
    name: str | None = None  # the model's name in results; null: the folder's name
    resolution: int | None = None  # side of an image in pixels; null: the model's own
    prediction_type: str | None = None  # epsilon or v_prediction, if the model's files state it wrongly
    zero_terminal_snr: bool | None = None  # whether the last timestep is pure noise, if the files state it wrongly
    timestep_sampling: str | None = None  # flow matching: logit_normal (null) or uniform, before the shift
    timestep_shift: float | None = None  # flow matching: above 1 trains more at high noise; null: the model's own
    dtype: str = "float32"  # of the frozen weights; adapters and their optimizer stay in 32-bit floats
    quantize: str | None = None  # nf4 or int8: quantize the denoiser's linear layers; null: no quantization
    gradient_checkpointing: bool = False  # recompute layers in the backward pass: slower, but takes far less memory
    offload: bool | None = None  # move text encoders and VAE off the GPU while unused; null: on cards below 20 GiB
    num_class_images: int = 192
    class_tags: tuple[str, ...] = ()
    render: RenderSettings = field(default_factory=RenderSettings)

    def __post_init__(self) -> None:
        mistakes = []
        if self.num_class_images < 4:
            mistakes.append(f"model.num_class_images must be at least 4, got {self.num_class_images}")
        if self.clip_skip is not None and self.clip_skip < 1:
            mistakes.append(f"model.clip_skip must be at least 1 (the last layer) or null, got {self.clip_skip}")
        if self.dtype not in DTYPE_NAMES:
            mistakes.append(f"model.dtype must be one of {', '.join(DTYPE_NAMES)}, got {self.dtype}")
        for key, choices in (
            ("quantize", QUANTIZERS),
            ("prediction_type", PREDICTION_TYPES),
            ("timestep_sampling", TIMESTEP_SAMPLINGS),
        ):
            value = getattr(self, key)
            if value not in (None, *choices):
                mistakes.append(f"model.{key} must be one of {', '.join(choices)} or null, got {value}")
        if self.timestep_shift is not None and not self.timestep_shift > 0:
            mistakes.append(f"model.timestep_shift must be above 0 or null, got {self.timestep_shift}")
        if mistakes:
            raise ConfigError("; ".join(mistakes))

    def refuse(self, kind: str, *names: str) -> None:
        """Refuse settings that a kind of model does not have.

        Args:
            kind: the kind of model, for the message.
            names: the settings' names.

        Raises:
            ConfigError: one of the settings is set.
        """
        for name in names:
            if getattr(self, name) is not None:
                raise ConfigError(f"model.{name}={getattr(self, name)}: {kind} has no such setting; leave it out")
