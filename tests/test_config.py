"""Configs: every file composes, arguments work as people type them, mistakes are told."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from autolora import config
from autolora.adapters.kinds import IA3, DyLoRA, LoHa, LoKr, LoRA
from autolora.adapters.settings import Adapter
from autolora.adapters.targets import LINEAR
from autolora.errors import ConfigError
from autolora.models.load import FAMILIES
from autolora.optim.base import Optimizer
from autolora.optim.optimizers import OPTIMIZERS, AdamW, Prodigy
from autolora.optim.schedules import SCHEDULES, AnnealedCosine, CosineRestarts, Schedule
from autolora.settings import Settings, build_run, build_settings
from autolora.study.definition import define_study

STUDIES = sorted(p.stem for p in (config.ROOT / "studies").glob("*.yaml"))
RECIPES = sorted(p.stem for p in (config.ROOT / "conf" / "recipe").glob("*.yaml"))
SCORINGS = sorted(p.stem for p in (config.ROOT / "conf" / "scoring").glob("*.yaml"))


def settings(overrides: list[str], study: str | None = None) -> Settings:
    composed = config.compose("tune" if study else "train", overrides, study)
    return build_settings(composed, study, overrides)


@pytest.mark.parametrize("study", STUDIES)
def test_every_study_composes_and_its_recipes_lie_inside_their_ranges(study: str) -> None:
    overrides = ["model.path=x"]
    definition = define_study(settings(overrides, study))
    assert set(definition.default_values) == set(definition.space)
    for recipe, values in definition.default_values.items():
        assert definition.run(recipe, values) == definition.run(recipe, {})


LORA = LoRA(dim=32, alpha=16)
LOCON = LoRA(dim=32, alpha=16, conv_dim=32, conv_alpha=16, targets=(*LINEAR, "conv"))
GUIDE: dict[str, tuple[Adapter, Optimizer, type[Schedule], int]] = {
    "guide-adamw": (LORA, AdamW(lr=1e-4), CosineRestarts, 1000),
    "guide-prodigy": (LORA, Prodigy(lr=1.0), AnnealedCosine, 500),
    "guide-locon": (LOCON, AdamW(lr=1e-4), CosineRestarts, 1000),
    "guide-dylora": (DyLoRA(dim=64, alpha=32, unit=4), AdamW(lr=1e-4), CosineRestarts, 1000),
    "guide-loha": (LoHa(dim=32, alpha=16), AdamW(lr=1e-4), CosineRestarts, 1000),
    "guide-lokr": (LoKr(dim=32, alpha=16), AdamW(lr=6.5e-5), CosineRestarts, 1000),
    "guide-ia3": (IA3(targets=("attention", "feed_forward")), AdamW(lr=5e-3), CosineRestarts, 1000),
}
PAPERDOLL = ["model=paperdoll", "scoring=paperdoll", "dataset=quickstart"]
PLAIN = ("paperdoll", "sd15", "sd2", "sdxl", "sd3", "flux", "z_image")  # presets without words before a prompt


@pytest.mark.slow
@pytest.mark.parametrize("study", ["character", "outfits", "style", "object"])
def test_studies_of_a_real_model_search_around_all_of_the_guide_and_run_on_the_synthetic_world_too(study: str) -> None:
    """Every value of every range builds, and within the guide's limits, but where it is without a limit."""
    on_paperdoll = settings(PAPERDOLL, study)
    definition = define_study(on_paperdoll)
    assert set(definition.default_values) == set(GUIDE)
    assert on_paperdoll.model.path == "paperdoll"
    for run in definition.widest_runs():
        said = [note for note in run.adapter.notes() if "neither rank" not in note]
        assert not said, (run.name, said)
    with pytest.raises(ConfigError, match=r"model\.path must be given"):
        settings([], study)
    without = ["model.path=x", "~study.recipes.guide-ia3"]
    assert set(define_study(settings(without, study)).default_values) == set(GUIDE) - {"guide-ia3"}


TABLES: dict[str, Mapping[str, Any]] = {"optimizer": OPTIMIZERS, "schedule": SCHEDULES}


