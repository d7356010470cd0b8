"""Measures all metrics of a checkpoint at one LoRA weight."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from autolora.scoring.embeddings import Embeddings
from autolora.scoring.eval_prompts import EvalPrompt
from autolora.scoring.intervals import BootstrapEstimate, Estimate, mean_of
from autolora.scoring.metric_types import Evaluation, MetricUnmeasurable
from autolora.scoring.metrics import METRICS
from autolora.scoring.score_metrics import class_bleed
from autolora.scoring.scorer import Scorer


@dataclass(frozen=True)
class MetricSet:
    """The metrics at one LoRA weight."""

    values: dict[str, BootstrapEstimate | Estimate]
    class_bleed: BootstrapEstimate
    unmeasurable: dict[str, str]  # why a metric is missing

    @property
    def terms(self) -> dict[str, Estimate]:
        """Every measured metric with its interval."""
        return {name: _with_interval(value) for name, value in self.values.items()}

    def draws(self, name: str) -> BootstrapEstimate:
        """Return a metric of the score with its bootstrap draws."""
        value = self.values[name]
        if not isinstance(value, BootstrapEstimate):
            raise ValueError(f"{name} has no bootstrap draws")
        return value


def _with_interval(value: BootstrapEstimate | Estimate) -> Estimate:
    return value.estimate() if isinstance(value, BootstrapEstimate) else value


def measure(evaluation: Evaluation) -> MetricSet:
    """Measure every metric."""
    scorer = evaluation.scorer
    values: dict[str, BootstrapEstimate | Estimate] = {}
    unmeasurable: dict[str, str] = {}
    if scorer.references.alike:
        pairs = "; ".join(scorer.references.alike)
        unmeasurable["concepts"] = f"{scorer.encoder.name} cannot tell {pairs} apart"
    for metric in METRICS:
        try:
            value = metric.measure(evaluation)
        except MetricUnmeasurable as error:
            unmeasurable[metric.name] = str(error)
        else:
            if value is not None:
                values[metric.name] = value
    return MetricSet(values, class_bleed(evaluation), unmeasurable)


def measure_by_second_encoder(scorer: Scorer, embeddings: Mapping[EvalPrompt, Embeddings]) -> dict[str, Estimate]:
    """Measure the metrics that need neither text embeddings nor images."""
    evaluation = Evaluation(scorer, embeddings, renders={})
    values = {metric.name: metric.measure(evaluation) for metric in METRICS if metric.by_second_encoder}
    return {name: _with_interval(value) for name, value in values.items() if value is not None}


def over_all_weights(sets: list[MetricSet]) -> dict[str, Estimate]:
    """Combine each metric over the weights: the mean where there are bootstrap draws, else the worst estimate."""
    combined: dict[str, Estimate] = {}
    for metric in METRICS:
        if metric.name not in sets[-1].values:
            continue
        values = [metric_set.values[metric.name] for metric_set in sets]
        if all(isinstance(value, BootstrapEstimate) for value in values):
            combined[metric.name] = mean_of([s.draws(metric.name) for s in sets]).estimate()
        else:
            combined[metric.name] = max(map(_with_interval, values), key=metric.badness)
    return combined
