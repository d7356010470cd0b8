"""The replay of a study's duration, on one character of the stored bank."""

from __future__ import annotations

import pytest

from autolora.evaluation.session import REPEATS
from experiments.replay.bank_rows import facts_of, read_rows
from experiments.replay.makespan import WAYS, Costs, Spent, Way, orders, replay
from experiments.replay.replayed_bank import read_bank

COSTS = Costs(image=0.5, render=2.0, packed_image=0.125, packed_render=2.0, workers=2, at_once=4)


@pytest.mark.filterwarnings("ignore")
def test_every_way_saves_only_what_it_should() -> None:
    name, rows = next(iter(read_rows().items()))
    bank = read_bank(name, rows)
    order = orders(bank)[0]
    renders = facts_of(name)["renders"]

    def spent(way: Way) -> Spent:
        return replay(bank, order, renders, COSTS, way)

    finals, plain, packed, pruned, laddered, whole = map(spent, WAYS)
    images = sum(int(one.rows[-1]["step"]) for one in order)
    checkpoints = sum(len(one.rows) for one in order)
    assert len(order) == bank.settings.budget.n_trials and len({id(one) for one in order}) == len(order)
    assert plain.training == images * 0.5 and plain.rendering == checkpoints * renders["whole"] * 2.0
    assert (finals.training, finals.rendering) == (plain.training, plain.rendering * REPEATS)
    assert (packed.training, packed.rendering) == (plain.training / 4, plain.rendering)
    assert pruned.training < plain.training and pruned.rendering < plain.rendering
    assert laddered.training == plain.training and laddered.rendering < plain.rendering / 2
    assert whole.training < packed.training and whole.rendering < laddered.rendering
    assert whole.best <= plain.best == packed.best == laddered.best