@pytest.mark.parametrize(("group", "kind"), [(group, kind) for group, table in TABLES.items() for kind in table])
def test_every_kind_has_a_config_file_with_all_its_fields(group: str, kind: str) -> None:
    """Where a kind has no file or the file lacks a field, a user cannot choose it or set it."""
    files = [OmegaConf.load(path) for path in (config.ROOT / "conf" / group).glob("*.yaml")]
    fields = {field.name for field in dataclasses.fields(TABLES[group][kind])} | {"kind"}
    assert any(file.kind == kind and set(file) == fields for file in files)


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_builds(recipe: str) -> None:
    assert build_run(config.compose("train", [f"recipe={recipe}"])).name == recipe


@pytest.mark.parametrize("kind", SCORINGS)
def test_every_set_of_probes_builds_and_asks_something(kind: str) -> None:
    scoring = settings([f"scoring={kind}"]).scoring
    assert ":" in scoring.encoder or scoring.encoder == "paperdoll"
    assert len(scoring.trigger_prompts) >= 3 and len(scoring.outfit_prompts) >= 6 and len(scoring.class_prompts) >= 3


def test_a_probe_of_ones_own_is_one_line() -> None:
    quickstart = settings(['scoring.bleed_prompts=["1girl, solo", "school uniform"]'], "quickstart")
    assert quickstart.scoring.bleed_prompts == ("1girl, solo", "school uniform")


@pytest.mark.parametrize("preset", sorted(path.stem for path in (config.ROOT / "conf" / "model").glob("*.yaml")))
def test_every_base_model_is_a_family_with_its_way_of_rendering(preset: str) -> None:
    model = settings([f"model={preset}", "model.path=x.safetensors"]).model
    assert model.family in FAMILIES and model.class_tags
    assert model.resolution is None or model.resolution % 64 == 0
    assert model.render.search.num_inference_steps < model.render.num_inference_steps
    tags = model.render.prompt("1girl")
    assert tags.endswith("1girl") and (tags == "1girl") == (preset in PLAIN)


def test_presets_say_what_their_users_know() -> None:
    found = {
        preset: settings([f"model={preset}", "model.path=x"]).model
        for preset in ("pony", "noobai-vpred", "sd15-anime", "illustrious")
    }
    assert (found["pony"].family, found["pony"].resolution, found["pony"].clip_skip) == ("sdxl", 1024, 2)
    assert found["pony"].render.prompt("1girl").startswith("score_9, score_8_up")
    noobai = found["noobai-vpred"]
    assert (noobai.prediction_type, noobai.zero_terminal_snr) == ("v_prediction", True)
    assert noobai.render.guidance_rescale > 0 and found["illustrious"].render.guidance_rescale == 0
    assert (found["sd15-anime"].family, found["sd15-anime"].clip_skip) == ("sd1", 2)


@pytest.mark.parametrize(("preset", "batch"), [("sdxl", 2), ("pony", 2), ("noobai-vpred", 2), ("flux", 4), ("sd15", 4)])
def test_batches_are_small_where_an_adapter_is_to_fit_beside_the_model(preset: str, batch: int) -> None:
    chosen = [f"model={preset}", "model.path=x", "recipe=guide-adamw"]
    run = build_run(config.compose("tune", chosen, "character"))
    assert run.train.batch_size == batch and run.train.images_per_concept == 1000
    assert build_run(config.compose("tune", [*chosen, "train.batch_size=3"], "character")).train.batch_size == 3


@pytest.mark.parametrize("recipe", GUIDE)
def test_the_guide_is_written_down(recipe: str) -> None:
    run = build_run(config.compose("train", [f"recipe={recipe}"]))
    adapter, optimizer, schedule, steps = GUIDE[recipe]
    assert (run.adapter, run.optimizer, type(run.schedule)) == (adapter, optimizer, schedule)
    assert (run.name, run.train.epochs, run.train.images_per_concept) == (recipe, 8, steps)


