"""What the config says about the base model and its renders. Nothing here imports torch."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from autolora.errors import ConfigError

DTYPE_NAMES = ("float32", "bfloat16", "float16")
QUANTIZERS = ("nf4", "int8")
PREDICTION_TYPES = ("epsilon", "v_prediction")
TIMESTEP_SAMPLINGS = ("logit_normal", "uniform")
SAMPLERS = ("ddim", "euler", "dpmpp_2m")
MAX_INFERENCE_STEPS = 500  # a scheduler takes no more denoising steps than it has training timesteps


@dataclass(frozen=True)
class RenderSettings:
    """How probes are rendered."""

    num_inference_steps: int = 12
    search_inference_steps: int | None = None  # fewer while a study searches; its finals and pictures take `steps`
    guidance_scale: float = 4.0  # 1 renders without guidance, at half the work
    batch_size: int = 32
    size: int | None = None  # side of a picture in pixels, in the search and the finals; null: the resolution
    prompt_prefix: str = ""  # what stands before every prompt: quality tags, as a model's users write them
    negative_prompt: str = ""
    scheduler: str = "ddim"  # or euler, dpmpp_2m: none draws noise on the way, so that a seed means one picture
    guidance_rescale: float = 0.0  # share of what guidance adds in contrast that is taken back; 0.7 for v-prediction

    def __post_init__(self) -> None:
        mistakes = []
        if not 1 <= self.num_inference_steps <= MAX_INFERENCE_STEPS:
            mistakes.append(
                f"model.render.num_inference_steps must be from 1 to {MAX_INFERENCE_STEPS}, got {self.num_inference_steps}"
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
        """A prompt as the model gets it."""
        return ", ".join(part for part in (self.prompt_prefix, prompt) if part)

    @property
    def search(self) -> RenderSettings:
        """The settings of the search, never of more steps than the real ones."""
        return replace(
            self,
            num_inference_steps=min(self.num_inference_steps, self.search_inference_steps or self.num_inference_steps),
        )


@dataclass(frozen=True)
class ModelSettings:
    """Which base model: family, folder, file or hub id (`paperdoll` is the packaged one), picture size in pixels.

    For prior preservation it draws `class_pictures` pictures of the class word; `class_tags` are what they show
    besides, in words that it knows.
    """

    family: str = "sd1"
    path: str = "paperdoll"
    vae: str | None = None  # a folder or .safetensors file of a VAE to use instead of the model's own
    clip_skip: int | None = None  # 2: the text encoder's state before its last layer, as A1111 counts; null: the last
    name: str | None = None  # how results call it; the folder's name by default
    resolution: int | None = None  # the model's own by default
    prediction_type: str | None = None  # epsilon or v_prediction, where the model's files do not say it rightly
    zero_terminal_snr: bool | None = None  # the same: whether its last timestep is pure noise
    timestep_sampling: str | None = None  # flow matching: logit_normal (null), or uniform, before the shift
    timestep_shift: float | None = None  # flow matching: above 1, more of training is at high noise; null: the model's
    dtype: str = "float32"  # of the frozen weights; adapters and their optimizer stay in 32 bit
    quantize: str | None = None  # nf4 or int8: in how many bits the linear layers of what denoises are kept; null: all
    gradient_checkpointing: bool = False  # layers are computed again on the way back: slower, in far less memory
    offload: bool | None = None  # text encoders and VAE leave the GPU while unused; null: on cards below 20 GiB
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
        if self.quantize not in (None, *QUANTIZERS):
            kinds = ", ".join(QUANTIZERS)
            mistakes.append(f"model.quantize must be one of {kinds} or null, got {self.quantize}")
        if self.prediction_type not in (None, *PREDICTION_TYPES):
            kinds = ", ".join(PREDICTION_TYPES)
            mistakes.append(f"model.prediction_type must be one of {kinds} or null, got {self.prediction_type}")
        if self.timestep_sampling not in (None, *TIMESTEP_SAMPLINGS):
            kinds = ", ".join(TIMESTEP_SAMPLINGS)
            mistakes.append(f"model.timestep_sampling must be one of {kinds} or null, got {self.timestep_sampling}")
        if self.timestep_shift is not None and not self.timestep_shift > 0:
            mistakes.append(f"model.timestep_shift must be above 0 or null, got {self.timestep_shift}")
        if mistakes:
            raise ConfigError("; ".join(mistakes))

    def refuse(self, kind: str, *names: str) -> None:
        """Refuse settings that models of a kind have no use for.

        Raises:
            ConfigError: one of them is set.
        """
        if given := next((name for name in names if getattr(self, name) is not None), None):
            raise ConfigError(f"model.{given}={getattr(self, given)}: {kind} has no such setting; leave it out")
