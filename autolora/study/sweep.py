"""The winner at weights from 0.4 to 1.2: which weight to recommend."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from autolora.files import write_atomic
from autolora.progress import Bars
from autolora.scoring.scorer import Scorer
from autolora.study.finals import Finalist
from autolora.study.trial import Point, judged
from autolora.study.workbench import Workbench

WEIGHTS = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2)


def sweep_weights(winner: Finalist, search: Scorer, work: Workbench, folder: Path, bars: Bars) -> Point:
    """The winner as the search's probes see it at every weight; its `weight` is the recommended one.

    It is kept in `sweep.json` and read back.
    """
    path, key = folder / "sweep.json", f"{winner.record.folder.name}@{winner.point.step}"
    known = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    if key in known:
        return Point(**known[key])
    work.bench.adapter.load(winner.record.load(winner.point))
    swept = judged(winner.point, work.score(search.at(*WEIGHTS), bars))
    write_atomic(path, json.dumps({key: asdict(swept)}, indent=1))
    return swept
