"""What each command of the command line does."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import optuna
from omegaconf import DictConfig
from optuna_dashboard import run_server

from autolora import config as cfg
from autolora.data.caption_recipe import apply_captions, caption_changes
from autolora.data.captions_copy import write_copy
from autolora.data.concepts import load_dataset, with_frames
from autolora.errors import UNMEASURED_EXIT_CODE, ConfigError, DatasetError, StudyError
from autolora.files import atomic_path, write_atomic
from autolora.models import load_model
from autolora.prepare.tag_folder import tag_folder, untagged
from autolora.prepare.tagger import load_tagger
from autolora.progress import Bars
from autolora.report.sections import as_dict, print_sections, write_page
from autolora.study.begin import has_begun, join_study, open_study, started_study
from autolora.study.budget import in_words
from autolora.study.card import write_card_alone
from autolora.study.check import caption_sections, dataset_sections, measured_sections, recipe_section, schedule_section
from autolora.study.compare import compare_sections, read_study, write_comparison
from autolora.study.evidence import report_progress
from autolora.study.finish import finish, study_report, twin_as_dict, twin_in_words
from autolora.study.lora_files import find_files, grid, print_table, read_files, score_files
from autolora.study.output import Output, read_json
from autolora.study.plan import Plan, adapter_notes, make_plan
from autolora.study.plots import save_plots
from autolora.study.proof import export_proved
from autolora.study.recipe_library import keep_recipe
from autolora.study.resize_file import resize_file
from autolora.study.sittings import run_study
from autolora.study.standing import standing
from autolora.study.storage import shown
from autolora.study.trial import Record
from autolora.study.verify_file import verify_file
from autolora.study.warm_start import gather_priors
from autolora.study.workbench import Workbench, open_workbench
from autolora.study.workers import count_workers, local_workers
from autolora.train.loop import Assignment, Slot
from autolora.train.loop import train as train_rounds


def check(config: DictConfig, study: str | None, arguments: list[str]) -> int:
    """Show what would be trained and what it costs; `check.json` and a page go into the run's folder."""
    output, settings = Output.of(config), cfg.dataset_settings(config)
    dataset = load_dataset(settings)
    plan = None
    if study:
        plan, own = make_plan(config, study, arguments)
        runs = [plan.run(recipe, values) for recipe, values in own.items()]
    else:
        runs = [cfg.build_run(config)]
    model = load_model(cfg.model_settings(config))
    dataset = with_frames(dataset, settings, model.resolution)
    sections = [*dataset_sections(dataset), *caption_sections(dataset, model)]
    sections += [*(recipe_section(run, dataset) for run in runs), schedule_section(runs, dataset)]
    with output.bars() as bars:
        sections += measured_sections(config, runs, dataset, model, plan, bars)
    folder = plan.folder if plan else cfg.run_folder(config, runs[0].name)
    facts = [f"{model.name} ({model.architecture}, {model.resolution} px, weights {model.base_hash})"]
    write_atomic(folder / "check.json", json.dumps(as_dict(sections), indent=2))
    page = write_page(dataset.name, facts, sections, folder / "check.html")

    def show() -> None:
        if not output.quiet:
            print(f"{dataset.name} on {facts[0]}")
            print_sections(sections)
        print(f"\n{folder / 'check.json'}\n{page}")

    output.last(show, {"dataset": dataset.name, "sections": as_dict(sections), "page": page})
    return 0


def tag(config: DictConfig, study: str | None, arguments: list[str]) -> int:
    """Write a caption beside every picture that has none; captions that are there stay as they are."""
    settings, path = cfg.tagger_settings(config), cfg.dataset_settings(config).path
    if not path.strip():
        raise DatasetError("no pictures given: add dataset.path=FOLDER")
    paths = untagged(Path(path).expanduser())
    tagger = load_tagger(settings.path) if paths else None
    with Output.of(config).bars() as bars, bars.task("tagging", len(paths)) as advance:
        if tagger:
            tag_folder(paths, tagger, settings, advance)
    print(f"wrote {len(paths)} captions; `autolora check dataset.path={path}` shows what they say")
    return 0


def captions(config: DictConfig, study: str | None, arguments: list[str]) -> int:
    """Show what the caption recipe changes; with `out=FOLDER` write the pictures with their new captions there."""
    dataset = load_dataset(cfg.dataset_settings(config))
    run = cfg.build_run(config)
    edited = apply_captions(run.captions, dataset, run.train.seed, run.train.keep_tags, held_out=True)
    changes = caption_changes(dataset, edited)
    for picture, old, new in changes:
        print(f"{picture.concept}/{picture.path.name}\n  - {old}\n  + {new}")
    print(f"{len(changes)} of {len(edited.pictures) + len(edited.held_out)} captions change")
    if not config.out:
        print("nothing is written: add out=FOLDER for a copy of the pictures with these captions")
        return 0
    out = Path(str(config.out)).expanduser()
    print(f"wrote {write_copy(edited, out)} pictures with captions to {out}")
    return 0


