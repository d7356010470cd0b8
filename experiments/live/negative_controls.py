"""Does each way of spoiling a LoRA break the constraint that is meant for it, and lose to the good one?

    python -m experiments.live.negative_controls --seeds 110 111 112 113

For each character one good recipe is trained, spoiled in eight ways, and judged by the whole suite of the finals; then
pictures that the world itself draws take the LoRA's place, which must score near 1, break nothing, and score the same
on other backgrounds. Writes experiments/results/score/negative_ladder.md, of all characters judged so far, and for each its
figures and a sheet of pictures.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageEnhance
from safetensors.torch import load_file, save_file

from autolora import config as cfg
from autolora.adapters.base import State
from autolora.adapters.formats import scaled
from autolora.adapters.kinds import LoRA
from autolora.data.captions import join_tags
from autolora.data.concepts import Concept, Dataset, edit_captions, without_triggers
from autolora.data.sources import Picture
from autolora.evaluation.samples import labelled
from autolora.evaluation.session import Session
from autolora.files import atomic_path, write_atomic
from autolora.paperdoll.drawing import draw
from autolora.paperdoll.look import GROUPS, Character, character_look, parse_prompt
from autolora.sampling import Images, to_uint8
from autolora.scoring.eval_prompts import EvalPrompt
from autolora.scoring.scorecard import Rendered, Scorecard, render_eval_prompts, score
from autolora.scoring.scorer import Scorer
from autolora.train.loop import train_one
from autolora.train.run import Run
from experiments.common.results import keep, kept
from experiments.replay.bank import character_of, open_character, whole_suite

RESULTS = Path(__file__).parents[1] / "results" / "score"
KEPT = RESULTS / "negative_ladder"
GOOD = ("recipe=doll-preserve",)  # as found on development characters
BLEEDING = (*GOOD, "train.prior_preservation_ratio=0")
TEN_TIMES = ("recipe=doll-adamw", "optimizer.lr=3e-2", "train.prior_preservation_ratio=0.5")


@dataclass(frozen=True)
class Case:
    """One way of spoiling a LoRA, and the constraints of which it must break one; none for what must break nothing."""

    name: str
    meant: tuple[str, ...]
    pictures: Callable[[], Rendered]


@dataclass(frozen=True)
class Judged:
    """A case and what the score says of it."""

    meant: Sequence[str]
    objective: float
    broken: Sequence[str]
    terms: Mapping[str, Mapping[str, Mapping[str, float]]]  # by weight and name

    @classmethod
    def of(cls, meant: Sequence[str], card: Scorecard) -> Judged:
        """What is kept of a scorecard."""
        terms = {w: {n: t.as_dict() for n, t in own.items()} for w, own in card.by_weight.items()}
        return cls(meant, card.objective, card.broken, terms)

    def right(self, good: Judged) -> bool:
        """Whether that is as it must be: good ones break nothing, spoiled ones break what is meant, and lose."""
        if not self.meant:
            return not self.broken
        return bool({*self.broken} & {*self.meant}) and self.objective < good.objective


def train_run(session: Session, run: Run, path: Path, dataset: Dataset | None = None) -> State:
    """The state at the end of a run, trained once and kept."""
    if not path.is_file():
        context = replace(session.context, dataset=dataset or session.context.dataset)
        *_, last = train_one(run, context)
        with atomic_path(path) as temporary:
            save_file({key: value.contiguous() for key, value in last.state.items()}, temporary)
    return load_file(path)


def run_of(name: str, *arguments: str) -> Run:
    """The run of some overrides."""
    return replace(cfg.build_run(cfg.compose("train", list(arguments))), name=name)


def swapped(dataset: Dataset) -> Dataset:
    """Each outfit's captions call the next outfit, so that every outfit is called by another's word."""
    triggers = [concept.trigger for concept in dataset.concepts]
    following = {c.name: trigger for c, trigger in zip(dataset.concepts, triggers[1:] + triggers[:1], strict=True)}

    def swap(picture: Picture, concept: Concept) -> str:
        return join_tags([following[concept.name] if tag == concept.trigger else tag for tag in picture.tags])

    return edit_captions(dataset, swap)


def scrambled(state: State) -> State:
    """A random LoRA of the same size: every tensor's numbers in random order."""
    generator = torch.Generator().manual_seed(0)
    return {
        key: value.flatten()[torch.randperm(value.numel(), generator=generator)].view_as(value)
        if value.dim()
        else value
        for key, value in state.items()
    }


