"""The loop: what is shown, that seeds decide everything, that resuming changes nothing."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from autolora.adapters.adapter_set import attach
from autolora.adapters.base import AdaptedLayer
from autolora.adapters.kinds import IA3, DoRA, DyLoRA, LoHa, LoKr, LoRA
from autolora.adapters.read import read_lora
from autolora.data.concepts import DatasetSettings, load_dataset
from autolora.data.sources import Picture
from autolora.data.step_table import make_step_table
from autolora.errors import ConfigError, StudyError
from autolora.export.metadata import ExportFacts
from autolora.export.write import export_lora
from autolora.models.stable_diffusion import StableDiffusion
from autolora.optim.optimizers import CAME, Adafactor, AdamW, Lion, Prodigy, ScheduleFree
from autolora.optim.schedules import AnnealedCosine, Constant, CosineRestarts
from autolora.paperdoll.world import write_dataset
from autolora.train import batches, caches, checkpoint
from autolora.train.batches import Stream
from autolora.train.caches import LatentCache, PromptCache
from autolora.train.checkpoint import Checkpoint
from autolora.train.init_from_lora import check_start
from autolora.train.loop import train
from autolora.train.run import InitFile, Run, TrainSettings
from autolora.train.slot import Job, TrainingContext, TrainingSlot
from autolora.train.step import train_step
from tests.export.world import dataset as world
from tests.export.world import random_state
from tests.export.world import run as world_run

FACTS = ExportFacts("1girl", 1.0, "a file to start from", 10)
ADAPTER = LoRA(dim=2, alpha=1.1)  # an alpha that float32 cannot hold
ADAMW = Run(
    "adamw",
    ADAPTER,
    AdamW(lr=1e-3),
    CosineRestarts(),
    TrainSettings(epochs=3, images_per_concept=5, batch_size=4, scale_weight_norms=0.5, caption_dropout_rate=0.2),
)
PRODIGY = replace(ADAMW, name="prodigy", optimizer=Prodigy(), schedule=AnnealedCosine())


FREE = replace(ADAMW.train, scale_weight_norms=None)
ALL_TARGETS = ("attention", "feed_forward", "projections", "conv")
RUNS = {
    "adamw": ADAMW,
    "prodigy": PRODIGY,
    "two prodigys": replace(PRODIGY, adapter=replace(ADAPTER, text_encoder=True)),
    "two rates": replace(ADAMW, adapter=replace(ADAPTER, text_encoder=True), optimizer=AdamW(1e-3, 1e-4)),
    "schedule-free": replace(ADAMW, optimizer=ScheduleFree(1e-3), schedule=Constant(), train=FREE),
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


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("data") / "doll"
    write_dataset(out, seed=1, outfits=2, images_per_outfit=6, size=32)
    return out


def work(model: StableDiffusion, folder: Path, cache: Path, run: Run = ADAMW, slots: int = 1) -> TrainingContext:
    dataset = load_dataset(DatasetSettings(path=str(folder)))
    adapter = attach(model.modules, run.adapter, slots=slots)
    return TrainingContext(model, adapter, dataset, LatentCache(model, cache), PromptCache(model))


def train_all(context: TrainingContext, *waiting: Job) -> list[Checkpoint]:
    queue, taken = iter(waiting), []
    try:
        for ready in train(lambda: next(queue, None), context):
            taken += [slot.checkpoint for slot in ready if slot.checkpoint]
    finally:
        context.adapter.detach()
    return taken


def same(a: Checkpoint, b: Checkpoint) -> bool:
    return a.state.keys() == b.state.keys() and all(torch.equal(a.state[k], b.state[k]) for k in a.state)


def test_same_seed_same_lora_and_trials_share_nothing(
    run: Run, tiny_model: StableDiffusion, folder: Path, tmp_path: Path
) -> None:
    alone = train_all(work(tiny_model, folder, tmp_path, run), Job(run))
    other = replace(run, train=replace(run.train, seed=9))
    second = train_all(work(tiny_model, folder, tmp_path, run), Job(other), Job(run))
    assert [c.step for c in alone] == [10, 20, 30]
    assert alone[-1].done and not alone[0].done
    assert same(alone[-1], second[-1]) and alone[-1].val_loss == second[-1].val_loss
    assert not same(alone[-1], second[2])


def test_resumed_equals_uninterrupted(run: Run, tiny_model: StableDiffusion, folder: Path, tmp_path: Path) -> None:
    whole = train_all(work(tiny_model, folder, tmp_path, run), Job(run))
    checkpoint.save(whole[0], tmp_path / "latest.pt")
    resumed = train_all(work(tiny_model, folder, tmp_path, run), Job(run, checkpoint.load(tmp_path / "latest.pt", run)))
    assert [c.step for c in resumed] == [10, 20, 30]
    assert all(same(a, b) and a.train_loss == b.train_loss for a, b in zip(whole, resumed, strict=True))


@pytest.fixture
def init(tiny_model: StableDiffusion, tmp_path: Path) -> Path:
    """A LoRA file in kohya's names, of a smaller rank and another scale than the run's."""
    spec = LoRA(dim=1, alpha=0.7)
    return export_lora(
        random_state(tiny_model, spec), world_run(spec), world(), tiny_model, tmp_path, "init", facts=FACTS
    ).path


def starting(path: Path) -> Run:
    return replace(ADAMW, init_lora=InitFile(str(path), hashlib.sha256(path.read_bytes()).hexdigest()))


def test_training_starts_from_a_file(tiny_model: StableDiffusion, folder: Path, tmp_path: Path, init: Path) -> None:
    """Before the first step the model is what the file makes of it; what is trained and resumed goes on from there."""
    run, noisy = starting(init), torch.randn(1, *tiny_model.latent_shape, generator=torch.Generator().manual_seed(0))
    steps, context = torch.tensor([500]), tiny_model.encode_prompts(["1girl"])
    context = work(tiny_model, folder, tmp_path, run)
    with torch.no_grad():
        base = tiny_model.predict(noisy, steps, context)
        context.adapter.load(read_lora(init, tiny_model))
        expected = tiny_model.predict(noisy, steps, context)
        TrainingSlot(0, Job(run), context)
        found = tiny_model.predict(noisy, steps, context)
    context.adapter.detach()
    assert torch.allclose(found, expected, atol=1e-5) and not torch.allclose(found, base, atol=1e-3)
    whole = train_all(work(tiny_model, folder, tmp_path, run), Job(run))
    plain = train_all(work(tiny_model, folder, tmp_path), Job(ADAMW))
    assert not same(whole[0], plain[0])
    checkpoint.save(whole[0], tmp_path / "latest.pt")
    resumed = train_all(work(tiny_model, folder, tmp_path), Job(run, checkpoint.load(tmp_path / "latest.pt", run)))
    assert all(same(a, b) and a.train_loss == b.train_loss for a, b in zip(whole, resumed, strict=True))


def test_a_run_is_told_from_others_by_what_it_starts_from(tmp_path: Path) -> None:
    for name, content in (("a", b"one"), ("b", b"one"), ("c", b"two")):
        (tmp_path / name).write_bytes(content)
    a, b, c = (starting(tmp_path / name) for name in "abc")
    assert a.fingerprint() == b.fingerprint() != c.fingerprint()
    assert ADAMW.fingerprint() not in (a.fingerprint(), c.fingerprint())
    assert str(tmp_path) not in json.dumps(a.settings())


def test_a_file_that_does_not_fit_is_refused_before_training(tiny_model: StableDiffusion, init: Path) -> None:
    run = starting(init)
    check_start(run, tiny_model)
    with pytest.raises(ConfigError, match=r"init_lora=.*init\.safetensors with recipe adamw: it holds lora"):
        check_start(replace(run, adapter=LoHa(dim=2, alpha=1)), tiny_model)
    assert not any(isinstance(module, AdaptedLayer) for module in tiny_model.unet.modules())


def test_a_finished_checkpoint_comes_again_without_a_step(
    tiny_model: StableDiffusion, folder: Path, tmp_path: Path
) -> None:
    whole = train_all(work(tiny_model, folder, tmp_path), Job(ADAMW))
    again = train_all(work(tiny_model, folder, tmp_path), Job(ADAMW, whole[-1]), Job(PRODIGY))
    assert again[0] is whole[-1]
    assert [(c.run.name, c.step) for c in again[1:]] == [("prodigy", 10), ("prodigy", 20), ("prodigy", 30)]


def test_two_slots_train_as_two_single_runs(tiny_model: StableDiffusion, folder: Path, tmp_path: Path) -> None:
    other = replace(ADAMW, optimizer=AdamW(lr=3e-4), train=replace(ADAMW.train, seed=4, scale_weight_norms=None))
    packed = train_all(work(tiny_model, folder, tmp_path, slots=2), Job(ADAMW), Job(other))
    for run in (ADAMW, other):
        single = train_all(work(tiny_model, folder, tmp_path), Job(run))[-1]
        twin = next(c for c in packed if c.run == run and c.done)
        assert twin.train_loss == pytest.approx(single.train_loss, rel=1e-4)
        assert twin.val_loss == pytest.approx(single.val_loss, rel=1e-4)


def test_a_slot_without_a_run_costs_nothing(
    tiny_model: StableDiffusion, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = replace(ADAMW, train=replace(ADAMW.train, seed=4, epochs=6))
    sizes, predict = Counter[int](), StableDiffusion.predict

    def counted(self: StableDiffusion, noisy: torch.Tensor, *rest: Any) -> torch.Tensor:
        sizes[len(noisy)] += torch.is_grad_enabled()
        return predict(self, noisy, *rest)

    monkeypatch.setattr(StableDiffusion, "predict", counted)
    train_all(work(tiny_model, folder, tmp_path, slots=3), Job(ADAMW), Job(long))
    assert {size for size, count in sizes.items() if count} == {2, 2 * 2, 4, 2 * 4}


@pytest.mark.parametrize("optimizer", [AdamW(lr=1e-3), Prodigy()], ids=["adamw", "prodigy"])
def test_a_slot_filled_again_midway_trains_as_a_run_alone(
    optimizer: AdamW | Prodigy, tiny_model: StableDiffusion, folder: Path, tmp_path: Path
) -> None:
    short, beside = (replace(ADAMW, train=replace(ADAMW.train, epochs=n, seed=n)) for n in (1, 3))
    last = replace(preserving(0.5), optimizer=optimizer)
    last = replace(last, train=replace(last.train, min_lora_multiplier=0.7, caption_dropout_rate=0.2))

    def context(slots: int) -> TrainingContext:
        made = work(tiny_model, folder, tmp_path, slots=slots)
        return replace(made, class_pictures=class_pictures_of(made))

    alone = train_all(context(1), Job(last))
    packed = train_all(context(2), Job(short), Job(beside), Job(last))
    for one, other in zip(alone, [c for c in packed if c.run == last], strict=True):
        assert one.val_loss == pytest.approx(other.val_loss, rel=1e-5)
        assert one.train_loss == pytest.approx(other.train_loss, rel=1e-5)


def test_a_stopped_slot_takes_the_next_run(tiny_model: StableDiffusion, folder: Path, tmp_path: Path) -> None:
    queue = iter([Job(ADAMW), Job(PRODIGY)])
    context, seen = work(tiny_model, folder, tmp_path), []
    for ready in train(lambda: next(queue, None), context):
        seen.append((ready[0].run.name, ready[0].step))
        if ready[0].run is ADAMW:
            ready[0].stop()
    context.adapter.detach()
    assert seen == [("adamw", 10), ("prodigy", 10), ("prodigy", 20), ("prodigy", 30)]


def test_the_ledger_is_what_is_shown(tiny_model: StableDiffusion, folder: Path, tmp_path: Path) -> None:
    context = work(tiny_model, folder, tmp_path)
    context.adapter.detach()
    stream, shown = Stream(ADAMW, context.dataset, tiny_model), Counter[str]()
    for _ in range(ADAMW.optimizer_steps(context.dataset)):
        shown.update(picture.concept for picture in stream.next_batch().pictures)
    ledger = make_step_table(context.dataset, ADAMW.images_by_concept(context.dataset), ADAMW.train.epochs)
    assert shown == {row.concept: row.steps_total for row in ledger.concepts}
    assert sum(shown.values()) == ledger.steps_total


def test_divergence_ends_the_run_and_says_so(tiny_model: StableDiffusion, folder: Path, tmp_path: Path) -> None:
    context = work(tiny_model, folder, tmp_path)
    wild = replace(
        ADAMW,
        optimizer=AdamW(lr=0.99, weight_decay=0.0),
        train=replace(ADAMW.train, scale_weight_norms=None, epochs=40),
    )
    queue, last = iter([Job(wild)]), None
    for ready in train(lambda: next(queue, None), context):
        with torch.no_grad():
            context.adapter.deltas[0].up.fill_(float("nan"))
        last = ready[0].checkpoint
        if last and last.step > 60:
            break
    context.adapter.detach()
    assert last is not None and last.diverged and last.done and last.step == 20


def test_latents_are_cached_by_content(tiny_model: StableDiffusion, folder: Path, tmp_path: Path) -> None:
    dataset = load_dataset(DatasetSettings(path=str(folder)))
    first = LatentCache(tiny_model, tmp_path).latents(dataset.pictures)
    files = {p: p.stat().st_mtime_ns for p in tmp_path.iterdir()}
    again = LatentCache(tiny_model, tmp_path).latents(dataset.pictures)
    assert torch.equal(first, again)
    assert files == {p: p.stat().st_mtime_ns for p in tmp_path.iterdir()} and len(files) == len(dataset.pictures)


def test_prompt_cache_is_bounded(tiny_model: StableDiffusion) -> None:
    cache = PromptCache(tiny_model, size=3)
    expected = tiny_model.encode_prompts(["b"])
    for words in (["a", "b"], ["c", "d"], ["b"]):
        found = cache.contexts(words, False)
    assert torch.allclose(found.tokens, expected.tokens, atol=1e-6)
    assert len(cache._known) == 3


def test_prompt_cache_is_bounded_in_memory(tiny_model: StableDiffusion, monkeypatch: pytest.MonkeyPatch) -> None:
    each = tiny_model.encode_prompts(["a"]).nbytes
    monkeypatch.setattr(caches, "MOST_CONTEXT_BYTES", 2 * each + 1)
    cache = PromptCache(tiny_model)
    for words in (["a", "b", "c"], ["d"], ["c"], ["e"]):
        assert len(cache.contexts(words, False)) == len(words)
    assert list(cache._known) == ["c", "e"] and cache._bytes == 2 * each


def test_global_randomness_is_left_alone(tiny_model: StableDiffusion, folder: Path, tmp_path: Path) -> None:
    before = torch.get_rng_state()
    train_all(work(tiny_model, folder, tmp_path), Job(replace(ADAMW, train=replace(ADAMW.train, epochs=1))))
    assert torch.equal(before, torch.get_rng_state())


def test_generators_are_apart() -> None:
    made = batches.generators(0)
    draws = [float(torch.rand((), generator=g)) for g in made.values()]
    assert len(set(draws)) == len(batches.PURPOSES)


def test_a_checkpoint_of_another_recipe_is_refused(tiny_model: StableDiffusion, folder: Path, tmp_path: Path) -> None:
    taken = train_all(work(tiny_model, folder, tmp_path), Job(replace(ADAMW, train=replace(ADAMW.train, epochs=1))))
    checkpoint.save(taken[0], tmp_path / "c.pt")
    with pytest.raises(StudyError, match="belongs to another recipe"):
        checkpoint.load(tmp_path / "c.pt", PRODIGY)
    (tmp_path / "c.pt").write_bytes(b"half")
    with pytest.raises(StudyError, match="cannot be read"):
        checkpoint.load(tmp_path / "c.pt", PRODIGY)


def preserving(share: float) -> Run:
    return replace(
        ADAMW,
        train=replace(
            ADAMW.train, prior_preservation_ratio=share, caption_dropout_rate=0.5, class_caption_dropout_rate=0.5
        ),
    )


def class_pictures_of(context: TrainingContext) -> tuple[Picture, ...]:
    return tuple(replace(p, caption="1girl", concept="") for p in context.dataset.validation)


def test_what_is_preserved_is_shown_as_often_as_the_share_says(
    tiny_model: StableDiffusion, folder: Path, tmp_path: Path
) -> None:
    context = work(tiny_model, folder, tmp_path)
    context.adapter.detach()
    run, trigger = preserving(0.5), context.dataset.trigger
    stream = Stream(run, context.dataset, tiny_model, class_pictures_of(context))
    shown = [stream.next_batch() for _ in range(run.optimizer_steps(context.dataset))]
    flagged = [(c, p) for batch in shown for c, p in zip(batch.captions, batch.preserved, strict=True)]
    kept, own = [c for c, flag in flagged if flag], [c for c, flag in flagged if not flag]
    plain = [c for c in kept if c in ("1girl", "")]
    ledger = make_step_table(context.dataset, (5, 5), 3, run.class_images_per_epoch(context.dataset))
    assert ledger.class_images == {"class images": 4, "without triggers": 1, "regularization": 0}
    assert len(flagged) == ledger.steps_total == 3 * (10 + 5)
    assert len(plain) == 3 * 4 and 0 < plain.count("") < len(plain)  # class pictures lose their caption as own ones do
    assert len(kept) == 3 * 5  # and those without triggers never
    assert not any(trigger in caption for caption in kept)
    assert 0 < own.count("") < len(own) and all(trigger in caption for caption in own if caption)
    with pytest.raises(ValueError, match="no class pictures"):
        Stream(run, context.dataset, tiny_model)


@pytest.mark.parametrize(("min_character_images", "each"), [(0, 5), (10, 5), (15, 8)])
def test_few_concepts_are_shown_oftener_for_the_sake_of_the_main_one(
    min_character_images: int, each: int, tiny_model: StableDiffusion, folder: Path, tmp_path: Path
) -> None:
    context = work(tiny_model, folder, tmp_path)
    context.adapter.detach()
    run = replace(ADAMW, train=replace(preserving(0.5).train, min_character_images=min_character_images, epochs=1))
    stream = Stream(run, context.dataset, tiny_model, class_pictures_of(context))
    shown = [stream.next_batch() for _ in range(run.optimizer_steps(context.dataset))]
    drawn = Counter(
        picture.concept for b in shown for picture, kept in zip(b.pictures, b.preserved, strict=True) if not kept
    )
    assert drawn == {concept.name: each for concept in context.dataset.concepts}
    assert sum(run.class_images_per_epoch(context.dataset).values()) == round(each * 2 * 0.5)


def test_half_of_the_pictures_are_trained_at_the_lower_weight_and_preserved_at_full_weight(
    tiny_model: StableDiffusion, folder: Path, tmp_path: Path
) -> None:
    context = work(tiny_model, folder, tmp_path)
    context.adapter.detach()
    run = replace(ADAMW, train=replace(preserving(0.5).train, min_lora_multiplier=0.7))
    stream = Stream(run, context.dataset, tiny_model, class_pictures_of(context))
    shown = [stream.next_batch() for _ in range(run.optimizer_steps(context.dataset))]
    drawn = Counter((flag, round(float(w), 4)) for b in shown for flag, w in zip(b.preserved, b.weights, strict=True))
    assert set(drawn) == {(False, 0.7), (False, 1.0), (True, 1.0)}
    assert min(drawn[False, 0.7], drawn[False, 1.0]) > 0.25 * 30


def test_a_step_at_half_the_weight_is_a_step_at_half_the_alpha(
    tiny_model: StableDiffusion, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = replace(ADAMW, train=replace(ADAMW.train, scale_weight_norms=None, epochs=1))
    halved = replace(plain, adapter=LoRA(dim=2, alpha=1.0))
    expected = train_all(work(tiny_model, folder, tmp_path), Job(halved))[-1]
    whole = Stream.next_batch
    monkeypatch.setattr(
        Stream, "next_batch", lambda self: replace(b := whole(self), weights=torch.full_like(b.weights, 0.5))
    )
    weighted = replace(plain, adapter=LoRA(dim=2, alpha=2.0))
    found = train_all(work(tiny_model, folder, tmp_path), Job(weighted))[-1]
    assert found.train_loss == pytest.approx(expected.train_loss, rel=1e-5)
    for key in found.state:
        if not key.endswith("alpha"):
            assert torch.allclose(found.state[key], expected.state[key], atol=1e-5)


def test_a_run_that_preserves_nothing_is_what_it_was(tiny_model: StableDiffusion, folder: Path, tmp_path: Path) -> None:
    alone = train_all(work(tiny_model, folder, tmp_path), Job(ADAMW))[-1]
    again = work(tiny_model, folder, tmp_path)
    beside = train_all(replace(again, class_pictures=class_pictures_of(again)), Job(ADAMW))[-1]
    assert same(alone, beside)


def test_what_is_preserved_pulls_back_to_the_base_model(
    tiny_model: StableDiffusion, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The base model's own answer as the target: no loss before the first step, and a loss after it strays."""
    context = work(tiny_model, folder, tmp_path)
    context = replace(context, class_pictures=class_pictures_of(context))
    slot = TrainingSlot(0, Job(preserving(0.5)), context)
    whole = Stream.next_batch
    monkeypatch.setattr(
        Stream, "next_batch", lambda self: replace(b := whole(self), preserved=(True,) * len(b.pictures))
    )
    train_step(context, {0: slot})
    with torch.no_grad():
        for layer in context.adapter.deltas:
            layer.up.normal_(generator=torch.Generator().manual_seed(0))
    train_step(context, {0: slot})
    context.adapter.detach()
    assert float(slot.losses[0]) == 0.0
    assert float(slot.losses[1]) > 1e-4