def tune(config: DictConfig, study: str | None, arguments: list[str]) -> int:
    """Run or continue a study, export its best LoRA and write its report."""
    assert study is not None
    output = Output.of(config)
    plan, own = make_plan(config, study, arguments)
    workers = count_workers(config.workers)
    with output.bars() as bars:
        runs = [plan.run(recipe, values) for recipe, values in own.items()]
        for note in adapter_notes([*runs, *plan.extremes()]):
            bars.say(note)
        priors = gather_priors(plan, bars.say) if plan.warm_start and not has_begun(plan, bars.say) else []
        work = open_workbench(config, [*runs, *plan.extremes()], bars)
        opened = open_study(plan, own, identity(config, work.bench.model.base_hash), bars.say, priors)
        bars.say(in_words(plan.settings, runs, work.bench.dataset, workers))
        with local_workers(plan, workers, bars):
            run_study(plan, opened, work, bars, heard=_news(plan, opened, work, bars, output))
        text = finish(plan, opened, work, bars)
    output.last(text, read_json(plan.folder / "result.json"))
    return UNMEASURED_EXIT_CODE if work.unmeasured else 0


def worker(config: DictConfig, study: str | None, arguments: list[str]) -> int:
    """Join a study that `tune` started: run its trials until it is done."""
    assert study is not None
    output = Output.of(config)
    plan, own = make_plan(config, study, arguments)
    started_study(plan, print)  # before anything is loaded
    with output.bars() as bars:
        runs = [plan.run(recipe, values) for recipe, values in own.items()]
        work = open_workbench(config, [*runs, *plan.extremes()], bars)
        run_study(plan, join_study(plan, identity(config, work.bench.model.base_hash), bars.say), work, bars)
    words = f"study {plan.settings.name}: no trial is left; `{plan.command}` ends it with its finals"
    output.last(words, {"study": plan.settings.name})
    return 0


def _news(plan: Plan, study: optuna.Study, work: Workbench, bars: Bars, output: Output) -> Callable[[bool], None]:
    """What follows every checkpoint: the terminal's table; after a trial's last one also the page and a line."""

    def heard(ended: bool) -> None:
        now = standing(plan, study)
        bars.show(now.table(), now.line() if ended else None)
        if ended:
            report_progress(plan, study, work)
            output.event("trial", now.as_dict())

    return heard


def identity(config: DictConfig, base_hash: str) -> dict[str, str]:
    """What a study is about, by which those who join it know that they mean the same."""
    dataset = Path(cfg.dataset_settings(config).path).expanduser().resolve()
    return {"dataset": dataset.name, "base model": base_hash}


def _existing(config: DictConfig, study: str | None, arguments: list[str]) -> tuple[Plan, optuna.Study]:
    assert study is not None
    plan, _ = make_plan(config, study, arguments)
    started_study(plan, print)  # before anything is loaded
    model = load_model(cfg.model_settings(config))
    return plan, join_study(plan, identity(config, model.base_hash), print)


def export(config: DictConfig, study: str | None, arguments: list[str]) -> int:
    """Export a study's best LoRA again, or its recipe; or prove a file, or make one smaller."""
    if config.verify:
        return verify_file(config)
    if config.resize:
        return resize_file(config)
    output = Output.of(config)
    if config.as_recipe:
        assert study is not None
        plan, _ = make_plan(config, study, arguments)
        path = keep_recipe(plan, started_study(plan, print), str(config.as_recipe))
        output.last(f"{path}: take it by recipe={path.stem}, or name it in a study", {"recipe": path})
        return 0
    plan, opened = _existing(config, study, arguments)
    with output.bars() as bars:
        own = [plan.run(recipe, {}) for recipe in plan.space]
        work = open_workbench(config, [*own, *plan.extremes()], bars)
        text = finish(plan, opened, work, bars)
    output.last(text, read_json(plan.folder / "result.json"))
    return UNMEASURED_EXIT_CODE if work.unmeasured else 0


def report(config: DictConfig, study: str | None, arguments: list[str]) -> int:
    """Write a study's report again, from what its folder holds."""
    output = Output.of(config)
    plan, opened = _existing(config, study, arguments)
    with output.bars() as bars:
        own = [plan.run(recipe, {}) for recipe in plan.space]
        work = open_workbench(config, [*own, *plan.extremes()], bars)
        path = study_report(plan, opened, work, bars)
    output.last(f"report: {path}", {"report": path})
    return 0


