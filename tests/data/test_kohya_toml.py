"""Dataset files of sd-scripts: which keys are read, notes on the others, and one line per problem."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from autolora.config import ROOT
from autolora.data.layouts import kohya_toml
from autolora.data.sources import read_source
from autolora.errors import DatasetError
from tests.data.folders import noise_image, write_concepts


def _toml(root: Path, text: str) -> Path:
    (root / "dataset.toml").write_text(text, encoding="utf-8")
    return root / "dataset.toml"


def test_toml_keys_are_inherited_and_the_innermost_wins(tmp_path: Path) -> None:
    write_concepts(tmp_path, {"a": ["x", "y"], "b": ["z"], "1_1girl": ["r"], "c": ["u"]})
    (tmp_path / "c" / "000.txt").rename(tmp_path / "c" / "000.wd")
    (tmp_path / "1_1girl" / "000.txt").unlink()
    path = _toml(
        tmp_path,
        """
        [general]
        num_repeats = 2
        caption_prefix = "best,"
        [[datasets]]
        num_repeats = 3
        [[datasets.subsets]]
        image_dir = "b"
        num_repeats = 4
        class_tokens = "mona"
        caption_suffix = "!"
        [[datasets.subsets]]
        image_dir = 'a'
        caption_prefix = ""
        [[datasets]]
        [[datasets.subsets]]
        image_dir = "c"
        caption_extension = ".wd"
        [[datasets.subsets]]
        image_dir = "1_1girl"
        is_reg = true
        """,
    )
    source = read_source(path)
    assert [(p.path.parent.name, p.caption, p.concept, p.repeats) for p in source.pictures] == [
        ("a", "x", "a", 3),
        ("a", "y", "a", 3),
        ("b", "best, z !", "mona", 4),
        ("c", "best, u", "c", 2),
    ]
    assert [(p.caption, p.concept) for p in source.regularization] == [("best, 1girl", "1girl")]


def test_toml_class_tokens_caption_a_folder_without_captions(folder: Path) -> None:
    subset = '[[datasets]]\n[[datasets.subsets]]\nimage_dir="mona"\nclass_tokens="mona girl"'
    source = read_source(_toml(folder.parent, subset))
    assert [p.caption for p in source.pictures] == ["mona girl"] * 2
    assert source.notes == ("mona: no caption files, so every image gets the caption `mona girl`",)


def test_toml_with_metadata_and_masks(folder: Path) -> None:
    base = folder.parent
    (base / "masks of mona").mkdir()
    noise_image(0).save(base / "masks of mona" / "001.jpg")
    noise_image(0).save(base / "masks of mona" / "of another subset.png")
    (base / "meta.json").write_text(json.dumps({f"{i:03}": {"caption": "a"} for i in range(2)}))
    keys = "image_dir='mona'\nconditioning_data_dir='masks of mona'\nnum_repeats=5\n"
    path = _toml(base, f"[[datasets]]\n[[datasets.subsets]]\n{keys}metadata_file='meta.json'")
    masks = [None, base / "masks of mona" / "001.jpg"]
    source = read_source(path)
    assert [(p.mask, p.repeats, p.concept) for p in source.pictures] == [(mask, 5, "mona") for mask in masks]
    source = read_source(_toml(base, f"[[datasets]]\n[[datasets.subsets]]\n{keys}class_tokens='mona'"))
    assert [p.mask for p in source.pictures] == masks
    assert source.notes == (
        "mona: no caption files, so every image gets the caption `mona`",
        "masks of mona: no mask for 000.png: the whole image counts",
    )


def test_toml_folders_are_relative_to_the_file_or_else_to_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_concepts(tmp_path / "here", {"a": ["file's"], "b": ["file's"]})
    write_concepts(tmp_path / "there", {"b": ["directory's"], "c": ["directory's"]})
    monkeypatch.chdir(tmp_path / "there")
    subsets = "\n".join(f"[[datasets.subsets]]\nimage_dir='{name}'" for name in "abc")
    assert [p.caption for p in read_source(_toml(tmp_path / "here", f"[[datasets]]\n{subsets}")).pictures] == [
        "file's",
        "file's",
        "directory's",
    ]


@pytest.mark.parametrize(
    ("keys", "written", "caption"),
    [
        ("keep_tokens_separator='|||'", "mona, 1girl ||| smile, hat ||| best", "mona, 1girl, smile, hat, best"),
        ("secondary_separator=';;;'", "mona, red dress;;;hat", "mona, red dress, hat"),
        ("caption_separator=';'\nkeep_tokens_separator='|||'", "mona; 1girl ||| a; b", "mona, 1girl, a, b"),
        ("caption_separator='.'", "1girl. a hat, blue.", "1girl, a hat, blue"),
        ("keep_tokens_separator=''\nsecondary_separator=''", "mona ||  hat", "mona ||  hat"),
        ("enable_wildcard=true", "mona, {o}", "mona, {o}"),
        ("enable_wildcard=false", "mona, {a|b}", "mona, {a|b}"),
    ],
)
def test_separators_never_become_text_that_is_trained_on(tmp_path: Path, keys: str, written: str, caption: str) -> None:
    write_concepts(tmp_path, {"a": [written]})
    source = read_source(_toml(tmp_path, f"[general]\n{keys}\n{SUBSET}image_dir='a'"))
    assert [picture.caption for picture in source.pictures] == [caption]
    kept = [note for note in source.notes if "train.keep_tokens=2" in note]
    assert bool(kept) == (" ||| " in written)


@pytest.mark.parametrize(
    ("keys", "written", "message"),
    [
        ("enable_wildcard=true", "mona, {red|blue} dress", "holds the wildcard `{red|blue}`: write one of its words"),
        ("keep_tokens_separator='|||'", "|||", "holds separators only"),
        ("caption_separator=1", "mona", "caption_separator=1: must be text"),
    ],
)
def test_captions_that_cannot_be_separated_are_refused(tmp_path: Path, keys: str, written: str, message: str) -> None:
    write_concepts(tmp_path, {"a": [written]})
    with pytest.raises(DatasetError, match=re.escape(message)):
        read_source(_toml(tmp_path, f"[general]\n{keys}\n{SUBSET}image_dir='a'"))


def test_toml_notes_name_the_equivalent_key(tmp_path: Path) -> None:
    write_concepts(tmp_path, {"a": ["x"]})
    general = "keep_tokens=2\nshuffle_caption=false\nshufle_caption=true\nzzz=1\ncolor_aug=true\nrandom_crop=false"
    subset = '[[datasets.subsets]]\nimage_dir="a"\nkeep_tokens=3\n'
    dataset = f"[[datasets]]\nresolution=[512, 768]\n{subset}"
    source = read_source(_toml(tmp_path, f"wrong=1\n[general]\n{general}\n{dataset}{dataset}num_repeats=7"))
    assert [p.repeats for p in source.pictures] == [1]
    assert source.notes == (
        "wrong in the file is unknown",
        "keep_tokens=3 in the file is not read: set train.keep_tokens=3",
        "shuffle_caption=false in the file is not read: set train.shuffle_caption=false",
        "shufle_caption in the file is unknown: did you mean shuffle_caption?",
        "zzz in the file is unknown",
        "color_aug=true in the file is not used",
        "resolution=[512, 768] in the file is not read: "
        "set model.resolution to a resolution that the base model was trained at",
        "a: in several subsets, only the first is used",
    )


def test_keys_named_in_toml_notes_exist() -> None:
    configs = {"train": OmegaConf.load(ROOT / "conf/train.yaml").train}
    configs |= {
        name: OmegaConf.load(ROOT / f"conf/{name}/{file}.yaml")
        for name, file in (("dataset", "folder"), ("model", "sd15"))
    }
    keys = re.findall(r"set (\w+)\.([\w.]+)", " ".join(kohya_toml._AUTOLORA_KEYS.values()))
    assert len(keys) > 10
    for group, key in keys:
        *above, last = key.split(".")
        node = OmegaConf.select(configs[group], ".".join(above)) if above else configs[group]
        assert last in node, f"{group}.{key}"


SUBSET = "[[datasets]]\n[[datasets.subsets]]\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[general]\nx = ", "dataset.toml: broken TOML: Invalid value (at end of document): correct it"),
        ('[general]\nx = "C:\\x"', "correct it (Windows paths: use / or 'single quotes')"),
        ("# \xe9".encode("latin-1"), "dataset.toml: not UTF-8 text: save it as UTF-8"),
        ("", "no images: add [[datasets]] and below it [[datasets.subsets]] with image_dir"),
        ("general = 1", "general is not a table: write its keys below [general]"),
        ("[datasets]", "datasets is not a list of tables: write [[datasets]], with two brackets"),
        ("[[datasets]]\n[datasets.subsets]", "subsets is not a list of tables: write [[datasets.subsets]]"),
        (SUBSET + "num_repeats=1", "subset 1: no image_dir: add image_dir = 'FOLDER'"),
        (SUBSET + "image_dir='b'", "subset 1: image_dir `b` does not exist, neither in "),
        (SUBSET + "image_dir='~nobody at all'", "subset 1: image_dir `~nobody at all` does not exist"),
        (SUBSET + f"image_dir='{'x' * 999}'", "does not exist"),
        (SUBSET + "image_dir=3", "subset 1: image_dir=3: must be text"),
        (SUBSET + "image_dir='a/000.png'", "image_dir `a/000.png` does not exist"),
        (SUBSET + "image_dir='.'", "subset 1: no images in .: subfolders are not searched"),
        (SUBSET + "image_dir='a'\nconditioning_data_dir='m'", "conditioning_data_dir `m` does not exist"),
        (SUBSET + "image_dir='a'\nmetadata_file='a.json'", "metadata_file `a.json` does not exist"),
        (
            SUBSET + "image_dir='a'\nmetadata_file='a/000.png'",
            'metadata_file="a/000.png": must be a .json, .jsonl, .csv file',
        ),
        (SUBSET + "image_dir='a'\nnum_repeats=0", "num_repeats=0: must be at least 1; remove the subset"),
        (SUBSET + "image_dir='a'\nnum_repeats=true", "num_repeats=true: must be a whole number"),
        (SUBSET + "image_dir='a'\nnum_repeats=1.5", "num_repeats=1.5: must be a whole number"),
        (SUBSET + "image_dir='a'\nis_reg='yes'", 'is_reg="yes": must be true or false'),
        (SUBSET + "image_dir='a'\nclass_tokens=1979-05-27", 'class_tokens="1979-05-27": must be text'),
        (SUBSET + "image_dir='a'\ncaption_extension='/txt'", "must be a file extension, such as .txt"),
        (SUBSET + "image_dir='a'\ncaption_extension=''", "must be a file extension, such as .txt"),
        (
            SUBSET + "image_dir='a'\ncaption_extension='.wd'",
            "000.png: no caption: write its tags into 000.wd beside it",
        ),
        (
            SUBSET + "image_dir='a'\n[[datasets.subsets]]\nimage_dir='a'\nis_reg=true",
            "listed for training and for regularization",
        ),
    ],
)
def test_each_toml_problem_is_one_line(tmp_path: Path, content: str | bytes, message: str) -> None:
    write_concepts(tmp_path, {"a": ["x"]})
    (tmp_path / "dataset.toml").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DatasetError) as caught:
        read_source(tmp_path / "dataset.toml")
    text = str(caught.value)
    assert message in text
    assert "\n" not in text


def test_all_toml_problems_are_reported_together(tmp_path: Path) -> None:
    write_concepts(tmp_path, {"a": [""]})
    subsets = ("image_dir='a'", "image_dir='b'\nnum_repeats=0", "image_dir='c'\nis_reg=1")
    path = _toml(tmp_path, "[[datasets]]\n" + "\n".join(f"[[datasets.subsets]]\n{keys}" for keys in subsets))
    with pytest.raises(DatasetError) as caught:
        read_source(path)
    text = str(caught.value)
    assert text.startswith(f"{path}: 5 problems\n")
    for part in ("subset 2: num_repeats", "subset 2: image_dir", "subset 3: is_reg", "subset 3: image_dir", "000.png"):
        assert part in text
