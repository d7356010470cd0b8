"""One trial: its curve of scored checkpoints, its best one, and when to stop it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from autolora.adapters.base import State
from autolora.errors import BrokenFile
from autolora.evaluation.result import (
    CheckpointResult,
    TrialResults,
    _bleed,
    _bleed_limit,
    certainly_overcooked,
    load_results,
)
from autolora.files import atomic_path, write_atomic
from autolora.prepare.regularization import suggest_regularization
from autolora.scoring.diagnosis import remedy
from autolora.train import checkpoint as checkpoints
from autolora.train.checkpoint import Checkpoint
from autolora.train.run import Run


@dataclass
class TrialFolder(TrialResults):
    """A trial's files: `curve.json`, `latest.pt` to continue from, `checkpoints/IMAGES.safetensors` to export from."""

    path: Path
    run: Run
    results: list[CheckpointResult] = field(default_factory=list)

    @classmethod
    def open(cls, folder: Path, run: Run, ended: bool = False) -> TrialFolder:
        """Open a trial's folder; results beyond the latest checkpoint, which an interruption left, are dropped.

        Args:
            folder: where the trial's files are.
            run: what it trains.
            ended: whether nothing is trained any more; a broken or missing `latest.pt` then takes no result away.

        Raises:
            BrokenFile: the files are broken.
            StudyError: they belong to another recipe.
        """
        trial_folder = cls(folder, run)
        try:
            latest = trial_folder.latest()
        except BrokenFile:
            if not ended:
                raise
            latest = None
        if latest is not None:
            trial_folder.results = [result for result in load_results(folder) if result.step <= latest.step]
        elif ended:
            trial_folder.results = load_results(folder)
            if trial_folder.results and not trial_folder._file(trial_folder.results[-1]).is_file():
                trial_folder.results.pop()
        return trial_folder

    @classmethod
    def open_or_begin(cls, folder: Path, run: Run, log: Callable[[str], None]) -> TrialFolder:
        """Open the folder of what can be trained again to the same result; if its files are broken, it begins anew."""
        try:
            return cls.open(folder, run)
        except BrokenFile as error:
            log(f"{error}. It begins anew now")
            return cls(folder, run)

    def latest(self) -> Checkpoint | None:
        """The checkpoint to continue from."""
        path = self.path / "latest.pt"
        return checkpoints.load(path, self.run) if path.is_file() else None

    def load(self, result: CheckpointResult) -> State:
        """Load the adapter of a kept checkpoint.

        Raises:
            BrokenFile: its file is missing or broken.
        """
        path = self._file(result)
        try:
            return dict(load_file(path))
        except (OSError, SafetensorError) as error:
            raise BrokenFile(
                f"{path} cannot be read ({error}): restore it from a copy; an exported LoRA stays as it is"
            ) from error

    def append(self, checkpoint: Checkpoint, new: CheckpointResult) -> None:
        """Keep a scored checkpoint; its score is written first, so that no checkpoint lacks one.

        Only the files of the best checkpoint, its neighbours and the new one stay.
        """
        self.results.append(new)
        write_atomic(self.path / "curve.json", json.dumps([asdict(result) for result in self.results], indent=1))
        with atomic_path(self._file(new)) as temporary:
            save_file({key: tensor.contiguous() for key, tensor in checkpoint.state.items()}, temporary)
        checkpoints.save(checkpoint, self.path / "latest.pt")
        best = self.best_result()
        assert best is not None
        kept_files = {
            self._file(result) for result in (*self._beside(best), new)
        }  # the new one may be the neighbour of a better one
        for path in (self.path / "checkpoints").glob("*.safetensors"):
            if path not in kept_files:
                path.unlink()

    def key(self, result: CheckpointResult) -> str:
        """The name of a checkpoint among all checkpoints of the study."""
        return f"{self.path.name}@{result.step}"

    def rendered_neighbours(self, result: CheckpointResult) -> list[CheckpointResult]:
        """A checkpoint and its neighbours, as far as they were rendered and are kept."""
        return [
            neighbour
            for neighbour in self._beside(result)
            if neighbour.score is not None and self._file(neighbour).is_file()
        ]

    def _beside(self, result: CheckpointResult) -> list[CheckpointResult]:
        at = [neighbour.step for neighbour in self.results].index(result.step)
        return self.results[max(0, at - 1) : at + 2]

    def _file(self, result: CheckpointResult) -> Path:
        return self.path / "checkpoints" / f"{result.step}.safetensors"

    def should_stop_overcooked(self, patience: int) -> bool:
        """Whether bleed was certainly above its limit at the last `patience` checkpoints, and did not fall."""
        last = self.results[-patience:]
        return len(last) >= patience and all(map(certainly_overcooked, last)) and _bleed(last[-1]) >= _bleed(last[0])

    def summary(self, best: CheckpointResult | None = None) -> dict[str, Any]:
        """The best checkpoint, or the one that is passed, in the schema of `result.json`."""
        best = best or self.best_result()
        assert best is not None
        return {
            "recipe": self.run.name,
            "step": best.step,
            "averaged": best.averaged,
            "strength": best.strength,
            "weight": best.weight,
            "score": best.score,
            "terms": best.terms,
            "broken_constraints": best.broken,
            "verdict": best.verdict,
            "remedy": self.remedy(best),
            "unmeasurable": best.unmeasurable,
            "leaks": best.bleed_by_prompt,
        }

    def remedy(self, result: CheckpointResult) -> str:
        """What may help against the broken limits of a checkpoint."""
        trained = self.run.train
        images_of_dataset = self.scored_step() / (1 + trained.prior_preservation_ratio + trained.reg_ratio)
        options = []
        if result.bleed_by_prompt:
            options.append(
                suggest_regularization(result.bleed_by_prompt, trained.reg_ratio, round(images_of_dataset)).summary
            )
        options.append(f"train.prior_preservation_ratio={max(0.4, 2 * trained.prior_preservation_ratio):g}")
        weights_without_bleed = [
            float(w) for w, terms in result.by_weight.items() if terms["bleed_class"]["high"] <= _bleed_limit(result)
        ]
        before = [neighbour.step for neighbour in self.results if neighbour.step < (self.overcooked_step() or 0)]
        options += [f"use weight {max(weights_without_bleed):g}"] if weights_without_bleed else []
        options += [f"stop after {max(before)} images"] if before else []
        return remedy(result.constraints, options)
