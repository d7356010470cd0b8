"""Does each way of spoiling a LoRA break the constraint that is meant for it, and score worse than the good LoRA?

    python -m experiments.live.negative_controls --seeds 110 111 112 113

For each character one good recipe is trained, spoiled in eight ways, and scored by the whole suite of the finals. Then
images that the synthetic test world draws itself take the place of the LoRA's renders: they must score near 1, break no
constraint, and score the same on other backgrounds. Writes experiments/results/score/negative_ladder.md, of all
characters judged so far, and for each its figures and a sheet of images.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageEnhance
from safetensors.torch import load_file, save_file

from autolora.adapters.base import State
from autolora.adapters.formats import scaled
from autolora.adapters.kinds import LoRA
from autolora.data.captions import join_tags
from autolora.data.concepts import Concept, Dataset, edit_captions, without_triggers
from autolora.data.sources import Picture
from autolora.evaluation.samples import labelled
from autolora.evaluation.session import Session
from autolora.files import atomic_path
from autolora.paperdoll.drawing import draw
from autolora.paperdoll.look import GROUPS, Character, character_look, parse_prompt
from autolora.sampling import Images, to_uint8
from autolora.scoring.eval_prompts import EvalPrompt
from autolora.scoring.scorecard import Rendered, Scorecard, render_eval_prompts, score
from autolora.scoring.scorer import Scorer
from autolora.train.loop import train_one
from autolora.train.run import Run
from experiments.common import results
from experiments.common.arguments import argument_parser
from experiments.common.results import as_text, load_results, save_image, save_result, save_table, table_head, table_row
from experiments.common.seeds import evaluation_character
from experiments.common.training import settings_of
from experiments.replay.bank_rows import CHARACTERS
from experiments.replay.bank_session import open_character, whole_suite

RESULTS = results.RESULTS / "score"
FIGURES = RESULTS / "negative_ladder"
GOOD = ("recipe=doll-preserve",)  # as found on development characters
BLEEDING = (*GOOD, "train.prior_preservation_ratio=0")
TEN_TIMES = ("recipe=doll-adamw", "optimizer.lr=3e-2", "train.prior_preservation_ratio=0.5")
GOOD_LORA = "good LoRA"
WITH_TRIGGER = ("trigger", "novel", "style", "people")  # groups of prompts


@dataclass(frozen=True)
class Case:
    """One way of spoiling a LoRA, and the constraints of which it must break at least one."""

    name: str
    meant: tuple[str, ...]  # empty: it must break no constraint
    renders: Callable[[], Rendered]


@dataclass(frozen=True)
class Judged:
    """A case and its score."""

    meant: Sequence[str]
    objective: float
    broken: Sequence[str]
    terms: Mapping[str, Mapping[str, Mapping[str, float]]]  # by LoRA weight and name

    @classmethod
    def of(cls, meant: Sequence[str], card: Scorecard) -> Judged:
        """Return what is kept of a scorecard."""
        terms = {w: {n: t.as_dict() for n, t in estimates.items()} for w, estimates in card.by_weight.items()}
        return cls(meant, card.objective, card.broken, terms)

    def right(self, good: Judged) -> bool:
        """Whether the case is judged right.

        A good one must break no constraint; a spoiled one must break what is meant and score worse than the good LoRA.
        """
        if not self.meant:
            return not self.broken
        return bool({*self.broken} & {*self.meant}) and self.objective < good.objective


def train_run(session: Session, run: Run, path: Path, dataset: Dataset | None = None) -> State:
    """Return the LoRA at the end of a training run; it is trained once and kept in `path`."""
    if not path.is_file():
        context = replace(session.context, dataset=dataset or session.context.dataset)
        *_, last = train_one(run, context)
        with atomic_path(path) as temporary:
            save_file({key: value.contiguous() for key, value in last.state.items()}, temporary)
    return load_file(path)


def run_of(name: str, *overrides: str) -> Run:
    """Return the run of some overrides, under a name."""
    return replace(settings_of(*overrides).run, name=name)


def swapped(dataset: Dataset) -> Dataset:
    """Return the dataset with outfits under wrong triggers: each outfit's captions have the next outfit's trigger."""
    triggers = [concept.trigger for concept in dataset.concepts]
    following = {c.name: trigger for c, trigger in zip(dataset.concepts, triggers[1:] + triggers[:1], strict=True)}

    def swap(picture: Picture, concept: Concept) -> str:
        return join_tags([following[concept.name] if tag == concept.trigger else tag for tag in picture.tags])

    return edit_captions(dataset, swap)


def scrambled(state: State) -> State:
    """Return a random LoRA of the same size: every tensor's numbers in random order."""
    generator = torch.Generator().manual_seed(0)
    return {
        key: value.flatten()[torch.randperm(value.numel(), generator=generator)].view_as(value)
        if value.dim()
        else value
        for key, value in state.items()
    }