def test_the_guides_ia3_may_have_prodigy() -> None:
    run = build_run(config.compose("train", ["recipe=guide-prodigy", "adapter=ia3"]))
    assert isinstance(run.adapter, IA3) and run.optimizer == Prodigy(lr=1.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["optimizer.lrr=1"], "did you mean `optimizer.lr`"),
        (["train.epochz=1"], "did you mean `train.epochs`"),
        (["train.epochs=many"], "train.epochs: expected int, got 'many'"),
        (["train.epochs=0"], "at least 1, got 0"),
        (["train.min_character_images=-1"], "train.min_character_images must be 0"),
        (
            ["train.class_caption_dropout_rate=1"],
            "train.class_caption_dropout_rate must be 0 or more and below 1, got 1",
        ),
        (["train.concept_images=5"], r"train.concept_images: expected keys with values"),
        (
            ["train.concept_images.dress=few"],
            "train.concept_images.dress: expected int, got 'few'",
        ),
        (
            ["captions.absorb_tags=some", "captions.trigger_swap_rate=2"],
            "captions.absorb_tags=some: .*; captions.trigger_swap_rate=2",
        ),
        (["recipe=nope"], "Could not find 'recipe/nope'.* guide-prodigy$"),
        (["trian.epochs=4"], "there is no key trian.epochs: did you mean `train.epochs`"),
        (["xyzzy=4"], "there is no key xyzzy; `autolora train --cfg job` lists every key"),
        (["'train.epochs=3"], "is not understood: check its brackets and quotes"),
        (["optimizer.lr=-1"], "above 0"),
        (["justaword"], "key=value"),
        (["recipe=doll-prodigy", "optimizer.lr=0.01"], "Prodigy finds its own rate"),
    ],
)
def test_mistakes_are_told(arguments: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_run(config.compose("train", arguments))


def test_a_file_that_is_no_yaml_is_named(tmp_path: Path) -> None:
    study = tmp_path / "mine.yaml"
    study.write_text("# @package _global_\nstudy: {name: mine\n")
    with pytest.raises(ConfigError, match=r"this is no YAML: .* in \S+mine\.yaml, line 2") as told:
        config.compose("tune", [], str(study))
    assert "study.yaml" not in str(told.value)


@pytest.mark.parametrize("pack", ["0", "most"])
def test_what_is_no_number_of_trials_at_once_is_refused(pack: str) -> None:
    for right in ("auto", 3):
        study = settings([f"study.trials_per_device={right}"], "quickstart").study
        assert study is not None and study.trials_per_device == right
    with pytest.raises(ConfigError, match=r"study\.trials_per_device must be auto or a whole number of at least 1"):
        settings([f"study.trials_per_device={pack}"], "quickstart")


@pytest.mark.parametrize(
    ("ranges", "message"),
    [
        ("no.such: {int: [1, 2]}", r"no\.such"),
        ("optimizer.lr: {log: [0.01, 0.1]}", r"own 0\.003 is outside log"),
        ("train.epochs: {linear: [1, 4]}", r"train\.epochs=1\.0: train\.epochs: expected int, got 1\.0"),
        ("train.loss_type: {choice: [l2, l7]}", r"train\.loss_type=l7: train\.loss_type must be one of l2, huber"),
        ("train.batch_size: {int: [0, 8]}", r"train\.batch_size=0: train\.batch_size must be at least 1"),
        ("captions.drop_tags: {choice: [[], [[hat]]]}", r"choice takes numbers, words"),
        ("adapter.kind: {choice: [lora, nope]}", r"adapter\.kind=nope is unknown"),
        *(
            (f"{key}: {{choice: [{own}, 1]}}", f"{key}: a range would have no effect")
            for key, own in (("dataset.seed", 0), ("scoring.max_bleed", 0.15), ("study.trials_per_device", 2))
        ),
    ],
)
def test_ranges_of_no_use_are_refused_before_anything_is_trained(ranges: str, message: str, tmp_path: Path) -> None:
    study = tmp_path / "odd.yaml"
    study.write_text(f"# @package _global_\nstudy: {{name: odd, recipes: {{doll-adamw: {{{ranges}}}}}}}\n")
    with pytest.raises(ConfigError, match=message):
        define_study(settings([], str(study)))


def test_values_that_need_each_other_are_allowed(tmp_path: Path) -> None:
    study = tmp_path / "mine.yaml"
    study.write_text(
        "# @package _global_\nstudy: {name: mine, recipes: {doll-adamw: {train.min_snr_gamma: {choice: [null, 5.0]}, "
        "train.debiased_estimation_loss: {choice: [false, true]}, captions.drop_tags: {choice: [[], [hat, ^_^]]}}}}\n"
    )
    definition = define_study(settings([], str(study)))
    assert definition.default_values["doll-adamw"]["captions.drop_tags"] == []
    assert definition.run("doll-adamw", {"captions.drop_tags": ["hat", "^_^"]}).captions.drop_tags == ("hat", "^_^")


def test_steps_of_a_concept_and_captions_are_searched_like_any_key(tmp_path: Path) -> None:
    study = tmp_path / "mine" / "outfits.yaml"
    study.parent.mkdir()
    study.write_text(
        "# @package _global_\n"
        "study: {name: outfits, recipes: {doll-adamw: {train.concept_images.dress: {int: [100, 400]}, "
        "captions.absorb_tags: {choice: [none, marks, all]}, captions.trigger_swap_rate: {linear: [0, 0.5]}}}}\n"
    )
    definition = define_study(settings([], str(study)))
    assert definition.default_values["doll-adamw"] == {
        "train.concept_images.dress": 200,
        "captions.absorb_tags": "none",
        "captions.trigger_swap_rate": 0.0,
    }
    drawn = {"train.concept_images.dress": 300, "captions.absorb_tags": "all", "captions.trigger_swap_rate": 0.25}
    run = definition.run("doll-adamw", drawn)
    assert run.train.concept_images == {"dress": 300}
    assert (run.captions.absorb_tags, run.captions.trigger_swap_rate) == ("all", 0.25)
    assert build_run(config.compose("train", ["train.concept_images.mona_dress=7"])).train.concept_images == {
        "mona_dress": 7
    }


def test_a_session_must_hold_all_that_a_range_may_ask_for(tmp_path: Path) -> None:
    study = tmp_path / "mine" / "text.yaml"
    study.parent.mkdir()
    study.write_text(
        "# @package _global_\nstudy: {name: text, recipes: {doll-adamw: {train.epochs: {int: [1, 9]}, "
        "adapter.text_encoder: {choice: [false, true]}, adapter.dim: {log_int: [4, 64]}}}}\n"
    )
    definition = define_study(settings([], str(study)))
    adapters = [run.adapter for run in definition.widest_runs()]
    assert [(adapter.text_encoder, adapter.max_rank) for adapter in adapters] == [
        *((False, 16), (True, 16), (False, 4), (False, 64)),
        (True, 64),  # all at their largest, as a trial may be that takes the most memory
    ]


def test_a_file_to_start_from_is_known_by_its_content(tmp_path: Path) -> None:
    path = tmp_path / "mona.safetensors"
    path.write_bytes(b"one")
    first = build_run(config.compose("train", [f"init_lora={path}"]))
    assert first.init_lora is not None and first.init_lora.path == str(path) and len(first.init_lora.sha256) == 64
    path.write_bytes(b"other")
    assert build_run(config.compose("train", [f"init_lora={path}"])).fingerprint() != first.fingerprint()
    with pytest.raises(ConfigError, match=r"init_lora=.*gone\.safetensors is no file"):
        build_run(config.compose("train", [f"init_lora={tmp_path / 'gone.safetensors'}"]))


def test_how_an_export_is_written() -> None:
    found = settings(["export.dtype=bfloat16", "export.diffusers=true"]).export
    assert (found.dtype, found.diffusers) == ("bfloat16", True)
    with pytest.raises(ConfigError, match=r"export\.dtype must be one of float16, bfloat16, float32, got int8"):
        settings(["export.dtype=int8"])


def test_unknown_study_lists_the_known() -> None:
    with pytest.raises(ConfigError, match="quickstart"):
        config.find_study("nope")


HOSTILE_YAML = {
    "deep": ("a: " + "[" * 900 + "]" * 900, "nested too deeply"),
    "bomb": (
        "\n".join(f"x{i}: &a{i} [{f'*a{i - 1},' * 9 if i else '0'}]" for i in range(9)),
        "more than 20,000 values",
    ),
    "in itself": ("a: &a [*a]", "more than 20,000 values"),
    "number": ("a: " + "1" * 100_000, "more than 20,000 values"),
    "latin": (b"# \xe9", "save it as UTF-8"),
}


@pytest.mark.parametrize(("content", "message"), HOSTILE_YAML.values(), ids=HOSTILE_YAML)
def test_a_study_file_that_would_take_for_ever_is_refused(content: str | bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "received.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError, match=rf"received\.yaml .*{message}"):
        config.compose("tune", (), str(path))


def test_a_study_file_of_powershell_is_read(tmp_path: Path) -> None:
    text = "# @package _global_\nout: runs/Mónica\nstudy: {name: mona, recipes: {guide-adamw: {}}}\n"
    (tmp_path / "mine.yaml").write_text(text, encoding="utf-16")
    assert config.compose("tune", (), str(tmp_path / "mine.yaml")).out == "runs/Mónica"
