"""Makes a LoRA file smaller as long as its score holds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from autolora.adapters.read import read_lora
from autolora.errors import ConfigError, Unmeasurable
from autolora.evaluation.session import Session, final_scorer
from autolora.export.resize import Resizer, write_resized
from autolora.export.verify import verify_deltas
from autolora.export.write import DTYPES
from autolora.files import atomic_files
from autolora.progress import Bars
from autolora.scoring.intervals import Estimate
from autolora.scoring.scorer import Scorer


@dataclass(frozen=True)
class ResizedFile:
    """A file of one rank with its score."""

    dim: int | None  # None: the original file
    path: Path
    score: Estimate
    broken: list[str]  # the limits that it breaks
    keeps_score: bool  # its score is within the original's interval, and it breaks no further limit

    @property
    def megabytes(self) -> float:
        """The size of the file."""
        return self.path.stat().st_size / 1e6

    @property
    def score_text(self) -> str:
        """The score with its interval."""
        return f"{self.score.value:.3f} ({self.score.low:.3f} to {self.score.high:.3f})"

    def as_dict(self) -> dict[str, object]:
        """Return the file's entry of `resize.json`."""
        return {
            "dim": self.dim,
            "path": str(self.path),
            "megabytes": round(self.megabytes, 3),
            "score": self.score.as_dict(),
            "broken_constraints": self.broken,
            "kept": self.keeps_score,
        }


def check_dims(dims: Sequence[int] | None, resizer: Resizer) -> list[int] | None:
    """Check the ranks to try, and return them with the largest first; None stays None.

    Raises:
        ConfigError: a rank below 1 or above the file's, or no multiple of a DyLoRA's unit.
    """
    if dims is None:
        return None
    unit = resizer.unit or 1
    for dim in dims:
        if isinstance(dim, bool) or not isinstance(dim, int) or not 1 <= dim <= resizer.max_rank or dim % unit:
            multiples = f" in steps of {unit}" if unit > 1 else ""
            raise ConfigError(
                f"dims={dim}: expected ranks from {unit} to {resizer.max_rank}{multiples}, as in dims=[16,8]"
            )
    return sorted(set(dims), reverse=True)


def resize_lora(
    session: Session,
    resizer: Resizer,
    source: Path,
    metadata: Mapping[str, str],
    folder: Path,
    dims: Sequence[int] | None,
    bars: Bars,
) -> list[ResizedFile]:
    """Write a LoRA at smaller ranks, and verify and score each file.

    Args:
        session: opened with the run of the original file.
        resizer: makes the smaller LoRAs.
        source: the original file.
        metadata: its metadata.
        folder: where the smaller files go.
        dims: the ranks to try, as `check_dims` returned them; None: search for the smallest that keeps the score.
        bars: where progress is shown.

    Returns:
        The original, then the smaller files, the largest rank first.

    Raises:
        ExportError: a written file is not what was made.
        Unmeasurable: nothing can be scored on this dataset.
    """
    if session.scorer is None:
        raise Unmeasurable(session.unmeasured)
    scorer = final_scorer(session.scorer, session, bars)
    original = _score_file(None, source, None, session, scorer, bars)
    smaller: list[ResizedFile] = []

    def keeps_score(dim: int) -> bool:
        model, state = session.context.model, resizer.to(dim)
        with atomic_files(folder) as hidden:
            written = write_resized(state, dim, source, metadata, model, hidden, DTYPES[session.export.dtype])
            verify_deltas(state, written, model)
        smaller.append(_score_file(dim, folder / written.name, original, session, scorer, bars))
        bars.log(f"dim {dim}: {smaller[-1].score_text}")
        return smaller[-1].keeps_score

    if dims is None:
        search_ranks(keeps_score, resizer.max_rank, resizer.first_rank, resizer.unit or 1)
    else:
        for dim in dims:
            keeps_score(dim)
    return [original, *sorted(smaller, key=lambda file: file.dim or 0, reverse=True)]


def search_ranks(keeps_score: Callable[[int], bool], max_rank: int, first: int, unit: int) -> None:
    """Try ranks until the smallest that keeps the score is known, assuming that no rank below a failing one keeps it.

    Ranks are halved until the score is lost. Then bisection goes on between the last that kept it and that one.

    Args:
        keeps_score: tries a rank.
        max_rank: a rank that keeps the score, or the highest that may be tried.
        first: the rank that is tried first.
        unit: every rank tried is a multiple of it.
    """
    keeping, losing = max_rank, first // unit * unit
    while losing and keeps_score(losing):
        keeping, losing = losing, losing // 2 // unit * unit
    while (middle := (keeping + losing) // 2 // unit * unit) > losing:
        keeping, losing = (middle, losing) if keeps_score(middle) else (keeping, middle)


def smallest_that_keeps_score(files: Sequence[ResizedFile]) -> ResizedFile | None:
    """The smallest file of which no larger one lost the score; None if the largest did.

    Args:
        files: as `resize_lora` returns them. A file below one that lost the score keeps it by chance.
    """
    smaller = files[1:]
    count = next((i for i, file in enumerate(smaller) if not file.keeps_score), len(smaller))
    return smaller[count - 1] if count else None


def _score_file(
    dim: int | None, path: Path, original: ResizedFile | None, session: Session, scorer: Scorer, bars: Bars
) -> ResizedFile:
    """Read a file back and score it."""
    session.context.adapter.load(read_lora(path, session.context.model))
    scorecard = session.score(scorer, bars)
    keeps_score = original is None or (
        scorecard.score.value >= original.score.low and set(scorecard.broken) <= set(original.broken)
    )
    return ResizedFile(dim, path, scorecard.score, scorecard.broken, keeps_score)
