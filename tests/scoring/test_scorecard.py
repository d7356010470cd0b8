"""Scorecards of a made-up embedding world: which constraint breaks, how checkpoints rank, what is said."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from autolora.models.settings import RenderSettings
from autolora.scoring.encoders import Embeddings, Encoder
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
    diversity_range=(0, 1e9),  # a share of bleeding renders scatters too, which is test_defects' business
)
PROMPTS = 6
WEIGHTS = (0.7, 1.0)
CHARACTER = np.eye(1 + PROMPTS)[0]  # the character is one axis, each prompt of `novel` another


class Passthrough:
    """Pictures that hold their own embeddings in their first values."""

    name = "made-up"

    def embed_pooled(self, pictures: np.ndarray) -> np.ndarray:
        return pictures.reshape(len(pictures), -1)[:, : 1 + PROMPTS]

    def embed(self, pictures: np.ndarray) -> Embeddings:
        return twice(self.embed_pooled(pictures))

    def embed_texts(self, prompts: list[str]) -> np.ndarray:
        raise NotImplementedError


def twice(rows: np.ndarray) -> Embeddings:
    return Embeddings(rows, rows)


def canvas(rows: np.ndarray, noise: np.random.Generator) -> np.ndarray:
    """Pictures of noise that hold embeddings."""
    pictures = noise.uniform(0, 255, (len(rows), 16, 16, 3))
    pictures.reshape(len(rows), -1)[:, : 1 + PROMPTS] = rows
    return pictures


def eval_prompts() -> tuple[EvalPrompt, ...]:
    groups = ("trigger", "novel", "class_only")
    return tuple(
        EvalPrompt(g, "mona" if g == "trigger" else "", f"{g} {i}", "", (0, 1)) for g in groups for i in range(6)
    )


def made_up(likeness: float, follows: float, bleed: float, overcooked_at: float | None = None) -> Scorecard:
    """The card of renders of which these shares show the character; bleed only at one weight if so asked."""
    noise = np.random.default_rng(0)
    scorer = made_up_scorer(noise)
    return score(scorer, renders(scorer, noise, likeness, follows, bleed, overcooked_at))


def text_of(suite: Sequence[EvalPrompt]) -> dict[EvalPrompt, np.ndarray]:
    return {p: np.eye(1 + PROMPTS)[1 + i % PROMPTS] for i, p in enumerate(suite)}


def made_up_scorer(noise: np.random.Generator) -> Scorer:
    suite = eval_prompts()
    texts = text_of(suite)
    base = {p: np.stack([texts[p] + noise.normal(0, 0.01, 7) for _ in p.seeds]) for p in suite}
    validation = np.tile(CHARACTER, (4, 1))
    reference = Reference(
        "mona", (SoftThreshold("pooled", LinearDiscriminant(CHARACTER), 0.5, 0.1),), np.full(4, 1.0), twice(validation)
    )
    encoder: Encoder = Passthrough()  # type: ignore[assignment]
    return Scorer(
        SETTINGS,
        RenderSettings(),
        encoder,
        suite,
        {p: twice(rows) for p, rows in base.items()},
        {p: canvas(base[p], noise) for p in suite},
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
    overcooked_at: float | None = None,
) -> Rendered:
    shares = {"trigger": (likeness, 1.0), "novel": (likeness, follows), "class_only": (bleed, 1.0)}
    texts, pictures = text_of(scorer.prompts), {}
    for i, p in enumerate(scorer.prompts):
        for weight in WEIGHTS:
            shown, kept = shares[p.group]
            if p.group == "class_only" and overcooked_at not in (None, weight):
                shown = 0.0
            at = [(i % PROMPTS + PROMPTS * k) / (PROMPTS * len(p.seeds)) for k in range(len(p.seeds))]
            rows = [kept * texts[p] + (a < shown) * CHARACTER + noise.normal(0, 0.01, 7) for a in at]
            pictures[p, weight] = canvas(np.stack(rows), noise)
    return pictures  # type: ignore[return-value]


def test_a_good_lora_breaks_nothing_and_scores_high() -> None:
    card = made_up(likeness=0.75, follows=0.9, bleed=0.0)
    assert card.broken == []
    assert card.objective == card.score.value == pytest.approx(2 * 0.75 * 0.9 / 1.65, abs=0.03)
    assert card.verdict.startswith("good")


@pytest.mark.parametrize(
    ("shares", "broken", "said"),
    [
        ({"likeness": 1.0, "follows": 1.0, "bleed": 0.8}, "bleed_class", "overcooked"),
        ({"likeness": 0.0, "follows": 1.0, "bleed": 0.0}, "undercooked", "undercooked"),
        ({"likeness": 1.0, "follows": 0.1, "bleed": 0.0}, "editability", "stiff"),
    ],
)
def test_each_fault_breaks_its_own_constraint(shares: dict[str, float], broken: str, said: str) -> None:
    card = made_up(**shares)
    assert card.broken == [broken]
    assert card.verdict.startswith(said)


def test_fidelity_is_half_the_character_and_as_much_the_mean_as_the_worst_of_its_concepts() -> None:
    noise = np.random.default_rng(0)
    scorer = made_up_scorer(noise)
    mona = scorer.references.character
    never = replace(
        mona, name="suit", thresholds=(*mona.thresholds, SoftThreshold("pooled", LinearDiscriminant(-CHARACTER), 0.5, 0.1))
    )
    suited = {p: replace(p, concept="suit") if p.prompt in ("trigger 1", "trigger 4") else p for p in scorer.prompts}
    rendered = {(suited[p], w): own for (p, w), own in renders(scorer, noise, 1.0, 1.0, 0.0).items()}
    two = replace(
        scorer,
        prompts=tuple(suited.values()),
        base_embeddings={suited[p]: rows for p, rows in scorer.base_embeddings.items()},
        base_renders={suited[p]: own for p, own in scorer.base_renders.items()},
        text_embeddings={suited[p]: text for p, text in scorer.text_embeddings.items()},
        references=replace(scorer.references, concepts=(mona, never)),
    )
    terms = score(two, rendered).by_weight["1"]
    assert terms["likeness"].value == pytest.approx(1, abs=0.02)
    assert terms["fidelity"].value == pytest.approx(0.5 * 1 + 0.25 * (1 + 0) / 2 + 0.25 * 0, abs=0.02)


def test_what_cannot_be_measured_says_why() -> None:
    card = made_up(1.0, 1.0, 0.0)
    assert card.unmeasurable.keys() == {"bleed_cross", "memorisation"}
    assert "one concept" in card.unmeasurable["bleed_cross"]
    assert not card.unmeasurable.keys() & card.terms.keys()


def test_likeness_cannot_buy_bleed_off() -> None:
    modest, bleeding = made_up(0.75, 0.7, 0.0), made_up(1.0, 1.0, 0.35)
    assert bleeding.score.value > modest.score.value
    assert bleeding.objective < 0 < modest.objective


def test_bleed_above_its_limit_is_taken_off_the_score() -> None:
    limit = SETTINGS.max_bleed
    assert made_up(1.0, 1.0, 0.75).score.value == pytest.approx(1 - (0.75 - limit), abs=0.03)
    assert made_up(1.0, 1.0, 0.75, overcooked_at=1.0).score.value == pytest.approx(1 - (0.75 - limit) / 2, abs=0.03)


def test_bleed_is_a_share_though_the_base_model_shows_more_of_the_character() -> None:
    """Else an interval around a trifle below 0 would not hold 0."""
    scorer = made_up_scorer(np.random.default_rng(0))
    shown = {p: twice(rows + 0.4 * CHARACTER) for p, rows in scorer.text_embeddings.items() for rows in [np.tile(rows, (2, 1))]}
    scorer = replace(scorer, base=shown)
    pictures = renders(scorer, np.random.default_rng(0), likeness=1.0, follows=1.0, bleed=0.0)
    bleed = score(scorer, pictures).by_weight["1"]["bleed_class"]
    assert bleed.value == bleed.low == 0 < bleed.high


@pytest.mark.parametrize(("name", "fault"), [("fidelity", "undercooked"), ("editability", "editability")])
def test_what_must_be_reached_must_be_reached_by_the_whole_interval(name: str, fault: str) -> None:
    sure = {"fidelity": Estimate(1, 1, 1), "editability": Estimate(1, 1, 1)}
    sure |= {"bleed_class": Estimate(0, 0, 0), "burn": Estimate(0, 0, 0)}
    limit = {"fidelity": SETTINGS.min_fidelity, "editability": SETTINGS.min_editability}[name]
    unsure = Estimate(limit + 0.1, limit - 0.1, limit + 0.3)
    broken = constraint_violations({"1": sure | {name: unsure}}, SETTINGS)
    assert [fault] == [key for key, value in broken.items() if value > 0]


@pytest.mark.parametrize(("weaker", "broken"), [((0.7, 0.6, 0.8), ["too_strong"]), ((0.6, 0.45, 0.7), [])])
def test_what_shows_clearly_less_at_the_strongest_weight_is_too_strong(
    weaker: tuple[float, float, float], broken: list[str]
) -> None:
    sure = {"editability": Estimate(1, 1, 1), "bleed_class": Estimate(0, 0, 0), "burn": Estimate(0, 0, 0)}
    strongest = Estimate(0.45, 0.4, 0.5)
    by_weight = {"1": sure | {"fidelity": strongest}, "0.7": sure | {"fidelity": Estimate(*weaker)}}
    found = constraint_violations(by_weight, replace(SETTINGS, min_fidelity=0.4))
    assert [name for name, value in found.items() if value > 0] == broken


def test_one_weight_cannot_be_too_strong() -> None:
    sure = {name: Estimate(0, 0, 0) for name in ("fidelity", "editability", "bleed_class", "burn")}
    assert "too_strong" not in constraint_violations({"1": sure}, SETTINGS)


def test_less_broken_ranks_higher() -> None:
    assert made_up(1.0, 1.0, 0.9).objective < made_up(1.0, 1.0, 0.5).objective


def test_the_recommended_weight_does_not_bleed() -> None:
    assert made_up(1.0, 1.0, 0.8, overcooked_at=1.0).weight == 0.7
    assert made_up(1.0, 1.0, 0.8).weight == 0.7  # nothing is feasible


@pytest.mark.parametrize(
    ("fidelity", "bleed", "weight"),
    [
        ([0.0, 0.5, 0.9, 0.9], [0.0, 0.0, 0.0, 0.0], 1.0),  # the smaller of equals
        ([0.0, 0.86, 0.9, 0.9], [0.0, 0.0, 0.0, 0.0], 0.7),  # as good as
        ([0.0, 0.5, 0.9, 0.1], [0.0, 0.0, 0.0, 0.0], 1.0),
        ([0.0, 0.5, 0.9, 0.9], [0.0, 0.1, 0.31, 0.4], 0.7),
        ([0.0, 0.5, 0.9, 0.9], [0.4, 0.4, 0.4, 0.4], 0.49),
        ([-0.4, -0.3, -0.2, -0.1], [0.0, 0.0, 0.0, 0.0], 1.3),  # nothing learnt
    ],
)
def test_the_recommended_weight_is_the_smallest_that_is_as_good_and_within_the_limit(
    fidelity: list[float], bleed: list[float], weight: float
) -> None:
    by_weight = {
        name: {"fidelity": Estimate(f, 0, 1), "editability": Estimate(1, 0, 1), "bleed_class": Estimate(0, 0, b)}
        for name, f, b in zip(("0.49", "0.7", "1", "1.3"), fidelity, bleed, strict=True)
    }
    assert recommended_weight(by_weight, replace(SETTINGS, max_bleed=0.3)) == weight


def test_what_every_render_shares_costs_no_editability() -> None:
    """A character that no prompt describes stands on an axis of its own."""
    assert made_up(1.0, 1.0, 0.0).terms["editability"].value == pytest.approx(1, abs=0.02)


def test_capture_counts_renders_that_pass_for_the_character() -> None:
    assert made_up(1.0, 1.0, 0.75).bleed_rate == {"0.7": 0.75, "1": 0.75}
    assert made_up(1.0, 1.0, 0.0).bleed_rate == {"0.7": 0.0, "1": 0.0}


@pytest.mark.parametrize("group", ["trigger", "novel"])
def test_burn_of_one_group_of_prompts_is_enough(group: str) -> None:
    noise = np.random.default_rng(0)
    scorer = made_up_scorer(noise)
    rendered = renders(scorer, noise, 0.75, 0.9, 0.0)
    whole = score(scorer, rendered)
    for (probe, _), pictures in rendered.items():
        if probe.group == group:
            pictures[:, 1:] = np.where(pictures[:, 1:] < 128, 0, 255)  # the first row holds the embeddings
    assert "burn" not in whole.broken
    assert score(scorer, rendered).broken == ["burn"]
