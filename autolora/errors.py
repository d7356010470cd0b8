"""The errors a user can cause or meet; `cli.py` prints each as one line and exits with its code."""

from __future__ import annotations


def printable(text: object) -> str:
    """Text that somebody else may have written, without characters that would control the terminal."""
    return "".join(c if c.isprintable() or c in "\n\t" else f"\\x{ord(c):02x}" for c in str(text))


class AutoloraError(Exception):
    """The root of every error that a user is told about without a traceback."""

    exit_code = 1


class ConfigError(AutoloraError):
    """A configuration that cannot be used: misspelt key, wrong type, impossible range."""

    exit_code = 2


class DatasetError(AutoloraError):
    """A folder of pictures that cannot be trained on as it is."""

    exit_code = 3


class ModelError(AutoloraError):
    """A base model folder that is missing, of another kind, or broken."""

    exit_code = 4


class StudyError(AutoloraError):
    """A study that cannot start or continue."""

    exit_code = 5


class BrokenFile(StudyError):
    """A file of a trial that is missing or cannot be read; what else the study holds is whole."""


class Unmeasurable(StudyError):
    """Pictures that the scoring encoder cannot tell from the base model's, so that no score would mean anything."""


class ExportError(AutoloraError):
    """A LoRA file that cannot be read, written or verified."""

    exit_code = 6


class StorageError(AutoloraError):
    """A disk that is full or a folder that cannot be written."""

    exit_code = 7


def memory_full(error: Exception) -> str:
    """Why a GPU's memory was too small, and what to set, in one line."""
    if isinstance(error, MemoryFull):
        return str(error)
    reason = (str(error).strip() or "out of memory").splitlines()[0].split(". GPU ")[0].rstrip(".")
    return (
        f"the GPU's memory is full ({reason}): set model.gradient_checkpointing=true, model.offload=true, a smaller "
        "train.batch_size, model.resolution or adapter.dim; `autolora check` tells what each recipe takes"
    )


class MemoryFull(AutoloraError):
    """A GPU whose memory is too small for what was asked."""

    exit_code = 9


UNMEASURED_EXIT_CODE = 8  # done, but chosen by validation loss alone