def test_a_resumed_run_that_preserves_equals_the_uninterrupted(
    tiny_model: StableDiffusion, folder: Path, tmp_path: Path
) -> None:
    def context() -> TrainingContext:
        made = work(tiny_model, folder, tmp_path)
        return replace(made, class_pictures=class_pictures_of(made))

    whole = train_all(context(), Job(preserving(0.5)))
    resumed = train_all(context(), Job(preserving(0.5), whole[0]))
    assert [c.step for c in resumed] == [15, 30, 45]
    assert all(same(a, b) for a, b in zip(whole, resumed, strict=True))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"schedule": CosineRestarts(), "train": FREE}, "set schedule=constant"),
        ({"schedule": Constant(), "train": ADAMW.train}, "max_norm would not cap"),
    ],
)
def test_what_a_schedule_free_optimizer_cannot_have_is_refused(wrong: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        replace(ADAMW, optimizer=ScheduleFree(), **wrong)  # type: ignore[arg-type]


def test_what_is_judged_of_a_schedule_free_run_is_its_average(
    tiny_model: StableDiffusion, folder: Path, tmp_path: Path
) -> None:
    """While a checkpoint is judged the adapter holds what the checkpoint saved, not what the next step starts from."""
    context, queue = work(tiny_model, folder, tmp_path, RUNS["schedule-free"]), iter([Job(RUNS["schedule-free"])])
    for (slot,) in train(lambda: next(queue, None), context):
        assert slot.checkpoint is not None
        held = context.adapter.state(0)
        assert all(torch.equal(held[key], tensor) for key, tensor in slot.checkpoint.state.items())
        slot.set_mode("train")
        stepping = context.adapter.state(0)
        assert slot.step == 10 or any(not torch.allclose(stepping[k], t, rtol=1e-5) for k, t in held.items())
    context.adapter.detach()