def rendered(session: Session, scorer: Scorer, state: State) -> Rendered:
    """The suite as a LoRA draws it."""
    session.context.adapter.load(state)
    return render_eval_prompts(scorer, session.context.model, session.context.adapter)


def saturated(pictures: Rendered) -> Rendered:
    """The same with half as much colour again."""

    def more(picture: Images) -> Images:
        return np.asarray(ImageEnhance.Color(Image.fromarray(picture)).enhance(1.5))

    return {key: np.stack([more(picture) for picture in own]) for key, own in pictures.items()}


def copied(scorer: Scorer, pictures: Rendered) -> Rendered:
    """A copy machine: whatever is asked with the trigger, a training picture comes."""
    rng, training = np.random.default_rng(0), scorer.reference_images.training

    def copies(probe: EvalPrompt, own: Images) -> Images:
        if probe.group not in ("trigger", "novel", "style", "people"):
            return own
        source = training.get(probe.concept, scorer.reference_images.all_training)
        return source[rng.integers(len(source), size=len(own))]

    return {key: copies(key[0], own) for key, own in pictures.items()}


def drawn(session: Session, scorer: Scorer, character: Character, moved: bool) -> Rendered:
    """What a LoRA without any fault would draw: the world's own pictures, and the base model's without the trigger.

    `moved` puts what fidelity is measured on before another background.
    """
    outfits = {outfit.trigger: outfit for outfit in character.outfits}
    triggers = {concept.name: concept.trigger for concept in session.context.dataset.concepts}

    def real(probe: EvalPrompt) -> Images:
        outfit = outfits.get(triggers.get(probe.concept, ""), character.outfits[0])
        pictures = []
        for seed in probe.seeds:
            look = character_look(character, outfit, random.Random(seed))
            values = look.values | parse_prompt(probe.prompt)
            if moved and probe.group == "trigger":
                places = GROUPS["background"]
                values["background"] = places[(places.index(values["background"]) + 1) % len(places)]
            pictures.append(draw(replace(look, values=values), random.Random(seed), session.context.model.resolution))
        return through_vae(session, np.stack([np.asarray(picture.convert("RGB")) for picture in pictures]))

    asked = {probe: real(probe) for probe in scorer.select("trigger", "novel", "style", "people")}
    return {(p, w): asked.get(p, scorer.base_renders[p]) for p in scorer.prompts for w in scorer.settings.weights}


@torch.inference_mode()
def through_vae(session: Session, pictures: Images) -> Images:
    """Pictures as the base model's autoencoder keeps them."""
    model = session.context.model
    pixels = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1
    return to_uint8(model.decode_latents(model.encode_images(pixels.to(model.device))))