def saturated(renders: Rendered) -> Rendered:
    """Return the renders with 1.5 times the colour."""

    def more(image: Images) -> Images:
        return np.asarray(ImageEnhance.Color(Image.fromarray(image)).enhance(1.5))

    return {key: np.stack([more(image) for image in images]) for key, images in renders.items()}


def copied(scorer: Scorer, renders: Rendered) -> Rendered:
    """Return training images in the place of all renders with the trigger."""
    rng, training = np.random.default_rng(0), scorer.reference_images.training

    def copies(prompt: EvalPrompt, images: Images) -> Images:
        if prompt.group not in WITH_TRIGGER:
            return images
        source = training.get(prompt.concept, scorer.reference_images.all_training)
        return source[rng.integers(len(source), size=len(images))]

    return {key: copies(key[0], images) for key, images in renders.items()}


def drawn_by_world(session: Session, scorer: Scorer, character: Character, moved: bool) -> Rendered:
    """Return what a LoRA without any fault would render: drawings of the world, and base renders without the trigger.

    Args:
        session: the base model and the dataset.
        scorer: the prompts.
        character: the character to draw.
        moved: put the images that fidelity is measured on in front of another background.
    """
    outfits = {outfit.trigger: outfit for outfit in character.outfits}
    triggers = {concept.name: concept.trigger for concept in session.context.dataset.concepts}

    def drawings(prompt: EvalPrompt) -> Images:
        outfit = outfits.get(triggers.get(prompt.concept, ""), character.outfits[0])
        images = []
        for seed in prompt.seeds:
            look = character_look(character, outfit, random.Random(seed))
            values = look.values | parse_prompt(prompt.prompt)
            if moved and prompt.group == "trigger":
                backgrounds = GROUPS["background"]
                values["background"] = backgrounds[(backgrounds.index(values["background"]) + 1) % len(backgrounds)]
            images.append(draw(replace(look, values=values), random.Random(seed), session.context.model.resolution))
        return through_vae(session, np.stack([np.asarray(image.convert("RGB")) for image in images]))

    by_prompt = {prompt: drawings(prompt) for prompt in scorer.select(*WITH_TRIGGER)}
    return {(p, w): by_prompt.get(p, scorer.base_renders[p]) for p in scorer.prompts for w in scorer.settings.weights}


@torch.inference_mode()
def through_vae(session: Session, images: Images) -> Images:
    """Return images after encoding and decoding by the base model's autoencoder."""
    model = session.context.model
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
    return to_uint8(model.decode_latents(model.encode_images(pixels.to(model.device))))


