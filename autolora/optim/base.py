"""What every optimizer of `optimizers.py` has, and how it imports a library that not everybody needs."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from autolora.errors import ConfigError

if TYPE_CHECKING:
    import torch
    from torch import nn

    Params = Sequence[nn.Parameter]

T = TypeVar("T", bound="OptimizerSpec")


class Optimizer:
    """What every optimizer has."""

    kohya_name: ClassVar[str | None] = None  # its name in kohya's sd-scripts; None: the class's own name
    replaces_schedule: ClassVar[bool] = False  # whether it averages weights instead of following a schedule
    state_bytes: ClassVar[float | None] = None  # memory per parameter; None: measured by a step on the CPU
    lr: float
    weight_decay: float

    def build(self, params: Params) -> torch.optim.Optimizer:
        """Build the optimizer of one slot's parameters.

        Raises:
            ConfigError: a library is missing, or the optimizer does not run on the parameters' device.
        """
        raise NotImplementedError

    def for_text_encoder(self) -> Optimizer:
        """Return the settings for the text encoder's parameters."""
        return self

    def kohya_args(self) -> tuple[str, ...]:
        """Return the values of sd-scripts' `--optimizer_args`."""
        betas = [getattr(self, name) for name in ("beta1", "beta2", "beta3") if hasattr(self, name)]
        listed = ",".join(f"{beta:g}" for beta in betas)
        return (f"weight_decay={self.weight_decay:g}", *([f"betas={listed}"] if betas else []))

    def check(self, device: torch.device) -> None:
        """Refuse an optimizer that cannot be built on a device, before anything trains.

        Raises:
            ConfigError: as `build`.
        """
        import torch

        self.build([torch.nn.Parameter(torch.zeros(1, device=device))])


@dataclass(frozen=True)
class OptimizerSpec(Optimizer):
    """The settings of optimizers whose learning rate the user chooses."""

    lr: float = 1e-4
    text_encoder_lr: float | None = None  # where the text encoder is adapted too; None: `lr`
    weight_decay: float = 0.01

    def __post_init__(self) -> None:
        for name in ("lr", "text_encoder_lr"):
            rate = getattr(self, name)
            if rate is not None and not 0 < rate < 1:
                raise ConfigError(f"optimizer.{name} must be above 0 and below 1, got {rate}")

    def for_text_encoder(self: T) -> T:
        """Return the same settings with the text encoder's learning rate."""
        return replace(self, lr=self.text_encoder_lr or self.lr)


def optional(module: str, extra: str, what: str) -> Any:
    """Import an optional library.

    Args:
        module: its name.
        extra: the extra of autolora that installs it.
        what: what needs it, for the message.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(f"{what} needs {module}: pip install 'autolora[{extra}]'") from error


def of_pytorch_optimizer(name: str, params: Params, **settings: Any) -> torch.optim.Optimizer:
    """Build an optimizer of the library pytorch_optimizer.

    Raises:
        ConfigError: pytorch_optimizer is not installed.
    """
    library = optional("pytorch_optimizer", "optimizers", name)
    optimizer: torch.optim.Optimizer = getattr(library, name)(params, **settings)
    return optimizer