def cases(session: Session, scorer: Scorer, character: Character, folder: Path) -> Iterator[Case]:
    """The good LoRA first, then its spoiled twins, then the world's own pictures."""
    dataset, several = session.context.dataset, len(session.context.dataset.concepts) > 1
    good = train_run(session, run_of("good", *GOOD), folder / "good.safetensors")
    shown = rendered(session, scorer, good)

    def of(state: State) -> Callable[[], Rendered]:
        return lambda: rendered(session, scorer, state)

    def trained(name: str, arguments: tuple[str, ...], data: Dataset | None = None) -> Callable[[], Rendered]:
        return lambda: rendered(
            session, scorer, train_run(session, run_of(name, *arguments), folder / f"{name}.safetensors", data)
        )

    yield Case("good LoRA", (), lambda: shown)
    yield Case("weight 0", ("undercooked",), of(scaled(good, 0.0)))
    yield Case("random LoRA", ("undercooked",), of(scrambled(good)))
    yield Case("copy machine", ("memorisation",), lambda: copied(scorer, shown))
    yield Case("trained without trigger", ("bleed_class",), trained("no-trigger", BLEEDING, without_triggers(dataset)))
    if several:
        yield Case(
            "swapped outfit captions",
            ("bleed_cross",),
            trained("swapped", GOOD, swapped(dataset)),
        )
    yield Case("saturation x 1.5", ("burn",), lambda: saturated(shown))
    yield Case("learning rate x 10", ("burn", "spread", "undercooked"), trained("rate", TEN_TIMES))
    yield Case("weight 1.5", ("too_strong", "burn", "editability"), of(scaled(good, 1.5)))
    yield Case("the world's own pictures", (), lambda: drawn(session, scorer, character, False))
    yield Case("on other backgrounds", (), lambda: drawn(session, scorer, character, True))


def judge_character(seed: int, out: Path) -> dict[str, Judged]:
    """Every case's score, terms and broken constraints; a sheet of pictures beside the table."""
    session = open_character(seed, out, [run_of("good", *GOOD), Run("largest", LoRA(dim=16))])
    session.context.adapter.start(0, LoRA(dim=16), torch.Generator().manual_seed(0))
    scorer = whole_suite(session, session.render_settings.search)
    found, rows = {}, []
    for case in cases(session, scorer, character_of(seed), out / str(seed)):
        pictures = case.pictures()
        card = score(scorer, pictures)
        found[case.name] = Judged.of(case.meant, card)
        rows.append((case.name, sheet_row(scorer, pictures)))
        print(f"character {seed}, {case.name}: {card.objective:.3f}, broken {card.broken}", flush=True)
    KEPT.mkdir(parents=True, exist_ok=True)
    labelled(rows).save(KEPT / f"{seed}.png")
    return found


def sheet_row(scorer: Scorer, pictures: Rendered) -> Images:
    """Five renders with the trigger, five of the class word alone, at the strongest weight."""
    weight = max(scorer.settings.weights)
    picked = [
        np.concatenate([pictures[p, weight] for p in scorer.select(group)])[:5] for group in ("trigger", "class_only")
    ]
    return np.concatenate(picked)


def table(found: dict[str, dict[str, Judged]]) -> str:
    """One line a case, one column a character: judged as it must be or not, objective, fidelity, broken limits."""
    meant = {name: one.meant for own in found.values() for name, one in own.items()}
    lines = ["| case | must break | " + " | ".join(map(str, found)) + " |", "|" + "---|" * (2 + len(found))]
    for name, constraints in meant.items():
        cells = []
        for own in found.values():
            if name not in own:
                cells.append("has one outfit")
                continue
            right = "yes" if own[name].right(own["good LoRA"]) else "**NO**"
            f = own[name].terms["1"]["fidelity"]
            shown = f"{right}: {own[name].objective:.2f}, F {f['value']:.2f} ({f['low']:.2f} to {f['high']:.2f})"
            cells.append(" ".join([shown, ", ".join(own[name].broken)]).rstrip())
        lines.append(f"| {name} | {' or '.join(constraints) or 'nothing'} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Judge every character and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[110, 111, 112, 113])
    parser.add_argument("--out", type=Path, default=Path("runs/negative-ladder"))
    args = parser.parse_args()
    for seed in args.seeds:
        keep(KEPT, seed, {name: asdict(one) for name, one in judge_character(seed, args.out).items()})
    found = {seed: {name: Judged(**one) for name, one in own.items()} for seed, own in kept(KEPT).items()}
    write_atomic(RESULTS / "negative_ladder.md", table(found))
    print(table(found))


if __name__ == "__main__":
    main()