def compare(config: DictConfig, folders: list[str]) -> int:
    """Compare several studies; a page, `comparison.csv` and `comparison.json` go into `out`."""
    output = Output.of(config)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    paths = list(dict.fromkeys(Path(folder).expanduser() for folder in folders))
    entries = [entry for path in paths for entry in read_study(path)]
    sections = compare_sections(entries)
    out = Path(str(config.out)).expanduser() if config.out else Path("runs") / "comparison"
    written = write_comparison(entries, sections, out)
    facts = [f"{len(paths)} studies", f"{len({entry.recipe for entry in entries})} recipes"]
    page = write_page("Studies compared", facts, sections, out / "index.html")

    def show() -> None:
        if not output.quiet:
            print_sections(sections)
        print("\n" + "\n".join(map(str, [*written, page])))

    output.last(show, {**as_dict(sections[:2]), "files": [*written, page]})
    return 0


def dashboard(config: DictConfig, study: str | None, arguments: list[str]) -> int:
    """Serve the Optuna dashboard of a study on this machine only."""
    assert study is not None
    plan, _ = make_plan(config, study, arguments)
    opened = started_study(plan, print)
    save_plots(opened, plan.files)
    print(f"Optuna dashboard on http://127.0.0.1:8080 for {shown(plan.storage)} (Ctrl-C ends it)", flush=True)
    run_server(opened._storage, host="127.0.0.1", port=8080, artifact_store=plan.store)
    return 0


def train(config: DictConfig, study: str | None, arguments: list[str]) -> int:
    """Train one run, score every checkpoint, export the best; the same command continues it."""
    output, run = Output.of(config), cfg.build_run(config)
    folder = cfg.run_folder(config, run.name)
    record = Record.open(folder, run)
    latest = record.latest()
    if (folder / "score.json").is_file():
        words = f"{folder} is finished; choose another out=FOLDER to train again"
        output.last(words, read_json(folder / "score.json"))
        return 0
    waiting = iter([Assignment(run, latest)])
    with output.bars() as bars:
        for note in adapter_notes([run]):
            bars.say(note)
        work = open_workbench(config, [run], bars)
        bar = bars.add(run.name, run.steps_per_epoch(work.bench.dataset) * run.train.epochs)

        def on_step(slot: Slot) -> None:
            bars.set(bar, slot.step)
            if slot.relief:
                bars.say(slot.relief)
                slot.relief = ""

        for ready in train_rounds(lambda: next(waiting, None), work.bench, on_step):
            checkpoint = ready[0].checkpoint
            assert checkpoint is not None
            if checkpoint.diverged:
                raise StudyError(
                    f"{run.name} diverged at step {checkpoint.step}: lower optimizer.lr or set train.max_norm"
                )
            if record.scored_step() != checkpoint.step:
                record.add(checkpoint, work.measure(checkpoint, record.curve, record.curve, bars, record.samples))
            bars.say(f"step {checkpoint.step}: {record.curve[-1].words}")
        best = record.best()
        assert best is not None
        exported, twin, proof = export_proved(record, best, work, folder / "best", run.name, work.scorer, bars)
        write_card_alone(work, record, best, exported.path, bars)
    found = record.summary() | ({"plain": twin_as_dict(twin, proof)} if twin else {})
    write_atomic(folder / "score.json", json.dumps(found, indent=2))
    words = f"best checkpoint: step {best.step}, {best.words}\nLoRA: {exported.path}"
    words += f"\nfor diffusers: {exported.diffusers.parent}" if exported.diffusers else ""
    words += f"\n{twin_in_words(twin, proof)}" if twin else ""
    output.last(words, {**found, "export": exported.path})
    return UNMEASURED_EXIT_CODE if work.unmeasured else 0


def score(config: DictConfig, study: str | None, arguments: list[str]) -> int:
    """Score LoRA files against a dataset; `score.json` and `score.png` go beside them or into `out`.

    One file writes one object, several write a list, the best first.
    """
    if not config.lora:
        raise ConfigError("no LoRA given: add lora=FILE.safetensors, or lora=FOLDER to rank all files in it")
    output, files = Output.of(config), find_files(str(config.lora))
    states, refused = read_files(config, files)
    found, base = score_files(config, states, output.bars())
    out = Path(str(config.out)).expanduser() if config.out else files[0].parent
    content = [one.as_dict() for one in found]
    write_atomic(out / "score.json", json.dumps(content if len(files) > 1 else content[0], indent=2))
    with atomic_path(out / "score.png") as temporary:
        grid(found, base).save(temporary, format="PNG")

    def show() -> None:
        if not output.quiet:
            print_table(found, refused)
        print(f"{out / 'score.json'}\n{out / 'score.png'}")

    output.last(show, {"files": content, "refused": {str(path): reason for path, reason in refused.items()}})
    return 0
