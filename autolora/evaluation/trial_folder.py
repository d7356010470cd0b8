"""One trial: its curve of scored checkpoints, its best one, and when to stop it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from autolora.adapters.base import State
from autolora.errors import StudyError
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
    """A trial's files: `curve.json`, `latest.pt` to continue from, `checkpoints/STEP.safetensors` to export from."""

    path: Path
    run: Run
    results: list[CheckpointResult] = field(default_factory=list)

    @classmethod
    def open(cls, folder: Path, run: Run) -> TrialFolder:
        """The record as it was left; the curve ends where the latest checkpoint stands."""
        record = cls(folder, run)
        latest = record.latest()
        if latest is not None:
            record.results = [p for p in load_results(folder) if p.step <= latest.step]
        return record

    def latest(self) -> Checkpoint | None:
        """The checkpoint to continue from."""
        path = self.path / "latest.pt"
        return checkpoints.load(path, self.run) if path.is_file() else None

    def load(self, p: CheckpointResult) -> State:
        """The adapter of a kept point.

        Raises:
            StudyError: its file is missing or broken.
        """
        path = self._file(p)
        try:
            return dict(load_file(path))
        except (OSError, SafetensorError) as error:
            raise StudyError(f"{path} cannot be read ({error}); delete {self.path} and run the same command") from error

    def append(self, checkpoint: Checkpoint, new: CheckpointResult) -> None:
        """Keep a scored checkpoint; the curve is written first, so that no checkpoint lacks its score."""
        self.results.append(new)
        write_atomic(self.path / "curve.json", json.dumps([asdict(p) for p in self.results], indent=1))
        with atomic_path(self._file(new)) as temporary:
            save_file({key: tensor.contiguous() for key, tensor in checkpoint.state.items()}, temporary)
        checkpoints.save(checkpoint, self.path / "latest.pt")
        best = self.best_result()
        assert best is not None
        kept = {self._file(p) for p in (*self._beside(best), new)}  # the new one may stand beside the next, better one
        for path in (self.path / "checkpoints").glob("*.safetensors"):
            if path not in kept:
                path.unlink()

    def key(self, p: CheckpointResult) -> str:
        """By which the studies that judge checkpoints know one of this trial's."""
        return f"{self.path.name}@{p.step}"

    def rendered_neighbours(self, p: CheckpointResult) -> list[CheckpointResult]:
        """A point and those beside it on the curve, of which each was rendered and is kept."""
        return [one for one in self._beside(p) if one.score is not None and self._file(one).is_file()]

    def _beside(self, p: CheckpointResult) -> list[CheckpointResult]:
        at = [one.step for one in self.results].index(p.step)
        return self.results[max(0, at - 1) : at + 2]

    def _file(self, p: CheckpointResult) -> Path:
        return self.path / "checkpoints" / f"{p.step}.safetensors"

    def should_stop_overcooked(self, patience: int) -> bool:
        """Whether at the last `patience` checkpoints bleed is surely above its limit, and does not fall."""
        last = self.results[-patience:]
        return len(last) >= patience and all(map(certainly_overcooked, last)) and _bleed(last[-1]) >= _bleed(last[0])

    def summary(self, best: CheckpointResult | None = None) -> dict[str, Any]:
        """The best point, or the one given for it, in the schema of `result.json`."""
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

    def remedy(self, p: CheckpointResult) -> str:
        """What may help against what is wrong with a point of this trial."""
        trained = self.run.train
        own = self.scored_step() / (1 + trained.prior_preservation_ratio + trained.reg_ratio)
        options = []
        if p.bleed_by_prompt:
            options.append(suggest_regularization(p.bleed_by_prompt, trained.reg_ratio, round(own)).summary)
        options.append(f"train.prior_preservation_ratio={max(0.4, 2 * trained.prior_preservation_ratio):g}")
        calm = [float(w) for w, terms in p.by_weight.items() if terms["bleed_class"]["high"] <= _bleed_limit(p)]
        before = [one.step for one in self.results if one.step < (self.overcooked_step() or 0)]
        options += [f"use weight {max(calm):g}"] if calm else []
        options += [f"stop at step {max(before)}"] if before else []
        return remedy(p.constraints, options)
