"""The training loop: seeds decide everything, slots are independent, and resuming changes nothing."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from autolora.adapters.kinds import IA3, DoRA, DyLoRA, LoHa, LoKr
from autolora.data.step_table import make_step_table
from autolora.errors import ConfigError, StudyError
from autolora.models.stable_diffusion import StableDiffusion
from autolora.optim.optimizers import CAME, Adafactor, AdamW, Lion, Prodigy, ScheduleFree
from autolora.optim.schedules import Constant, CosineRestarts
from autolora.train import batches, checkpoint
from autolora.train.batches import Stream
from autolora.train.loop import train
from autolora.train.run import Run
from autolora.train.slot import Job, TrainingContext
from tests.train.helpers import (
    ADAMW,
    ADAPTER,
    NO_MAX_NORM,
    PRODIGY,
    class_pictures_of,
    make_context,
    preserving,
    same_state,
    train_all,
)

pytestmark = pytest.mark.slow  # trains, renders or loads many models

ALL_TARGETS = ("attention", "feed_forward", "projections", "conv")
RUNS = {
    "adamw": ADAMW,
    "prodigy": PRODIGY,
    "two prodigys": replace(PRODIGY, adapter=replace(ADAPTER, text_encoder=True)),
    "two rates": replace(ADAMW, adapter=replace(ADAPTER, text_encoder=True), optimizer=AdamW(1e-3, 1e-4)),
    "schedule-free": replace(ADAMW, optimizer=ScheduleFree(1e-3), schedule=Constant(), train=NO_MAX_NORM),
    "lion": replace(ADAMW, optimizer=Lion(1e-4)),
    "adafactor": replace(ADAMW, optimizer=Adafactor(1e-3)),
    "came": replace(ADAMW, optimizer=CAME(1e-3)),
    "locon": replace(ADAMW, adapter=replace(ADAPTER, targets=ALL_TARGETS)),
    "dylora": replace(ADAMW, adapter=DyLoRA(dim=4, alpha=2, unit=2)),
    "dora": replace(ADAMW, adapter=DoRA(dim=2, alpha=1)),
    "loha": replace(ADAMW, adapter=LoHa(dim=2, alpha=1)),
    "lokr": replace(ADAMW, adapter=LoKr(dim=2, alpha=1)),
    "ia3": replace(ADAMW, adapter=IA3()),
}


@pytest.fixture(params=RUNS)
def run(request: pytest.FixtureRequest) -> Run:
    return RUNS[request.param]


def test_the_seed_alone_decides_the_lora(run: Run, tiny_model: StableDiffusion, folder: Path, tmp_path: Path) -> None:
    first = train_all(make_context(tiny_model, folder, tmp_path, run), Job(run))
    other = replace(run, train=replace(run.train, seed=9))
    second = train_all(make_context(tiny_model, folder, tmp_path, run), Job(other), Job(run))
    assert [c.step for c in first] == [10, 20, 30]
    assert first[-1].done and not first[0].done
    assert same_state(first[-1], second[-1]) and first[-1].val_loss == second[-1].val_loss
    assert not same_state(first[-1], second[2])


def test_a_resumed_run_equals_an_uninterrupted_one(
    run: Run, tiny_model: StableDiffusion, folder: Path, tmp_path: Path
) -> None:
    uninterrupted = train_all(make_context(tiny_model, folder, tmp_path, run), Job(run))
    checkpoint.save(uninterrupted[0], tmp_path / "latest.pt")
    resumed = train_all(
        make_context(tiny_model, folder, tmp_path, run), Job(run, checkpoint.load(tmp_path / "latest.pt", run))
    )
    assert [c.step for c in resumed] == [10, 20, 30]
    assert all(same_state(a, b) and a.train_loss == b.train_loss for a, b in zip(uninterrupted, resumed, strict=True))


def test_a_finished_run_yields_its_checkpoint_again_without_training(
    tiny_model: StableDiffusion, folder: Path, tmp_path: Path
) -> None:
    finished = train_all(make_context(tiny_model, folder, tmp_path), Job(ADAMW))
    checkpoints = train_all(make_context(tiny_model, folder, tmp_path), Job(ADAMW, finished[-1]), Job(PRODIGY))
    assert checkpoints[0] is finished[-1]
    assert [(c.run.name, c.step) for c in checkpoints[1:]] == [("prodigy", 10), ("prodigy", 20), ("prodigy", 30)]


def test_two_slots_train_as_two_single_runs(tiny_model: StableDiffusion, folder: Path, tmp_path: Path) -> None:
    other = replace(ADAMW, optimizer=AdamW(lr=3e-4), train=replace(ADAMW.train, seed=4, scale_weight_norms=None))
    packed = train_all(make_context(tiny_model, folder, tmp_path, slots=2), Job(ADAMW), Job(other))
    for run in (ADAMW, other):
        single = train_all(make_context(tiny_model, folder, tmp_path), Job(run))[-1]
        in_pack = next(c for c in packed if c.run == run and c.done)
        assert in_pack.train_loss == pytest.approx(single.train_loss, rel=1e-4)
        assert in_pack.val_loss == pytest.approx(single.val_loss, rel=1e-4)


def test_a_free_slot_takes_no_part_of_the_batch(
    tiny_model: StableDiffusion, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = replace(ADAMW, train=replace(ADAMW.train, seed=4, epochs=6))
    sizes, predict = Counter[int](), tiny_model.predict

    def counting_predict(noisy: torch.Tensor, *rest: Any) -> torch.Tensor:
        sizes[len(noisy)] += torch.is_grad_enabled()
        return predict(noisy, *rest)

    monkeypatch.setattr(tiny_model, "predict", counting_predict)
    train_all(make_context(tiny_model, folder, tmp_path, slots=3), Job(ADAMW), Job(long))
    assert {size for size, count in sizes.items() if count} == {2, 2 * 2, 4, 2 * 4}


@pytest.mark.parametrize("optimizer", [AdamW(lr=1e-3), Prodigy()], ids=["adamw", "prodigy"])
def test_a_slot_that_takes_its_second_job_trains_it_as_if_alone(
    optimizer: AdamW | Prodigy, tiny_model: StableDiffusion, folder: Path, tmp_path: Path
) -> None:
    short, long = (replace(ADAMW, train=replace(ADAMW.train, epochs=n, seed=n)) for n in (1, 3))
    last = replace(preserving(0.5), optimizer=optimizer)
    last = replace(last, train=replace(last.train, min_lora_multiplier=0.7, caption_dropout_rate=0.2))

    def new_context(slots: int) -> TrainingContext:
        context = make_context(tiny_model, folder, tmp_path, slots=slots)
        return replace(context, class_pictures=class_pictures_of(context))

    alone = train_all(new_context(1), Job(last))
    packed = train_all(new_context(2), Job(short), Job(long), Job(last))
    for expected, actual in zip(alone, [c for c in packed if c.run == last], strict=True):
        assert expected.val_loss == pytest.approx(actual.val_loss, rel=1e-5)
        assert expected.train_loss == pytest.approx(actual.train_loss, rel=1e-5)


def test_a_stopped_slot_takes_the_next_job(tiny_model: StableDiffusion, folder: Path, tmp_path: Path) -> None:
    queue = iter([Job(ADAMW), Job(PRODIGY)])
    context, checkpoints = make_context(tiny_model, folder, tmp_path), []
    for ready in train(lambda: next(queue, None), context):
        checkpoints.append((ready[0].run.name, ready[0].step))
        if ready[0].run is ADAMW:
            ready[0].stop()
    context.adapter.detach()
    assert checkpoints == [("adamw", 10), ("prodigy", 10), ("prodigy", 20), ("prodigy", 30)]


def test_the_step_table_counts_the_images_that_are_shown(
    tiny_model: StableDiffusion, folder: Path, tmp_path: Path
) -> None:
    context = make_context(tiny_model, folder, tmp_path)
    context.adapter.detach()
    stream, counts = Stream(ADAMW, context.dataset, tiny_model), Counter[str]()
    for _ in range(ADAMW.optimizer_steps(context.dataset)):
        counts.update(picture.concept for picture in stream.next_batch().pictures)
    table = make_step_table(context.dataset, ADAMW.images_by_concept(context.dataset), ADAMW.train.epochs)
    assert counts == {row.concept: row.steps_total for row in table.concepts}
    assert sum(counts.values()) == table.steps_total


def test_a_run_that_diverges_ends_and_is_marked(tiny_model: StableDiffusion, folder: Path, tmp_path: Path) -> None:
    context = make_context(tiny_model, folder, tmp_path)
    diverging = replace(
        ADAMW,
        optimizer=AdamW(lr=0.99, weight_decay=0.0),
        train=replace(ADAMW.train, scale_weight_norms=None, epochs=40),
    )
    queue, last = iter([Job(diverging)]), None
    for ready in train(lambda: next(queue, None), context):
        with torch.no_grad():
            context.adapter.deltas[0].up.fill_(float("nan"))
        last = ready[0].checkpoint
        if last and last.step > 60:
            break
    context.adapter.detach()
    assert last is not None and last.diverged and last.done and last.step == 20


def test_training_does_not_change_the_global_random_state(
    tiny_model: StableDiffusion, folder: Path, tmp_path: Path
) -> None:
    before = torch.get_rng_state()
    train_all(make_context(tiny_model, folder, tmp_path), Job(replace(ADAMW, train=replace(ADAMW.train, epochs=1))))
    assert torch.equal(before, torch.get_rng_state())


def test_every_purpose_has_its_own_random_numbers() -> None:
    generators = batches.generators(0)
    draws = [float(torch.rand((), generator=g)) for g in generators.values()]
    assert len(set(draws)) == len(batches.PURPOSES)


def test_a_checkpoint_of_another_recipe_or_a_broken_one_is_refused(
    tiny_model: StableDiffusion, folder: Path, tmp_path: Path
) -> None:
    checkpoints = train_all(
        make_context(tiny_model, folder, tmp_path), Job(replace(ADAMW, train=replace(ADAMW.train, epochs=1)))
    )
    checkpoint.save(checkpoints[0], tmp_path / "c.pt")
    with pytest.raises(StudyError, match="belongs to another recipe"):
        checkpoint.load(tmp_path / "c.pt", PRODIGY)
    (tmp_path / "c.pt").write_bytes(b"half")
    with pytest.raises(StudyError, match="is broken"):
        checkpoint.load(tmp_path / "c.pt", PRODIGY)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"schedule": CosineRestarts(), "train": NO_MAX_NORM}, "set schedule=constant"),
        ({"schedule": Constant(), "train": ADAMW.train}, "scale_weight_norms would not limit"),
    ],
)
def test_settings_that_do_not_work_with_a_schedule_free_optimizer_are_refused(
    settings: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(ADAMW, optimizer=ScheduleFree(), **settings)  # type: ignore[arg-type]


def test_a_checkpoint_of_a_schedule_free_run_holds_the_averaged_weights(
    tiny_model: StableDiffusion, folder: Path, tmp_path: Path
) -> None:
    """While a checkpoint is scored, the adapter holds the averaged weights, not those that the next step trains."""
    context, queue = (
        make_context(tiny_model, folder, tmp_path, RUNS["schedule-free"]),
        iter([Job(RUNS["schedule-free"])]),
    )
    for (slot,) in train(lambda: next(queue, None), context):
        assert slot.checkpoint is not None
        averaged = context.adapter.state(0)
        assert all(torch.equal(averaged[key], tensor) for key, tensor in slot.checkpoint.state.items())
        slot.set_mode("train")
        trained = context.adapter.state(0)
        assert slot.step == 10 or any(not torch.allclose(trained[k], t, rtol=1e-5) for k, t in averaged.items())
    context.adapter.detach()
