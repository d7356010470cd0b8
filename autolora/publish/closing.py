"""The time that the end of a study takes, by the speed that its renders had so far."""

from __future__ import annotations

from autolora.evaluation.samples import CONCEPTS, OTHERS
from autolora.evaluation.session import REPEATS, Session
from autolora.publish.gallery import WEIGHTS
from autolora.scoring.eval_prompts import DECIDING_GROUPS, render_count
from autolora.settings import SWEEP_WEIGHTS

MARGIN = 1.2  # renders slow down where another program uses the machine
FIXED_SECONDS = 8.0  # the report, the dashboard's plots, small files


def closing_seconds(session: Session, baselines: int) -> float:
    """The seconds of the export and the report's images.

    Args:
        session: with the speed that was measured so far.
        baselines: the checkpoints that the report shows beside the winner.
    """
    loads = 2 * session.load_seconds + FIXED_SECONDS  # diffusers loads the base model once more to verify the file
    if session.scorer is None:
        return loads
    samples = min(CONCEPTS, len(session.context.dataset.concepts)) + 2 * OTHERS
    renders = (baselines + 1) * (len(WEIGHTS) + 2) * samples + render_count(session.select("trigger"))
    search, resolution = session.scorer.render_settings, session.context.model.resolution
    return loads + MARGIN * session.speed.estimate(renders, search, resolution)


def shortest_finals_seconds(session: Session) -> float:
    """The seconds of the base model's renders for the finals and of one candidate."""
    if session.scorer is None:
        return 0.0
    everything, deciding = render_count(session.prompts), render_count(session.select(*DECIDING_GROUPS))
    return _full_steps(session, everything + deciding * len(session.scoring.weights))


def evaluation_seconds(session: Session) -> float:
    """The seconds of the winner's full evaluation."""
    if session.scorer is None:
        return 0.0
    sweep, resolution = session.scorer.at_weights(*SWEEP_WEIGHTS).num_renders, session.context.model.resolution
    every = _full_steps(session, render_count(session.prompts) * len(session.scoring.weights))
    return every + MARGIN * session.speed.estimate(sweep, session.scorer.render_settings, resolution)


def _full_steps(session: Session, renders: int) -> float:
    """The seconds of so many renders with the seeds and the steps of the finals."""
    if session.scorer is None:
        return 0.0
    resolution = session.context.model.resolution
    return MARGIN * session.speed.estimate(REPEATS * renders, session.render_settings, resolution)
