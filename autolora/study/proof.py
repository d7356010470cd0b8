"""Proves that what was exported is what was trained and scored."""

from __future__ import annotations

from dataclasses import dataclass

from autolora.adapters.base import State
from autolora.adapters.read import read_lora
from autolora.errors import ExportError
from autolora.export.naming import has_format
from autolora.export.verify import DiffusersTwin, compare_pictures, verify_deltas
from autolora.export.write import Exported
from autolora.progress import Bars
from autolora.sampling import Shot, render
from autolora.scoring.intervals import Estimate
from autolora.scoring.scorer import Scorer
from autolora.study.export_best import Twin
from autolora.study.trial import Point
from autolora.study.workbench import Workbench

SCORE_TOLERANCE = {"float16": 0.005, "bfloat16": 0.02, "float32": 0.005}  # rounding may move the score by this much


@dataclass(frozen=True)
class Proof:
    """Which programs make the same of the file, and the score of its plain twin where there is one."""

    read_by: tuple[str, ...]
    twin_score: Estimate | None = None


def prove(
    work: Workbench,
    state: State,
    point: Point,
    exported: Exported,
    twin: Twin | None,
    scorer: Scorer | None,
    bars: Bars,
) -> Proof:
    """Reload the written file as each program does, and by diffusers' own loader; all must agree with the adapter.

    Args:
        work: what it was trained on.
        state: the adapter.
        point: the checkpoint as it was judged.
        exported: its file.
        twin: the plain LoRA beside a file that diffusers does not read.
        scorer: what judged it; the file must score the same. None: not scored again.
        bars: where progress is shown.

    Raises:
        ExportError: changes of weights, score or pictures differ.
    """
    bench = work.bench
    found = verify_deltas(state, exported.path, bench.model)
    bench.adapter.load(read_lora(exported.path, bench.model))
    if scorer is not None and point.score is not None:
        after, tolerance = work.score(scorer, bars).score.value, SCORE_TOLERANCE[work.export.dtype]
        if abs(after - point.score["value"]) > tolerance:
            raise ExportError(
                f"{exported.path} scores {after:.3f} after reloading, the trial {point.score['value']:.3f}; "
                f"a gap of at most {tolerance} was expected"
            )
    plain, path, twin_score = state, exported.path, None
    if twin is not None:
        plain, path = twin.state, twin.path
        verify_deltas(plain, path, bench.model)
        bench.adapter.load(read_lora(path, bench.model))
        twin_score = work.score(scorer, bars).score if scorer is not None else None
    source = bench.model.source
    if source is not None:
        probe = work.of("trigger")[0]
        shots = [Shot(probe.prompt, probe.seeds[0], weight) for weight in work.scoring.weights]
        loaded = DiffusersTwin(path, source, bench.model)
        loaded.verify_deltas(plain)
        if loaded.draws:
            ours = render(bench.model, shots, work.render_settings, bench.adapter)
            compare_pictures(ours, loaded.render(shots, work.render_settings))
        if exported.diffusers is not None:
            copied = state if has_format(state) else plain
            DiffusersTwin(exported.diffusers, source, bench.model).verify_deltas(copied)
    return Proof((*found.read_by, "diffusers") if twin is None and source is not None else found.read_by, twin_score)
