"""Scores candidates of the finals: renders a checkpoint, or trains its recipe again first."""

from __future__ import annotations

from dataclasses import replace

from autolora.adapters.base import State
from autolora.evaluation.result import CheckpointResult, from_losses, with_scorecard
from autolora.evaluation.session import Session
from autolora.evaluation.trial_folder import TrialFolder
from autolora.export.write import DTYPES, as_in_file
from autolora.progress import Bars
from autolora.scoring.eval_prompts import DECIDING_GROUPS
from autolora.scoring.scorecard import Scorecard, recommended_weight, score
from autolora.scoring.scorer import Scorer
from autolora.settings import SWEEP_WEIGHTS
from autolora.study.artifacts import TrialFiles
from autolora.study.finals.finalist import Candidate, Finalist
from autolora.train import checkpoint as checkpoints
from autolora.train.loop import train
from autolora.train.slot import Job, TrainingSlot


class CandidateEvaluator:
    """Scores candidates with fresh seeds, and the winner with every prompt group and more weights."""

    def __init__(self, session: Session, scorer: Scorer, trial_files: TrialFiles, bars: Bars) -> None:
        self.session, self.scorer, self.trial_files, self.bars = session, scorer, trial_files, bars
        self.deciding = scorer.only(*DECIDING_GROUPS)
        self.training_seconds = 0.0  # of this process

    @property
    def full_evaluation_renders(self) -> int:
        """The number of renders of `full_evaluation`."""
        assert self.session.scorer is not None
        return self.scorer.num_renders + self.session.scorer.at_weights(*SWEEP_WEIGHTS).num_renders

    def folder_of(self, candidate: Candidate) -> TrialFolder:
        """The folder of a candidate's checkpoint: its trial's, or one beside it for another training seed."""
        trial_folder = candidate.trial_folder
        if candidate.seed_offset is None:
            return trial_folder
        settings = trial_folder.run.train
        run = replace(trial_folder.run, train=replace(settings, seed=settings.seed + candidate.seed_offset))
        path = self.trial_files.fetch(f"{trial_folder.path.name}-seed{run.train.seed}")
        return TrialFolder.open_or_begin(path, run, self.bars.log)

    def evaluate(self, candidate: Candidate) -> CheckpointResult | None:
        """The candidate as the finals score it; None if its training diverged.

        Raises:
            MemoryFull: the GPU's memory is too small.
        """
        if candidate.seed_offset is None:
            state = candidate.trial_folder.load(candidate.result)
            return with_scorecard(candidate.result, self._score(state, self.deciding))
        return self._train_again(self.folder_of(candidate), candidate.result.step, candidate.name)

    def full_evaluation(self, finalist: Finalist) -> CheckpointResult:
        """The finalist with every term, its terms at many weights by the search's prompts, and the recommended weight.

        The adapter is evaluated as its exported file will hold it, rounded to the file's precision.
        """
        assert self.session.scorer is not None
        dtype = DTYPES[self.session.export.dtype]
        state = as_in_file(finalist.trial_folder.load(finalist.result), self.session.context.model, dtype)
        self.session.context.adapter.load(state)
        renders = self.session.render(self.scorer, self.bars)
        result = with_scorecard(finalist.result, score(self.scorer, renders))
        tags, tag_bleed = self.session.tag_bleed(self.scorer, renders)
        terms_by_weight = self._score(state, self.session.scorer.at_weights(*SWEEP_WEIGHTS)).by_weight
        weight = recommended_weight(terms_by_weight, self.scorer.settings)
        sweep = {w: {name: term.as_dict() for name, term in terms.items()} for w, terms in terms_by_weight.items()}
        return replace(result, weight=weight, sweep=sweep, tags=tags, tag_bleed=tag_bleed)

    def _score(self, state: State, scorer: Scorer) -> Scorecard:
        self.session.context.adapter.load(state)
        return self.session.score(scorer, self.bars)

    def _train_again(self, folder: TrialFolder, images: int, name: str) -> CheckpointResult | None:
        """Train a recipe up to a number of images and score it there; None if it diverged."""
        latest = folder.latest()
        jobs = iter([Job(folder.run, latest)])
        bar = self.bars.add(name, images)

        def on_step(slot: TrainingSlot) -> None:
            self.bars.set(bar, slot.step)

        for (slot,) in train(lambda: next(jobs, None), self.session.context, on_step):
            checkpoint = slot.checkpoint
            assert checkpoint is not None
            if checkpoint.step < images and not checkpoint.diverged:
                checkpoints.save(checkpoint, folder.path / "latest.pt")
                continue
            self.training_seconds += slot.seconds - (latest.seconds if latest else 0.0)
            slot.stop()
            if checkpoint.diverged:
                break
            if not folder.results:
                unscored = from_losses(checkpoint, self.session.base_losses)
                folder.append(checkpoint, with_scorecard(unscored, self._score(checkpoint.state, self.deciding)))
                self.trial_files.send(folder.path.name)
        self.bars.remove(bar)
        return folder.best_result()