def cases(session: Session, scorer: Scorer, character: Character, folder: Path) -> Iterator[Case]:
    """Yield the good LoRA, then its spoiled copies, then the drawings of the world."""
    dataset = session.context.dataset

    def renders_of(state: State) -> Rendered:
        session.context.adapter.load(state)
        return render_eval_prompts(scorer, session.context.model, session.context.adapter)

    def of_run(name: str, overrides: tuple[str, ...], data: Dataset | None = None) -> Callable[[], Rendered]:
        run, path = run_of(name, *overrides), folder / f"{name}.safetensors"
        return lambda: renders_of(train_run(session, run, path, data))

    good = train_run(session, run_of("good", *GOOD), folder / "good.safetensors")
    good_renders = renders_of(good)
    yield Case(GOOD_LORA, (), lambda: good_renders)
    yield Case("weight 0", ("undercooked",), lambda: renders_of(scaled(good, 0.0)))
    yield Case("random LoRA", ("undercooked",), lambda: renders_of(scrambled(good)))
    yield Case("copy machine", ("memorisation",), lambda: copied(scorer, good_renders))
    yield Case("trained without trigger", ("bleed_class",), of_run("no-trigger", BLEEDING, without_triggers(dataset)))
    if len(dataset.concepts) > 1:
        yield Case("swapped outfit captions", ("bleed_cross",), of_run("swapped", GOOD, swapped(dataset)))
    yield Case("saturation x 1.5", ("burn",), lambda: saturated(good_renders))
    yield Case("learning rate x 10", ("burn", "spread", "undercooked"), of_run("rate", TEN_TIMES))
    yield Case("weight 1.5", ("too_strong", "burn", "editability"), lambda: renders_of(scaled(good, 1.5)))
    yield Case("the world's own pictures", (), lambda: drawn_by_world(session, scorer, character, False))
    yield Case("on other backgrounds", (), lambda: drawn_by_world(session, scorer, character, True))


def judge_character(seed: int, out: Path) -> dict[str, Judged]:
    """Return every case with its score, and save a sheet of images beside the table."""
    session = open_character(seed, out, [run_of("good", *GOOD), Run("largest", LoRA(dim=16))])
    session.context.adapter.start(0, LoRA(dim=16), torch.Generator().manual_seed(0))
    scorer = whole_suite(session, session.render_settings.search)
    judged, rows = {}, []
    for case in cases(session, scorer, evaluation_character(seed), out / str(seed)):
        renders = case.renders()
        card = score(scorer, renders)
        judged[case.name] = Judged.of(case.meant, card)
        rows.append((case.name, sheet_row(scorer, renders)))
        print(f"character {seed}, {case.name}: {card.objective:.3f}, broken {card.broken}", flush=True)
    save_image(labelled(rows), FIGURES / f"{seed}.png")
    return judged


def sheet_row(scorer: Scorer, renders: Rendered) -> Images:
    """Return five renders with the trigger and five of the class word alone, at the strongest LoRA weight."""
    weight = max(scorer.settings.weights)
    groups = [
        np.concatenate([renders[p, weight] for p in scorer.select(group)])[:5] for group in ("trigger", "class_only")
    ]
    return np.concatenate(groups)


def table(characters: dict[str, dict[str, Judged]]) -> str:
    """Return one line per case and one column per character.

    A cell says whether the case is judged right, its objective, its fidelity and its broken constraints.
    """
    meant = {name: case.meant for judged in characters.values() for name, case in judged.items()}
    lines = table_head("case", "must break", *characters)
    for name, constraints in meant.items():
        cells = []
        for judged in characters.values():
            if name not in judged:
                cells.append("has one outfit")
                continue
            case = judged[name]
            right = "yes" if case.right(judged[GOOD_LORA]) else "**NO**"
            f = case.terms["1"]["fidelity"]
            figures = f"{right}: {case.objective:.2f}, F {f['value']:.2f} ({f['low']:.2f} to {f['high']:.2f})"
            cells.append(" ".join([figures, ", ".join(case.broken)]).rstrip())
        lines.append(table_row(name, " or ".join(constraints) or "nothing", *cells))
    return as_text(lines)


def main() -> None:
    """Judge every character and write the table."""
    args = argument_parser(__doc__, seeds=CHARACTERS, out="runs/negative-ladder").parse_args()
    for seed in args.seeds:
        save_result(FIGURES, seed, {name: asdict(case) for name, case in judge_character(seed, args.out).items()})
    characters = {
        seed: {name: Judged(**case) for name, case in judged.items()} for seed, judged in load_results(FIGURES).items()
    }
    save_table(RESULTS / "negative_ladder.md", table(characters))


if __name__ == "__main__":
    main()
