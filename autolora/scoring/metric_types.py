"""The types of a metric, of a constraint and of what they are computed from; `metrics.py` has the tables of both."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from autolora.scoring.embeddings import Embeddings
from autolora.scoring.eval_prompts import EvalPrompt
from autolora.scoring.intervals import BootstrapEstimate, Estimate
from autolora.scoring.settings import ScoringSettings

if TYPE_CHECKING:  # these import torch
    from autolora.sampling import Images
    from autolora.scoring.scorer import Scorer


class MetricUnmeasurable(ValueError):
    """Raised by a metric that these renders or images are not enough for; the message says why."""


@dataclass(frozen=True)
class Evaluation:
    """The renders of one checkpoint at one LoRA weight, and what they are compared with."""

    scorer: Scorer
    embeddings: Mapping[EvalPrompt, Embeddings]  # one row per seed
    renders: Mapping[EvalPrompt, Images]


@dataclass(frozen=True)
class Metric:
    """A number that is measured for a checkpoint at each LoRA weight.

    Attributes:
        name: the key in result files.
        measure: returns the metric; None: the evaluation has no prompts for it. It raises MetricUnmeasurable. A metric
            with bootstrap draws is averaged over the LoRA weights, an estimate is taken from the worst weight.
        label: the name in tables and reports.
        meaning: the explanation in the model card; empty: the model card leaves the metric out.
        in_report: the report's tables have a column for it.
        is_share: the verdict prints it as a percentage.
        badness: returns a number that is the higher, the worse an estimate is.
        by_second_encoder: it is measured with `scoring.second_encoder` too.
    """

    name: str
    measure: Callable[[Evaluation], BootstrapEstimate | Estimate | None]
    label: str
    meaning: str = ""
    in_report: bool = False
    is_share: bool = False
    badness: Callable[[Estimate], float] = lambda estimate: estimate.value
    by_second_encoder: bool = False


Terms = Mapping[str, Estimate]  # by the name of the metric


@dataclass(frozen=True)
class Constraint:
    """A limit that a checkpoint must keep at every LoRA weight.

    Attributes:
        name: the key in result files.
        metric: the metric that it limits; a checkpoint for which that is not measured has no such constraint.
        violation: gets the terms at each weight, the weakest first; returns a number that is above 0 if the limit is
            broken, or None if these weights cannot tell.
        label: the name in tables and reports.
        gravity: the verdict names the broken constraint with the lowest number.
        fault: the verdict if it is broken; `{name}` stands for the value of a metric at the strongest weight.
        remedy: what may help if it is broken.
        remedy_rank: where it comes in the order of remedies if not at its gravity: what helps against one fault often
            causes another.
    """

    name: str
    metric: str
    violation: Callable[[Sequence[Terms], ScoringSettings], float | None]
    label: str
    gravity: int
    fault: str
    remedy: str
    remedy_rank: int | None = None


def must_reach(metric: str, limit: str) -> Callable[[Sequence[Terms], ScoringSettings], float]:
    """Return a violation rule: at every weight the whole interval must be at least `scoring.<limit>`."""
    return lambda by_weight, settings: getattr(settings, limit) - min(terms[metric].low for terms in by_weight)


def must_stay_below(metric: str, limit: str) -> Callable[[Sequence[Terms], ScoringSettings], float]:
    """Return a violation rule: at every weight the whole interval must be at most `scoring.<limit>`."""
    return lambda by_weight, settings: max(terms[metric].high for terms in by_weight) - getattr(settings, limit)


def must_not_exceed(metric: str, limit: str) -> Callable[[Sequence[Terms], ScoringSettings], float]:
    """Return a violation rule: at no weight may the whole interval be above `scoring.<limit>`, as samples are small."""
    return lambda by_weight, settings: max(terms[metric].low for terms in by_weight) - getattr(settings, limit)
