"""Scorecards of made-up embeddings: which constraint is broken, how checkpoints rank, what the verdict is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from autolora.models.settings import RenderSettings
from autolora.scoring.embeddings import Embeddings
from autolora.scoring.encoders import Encoder
from autolora.scoring.eval_prompts import EvalPrompt
from autolora.scoring.intervals import Estimate
from autolora.scoring.references import Reference, ReferenceImages, References, SoftThreshold
from autolora.scoring.scorecard import Rendered, Scorecard, constraint_violations, recommended_weight, score
from autolora.scoring.scorer import Scorer
from autolora.scoring.settings import ScoringSettings
from autolora.scoring.terms import LinearDiscriminant

SETTINGS = ScoringSettings(
    outfit_prompts=("a", "b"),
    n_bootstrap=100,
    max_bleed=0.3,
    min_editability=0.5,
    min_fidelity=0.4,
    diversity_range=(0, 1e9),  # bleed in some renders changes diversity too; test_failure_metrics tests it
)
PROMPTS = 6
WEIGHTS = (0.7, 1.0)
CHARACTER = np.eye(1 + PROMPTS)[0]  # the character is one axis, each prompt of `novel` another


class Passthrough:
    """An encoder for images whose first values are their embedding."""

    name = "made-up"

    def embed_pooled(self, images: np.ndarray) -> np.ndarray:
        return images.reshape(len(images), -1)[:, : 1 + PROMPTS]

    def embed(self, images: np.ndarray) -> Embeddings:
        return twice(self.embed_pooled(images))

    def embed_texts(self, prompts: list[str]) -> np.ndarray:
        raise NotImplementedError


def twice(rows: np.ndarray) -> Embeddings:
    return Embeddings(rows, rows)


def canvas(rows: np.ndarray, noise: np.random.Generator) -> np.ndarray:
    """Return images of noise that contain embeddings."""
    images = noise.uniform(0, 255, (len(rows), 16, 16, 3))
    images.reshape(len(rows), -1)[:, : 1 + PROMPTS] = rows
    return images


def eval_prompts() -> tuple[EvalPrompt, ...]:
    groups = ("trigger", "novel", "class_only")
    return tuple(
        EvalPrompt(g, "mona" if g == "trigger" else "", f"{g} {i}", "", (0, 1)) for g in groups for i in range(6)
    )


def made_up(likeness: float, follows: float, bleed: float, bleed_only_at: float | None = None) -> Scorecard:
    """Return the scorecard of renders of which these shares show the character."""
    noise = np.random.default_rng(0)
    scorer = made_up_scorer(noise)
    return score(scorer, renders(scorer, noise, likeness, follows, bleed, bleed_only_at))


def text_embeddings(prompts: Sequence[EvalPrompt]) -> dict[EvalPrompt, np.ndarray]:
    return {p: np.eye(1 + PROMPTS)[1 + i % PROMPTS] for i, p in enumerate(prompts)}


def made_up_scorer(noise: np.random.Generator) -> Scorer:
    prompts = eval_prompts()
    texts = text_embeddings(prompts)
    base = {p: np.stack([texts[p] + noise.normal(0, 0.01, 7) for _ in p.seeds]) for p in prompts}
    validation = np.tile(CHARACTER, (4, 1))
    reference = Reference(
        "mona", (SoftThreshold("pooled", LinearDiscriminant(CHARACTER), 0.5, 0.1),), np.full(4, 1.0), twice(validation)
    )
    encoder: Encoder = Passthrough()  # type: ignore[assignment]
    return Scorer(
        SETTINGS,
        RenderSettings(),
        encoder,
        prompts,
        {p: twice(rows) for p, rows in base.items()},
        {p: canvas(base[p], noise) for p in prompts},
        texts,
        ReferenceImages(
            "mona", {"mona": canvas(validation, noise)}, {"mona": canvas(validation, noise)}, canvas(validation, noise)
        ),
        References((reference,), reference, reference, training=np.zeros((0, 7))),
    )


def renders(
    scorer: Scorer,
    noise: np.random.Generator,
    likeness: float,
    follows: float,
    bleed: float,
    bleed_only_at: float | None = None,
) -> Rendered:
    shares = {"trigger": (likeness, 1.0), "novel": (likeness, follows), "class_only": (bleed, 1.0)}
    texts, images = text_embeddings(scorer.prompts), {}
    for i, p in enumerate(scorer.prompts):
        for weight in WEIGHTS:
            with_character, following = shares[p.group]
            if p.group == "class_only" and bleed_only_at not in (None, weight):
                with_character = 0.0
            places = [(i % PROMPTS + PROMPTS * k) / (PROMPTS * len(p.seeds)) for k in range(len(p.seeds))]
            rows = [
                following * texts[p] + (place < with_character) * CHARACTER + noise.normal(0, 0.01, 7)
                for place in places
            ]
            images[p, weight] = canvas(np.stack(rows), noise)
    return images  # type: ignore[return-value]


def test_a_good_lora_breaks_nothing_and_scores_high() -> None:
    card = made_up(likeness=0.75, follows=0.9, bleed=0.0)
    assert card.broken == []
    assert card.objective == card.score.value == pytest.approx(2 * 0.75 * 0.9 / 1.65, abs=0.03)
    assert card.verdict.startswith("good")


@pytest.mark.parametrize(
    ("shares", "broken", "word"),
    [
        ({"likeness": 1.0, "follows": 1.0, "bleed": 0.8}, "bleed_class", "overcooked"),
        ({"likeness": 0.0, "follows": 1.0, "bleed": 0.0}, "undercooked", "undercooked"),
        ({"likeness": 1.0, "follows": 0.1, "bleed": 0.0}, "editability", "inflexible"),
    ],
)
def test_each_fault_breaks_its_own_constraint(shares: dict[str, float], broken: str, word: str) -> None:
    card = made_up(**shares)
    assert card.broken == [broken]
    assert card.verdict.startswith(word)


def test_fidelity_is_half_the_character_and_a_quarter_each_the_mean_and_the_minimum_of_its_concepts() -> None:
    noise = np.random.default_rng(0)
    scorer = made_up_scorer(noise)
    mona = scorer.references.character
    opposite = SoftThreshold("pooled", LinearDiscriminant(-CHARACTER), 0.5, 0.1)
    never = replace(mona, name="suit", thresholds=(*mona.thresholds, opposite))
    suited = {p: replace(p, concept="suit") if p.prompt in ("trigger 1", "trigger 4") else p for p in scorer.prompts}
    rendered = {(suited[p], w): images for (p, w), images in renders(scorer, noise, 1.0, 1.0, 0.0).items()}
    two = replace(
        scorer,
        prompts=tuple(suited.values()),
        base_embeddings={suited[p]: rows for p, rows in scorer.base_embeddings.items()},
        base_renders={suited[p]: images for p, images in scorer.base_renders.items()},
        text_embeddings={suited[p]: text for p, text in scorer.text_embeddings.items()},
        references=replace(scorer.references, concepts=(mona, never)),
    )
    terms = score(two, rendered).by_weight["1"]
    assert terms["likeness"].value == pytest.approx(1, abs=0.02)
    assert terms["fidelity"].value == pytest.approx(0.5 * 1 + 0.25 * (1 + 0) / 2 + 0.25 * 0, abs=0.02)


def test_a_metric_that_cannot_be_measured_has_a_reason() -> None:
    card = made_up(1.0, 1.0, 0.0)
    assert card.unmeasurable.keys() == {"bleed_cross", "memorisation"}
    assert "one concept" in card.unmeasurable["bleed_cross"]
    assert not card.unmeasurable.keys() & card.terms.keys()


def test_likeness_does_not_make_up_for_bleed() -> None:
    modest, bleeding = made_up(0.75, 0.7, 0.0), made_up(1.0, 1.0, 0.35)
    assert bleeding.score.value > modest.score.value
    assert bleeding.objective < 0 < modest.objective


def test_bleed_above_its_limit_is_subtracted_from_the_score() -> None:
    limit = SETTINGS.max_bleed
    assert made_up(1.0, 1.0, 0.75).score.value == pytest.approx(1 - (0.75 - limit), abs=0.03)
    assert made_up(1.0, 1.0, 0.75, bleed_only_at=1.0).score.value == pytest.approx(1 - (0.75 - limit) / 2, abs=0.03)


def test_bleed_is_0_if_the_base_model_shows_more_of_the_character() -> None:
    """Without clipping, the interval of a value slightly below 0 would not contain 0."""
    scorer = made_up_scorer(np.random.default_rng(0))
    base = {p: twice(np.tile(row, (2, 1)) + 0.4 * CHARACTER) for p, row in scorer.text_embeddings.items()}
    scorer = replace(scorer, base_embeddings=base)
    rendered = renders(scorer, np.random.default_rng(0), likeness=1.0, follows=1.0, bleed=0.0)
    bleed = score(scorer, rendered).by_weight["1"]["bleed_class"]
    assert bleed.value == bleed.low == 0 < bleed.high


@pytest.mark.parametrize(("name", "fault"), [("fidelity", "undercooked"), ("editability", "editability")])
def test_the_whole_interval_must_reach_a_minimum(name: str, fault: str) -> None:
    sure = {"fidelity": Estimate(1, 1, 1), "editability": Estimate(1, 1, 1)}
    sure |= {"bleed_class": Estimate(0, 0, 0), "burn": Estimate(0, 0, 0)}
    limit = {"fidelity": SETTINGS.min_fidelity, "editability": SETTINGS.min_editability}[name]
    unsure = Estimate(limit + 0.1, limit - 0.1, limit + 0.3)
    broken = constraint_violations({"1": sure | {name: unsure}}, SETTINGS)
    assert [fault] == [key for key, value in broken.items() if value > 0]


@pytest.mark.parametrize(("weaker", "broken"), [((0.7, 0.6, 0.8), ["too_strong"]), ((0.6, 0.45, 0.7), [])])
def test_less_fidelity_at_the_strongest_weight_is_too_strong(
    weaker: tuple[float, float, float], broken: list[str]
) -> None:
    sure = {"editability": Estimate(1, 1, 1), "bleed_class": Estimate(0, 0, 0), "burn": Estimate(0, 0, 0)}
    strongest = Estimate(0.45, 0.4, 0.5)
    by_weight = {"1": sure | {"fidelity": strongest}, "0.7": sure | {"fidelity": Estimate(*weaker)}}
    violations = constraint_violations(by_weight, replace(SETTINGS, min_fidelity=0.4))
    assert [name for name, value in violations.items() if value > 0] == broken


def test_with_one_weight_too_strong_is_not_checked() -> None:
    sure = {name: Estimate(0, 0, 0) for name in ("fidelity", "editability", "bleed_class", "burn")}
    assert "too_strong" not in constraint_violations({"1": sure}, SETTINGS)


def test_a_less_broken_checkpoint_ranks_higher() -> None:
    assert made_up(1.0, 1.0, 0.9).objective < made_up(1.0, 1.0, 0.5).objective


def test_the_recommended_weight_does_not_bleed() -> None:
    assert made_up(1.0, 1.0, 0.8, bleed_only_at=1.0).weight == 0.7
    assert made_up(1.0, 1.0, 0.8).weight == 0.7  # nothing is feasible


@pytest.mark.parametrize(
    ("fidelity", "bleed", "weight"),
    [
        ([0.0, 0.5, 0.9, 0.9], [0.0, 0.0, 0.0, 0.0], 1.0),  # equal fidelity: the smaller weight
        ([0.0, 0.86, 0.9, 0.9], [0.0, 0.0, 0.0, 0.0], 0.7),  # within 95%
        ([0.0, 0.5, 0.9, 0.1], [0.0, 0.0, 0.0, 0.0], 1.0),
        ([0.0, 0.5, 0.9, 0.9], [0.0, 0.1, 0.31, 0.4], 0.7),
        ([0.0, 0.5, 0.9, 0.9], [0.4, 0.4, 0.4, 0.4], 0.49),
        ([-0.4, -0.3, -0.2, -0.1], [0.0, 0.0, 0.0, 0.0], 1.3),  # nothing was learnt
    ],
)
def test_the_recommended_weight_is_the_smallest_good_one_within_the_bleed_limit(
    fidelity: list[float], bleed: list[float], weight: float
) -> None:
    by_weight = {
        name: {"fidelity": Estimate(f, 0, 1), "editability": Estimate(1, 0, 1), "bleed_class": Estimate(0, 0, b)}
        for name, f, b in zip(("0.49", "0.7", "1", "1.3"), fidelity, bleed, strict=True)
    }
    assert recommended_weight(by_weight, replace(SETTINGS, max_bleed=0.3)) == weight


def test_what_all_renders_share_does_not_lower_editability() -> None:
    """A character that no prompt describes has its own axis."""
    assert made_up(1.0, 1.0, 0.0).terms["editability"].value == pytest.approx(1, abs=0.02)


def test_the_bleed_rate_counts_renders_that_pass_for_the_character() -> None:
    assert made_up(1.0, 1.0, 0.75).bleed_rate == {"0.7": 0.75, "1": 0.75}
    assert made_up(1.0, 1.0, 0.0).bleed_rate == {"0.7": 0.0, "1": 0.0}


@pytest.mark.parametrize("group", ["trigger", "novel"])
def test_oversaturation_in_one_group_of_prompts_is_enough(group: str) -> None:
    noise = np.random.default_rng(0)
    scorer = made_up_scorer(noise)
    rendered = renders(scorer, noise, 0.75, 0.9, 0.0)
    before = score(scorer, rendered)
    for (prompt, _), images in rendered.items():
        if prompt.group == group:
            images[:, 1:] = np.where(images[:, 1:] < 128, 0, 255)  # the first row contains the embeddings
    assert "burn" not in before.broken
    assert score(scorer, rendered).broken == ["burn"]
