"""Metadata files: a dataset is the same in every layout, and every problem is reported in one line."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autolora.data.layouts.folders import list_folder
from autolora.data.layouts.metadata_files import list_metadata
from autolora.data.sources import Picture, SourceImages, read_source
from autolora.errors import DatasetError
from tests.data.folders import LAYOUTS, noise_image, write_concepts, write_layouts, write_zorak


def _relative(path: Path) -> list[Picture]:
    """The images of a path, with relative paths and without repeats."""
    pictures = read_source(path).pictures
    parents = {p.path.parents[1 if p.path.parent.name[:1].isdigit() else 0] for p in pictures}
    assert len(parents) == 1
    return [dataclasses.replace(p, path=p.path.relative_to(*parents), repeats=1) for p in pictures]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("plain", [False, True])
def test_a_dataset_is_the_same_in_every_layout(tmp_path: Path, layout: str, plain: bool) -> None:
    root = tmp_path / "src" / "zo rak"
    if plain:
        write_concepts(root, {"": ["1girl, zorak, café", 'a "quoted" one, with (brackets)', "zorak"]})
    else:
        write_zorak(root, 3)
        write_concepts(root, {"2_zorak": ["1girl, zorak, \\(x\\)", "zorak, {a|b}"]}, first_seed=20)
    paths = write_layouts(root, tmp_path / "out")
    expected = _relative(paths["folder"])
    assert len(expected) == (3 if plain else 8)
    assert _relative(paths[layout]) == expected


@settings(max_examples=15, deadline=None)
@given(
    st.lists(
        st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\ufeff\0"), max_size=12),
        min_size=1,
        max_size=4,
    )
)
def test_captions_are_read_equally_from_every_layout(captions: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "mona"
        root.mkdir()
        for number, caption in enumerate(captions):
            (root / f"{number:03}.png").touch()
            (root / f"{number:03}.txt").write_text(caption, encoding="utf-8", newline="")
        paths = write_layouts(root, Path(folder) / "out")
        expected = {entry.path.name: entry.caption for entry in list_folder(root).entries}
        for layout in ("metadata.jsonl", "metadata.csv", "kohya.jsonl"):
            listing = list_metadata(paths[layout] / layout)
            assert {entry.path.name: entry.caption for entry in listing.entries} == expected


def test_metadata_of_kohya_folders_has_their_repeats_and_may_be_the_path(tmp_path: Path) -> None:
    paths = write_layouts(write_zorak(tmp_path / "zorak", 2), tmp_path / "out")
    for layout in LAYOUTS[:-1]:
        source = read_source(paths[layout] / layout)
        assert source == read_source(paths[layout])
        assert {p.repeats for p in source.pictures} == {10}
        assert source.notes == ()


def _write(path: Path, *rows: object) -> None:
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), encoding="utf-8")


def _captions(source: SourceImages) -> list[str]:
    return [picture.caption for picture in source.pictures]


def test_caption_comes_before_tags_and_either_may_be_missing(folder: Path) -> None:
    entries = {"000": {"caption": "a girl,\n waving ", "tags": "1girl, hat", "train_resolution": [24, 24]}}
    _write(folder / "meta.json", {**entries, "001.png": {"tags": "1girl"}})
    assert _captions(read_source(folder)) == ["a girl, waving, 1girl, hat", "1girl"]
    _write(folder / "meta.json", {**entries, "001.png": {"tags": "", "caption": "a"}})
    assert _captions(read_source(folder))[1] == "a"


def test_windows_byte_order_mark_line_endings_and_separators(folder: Path) -> None:
    (folder / "fit").mkdir()
    (folder / "000.png").rename(folder / "fit" / "000.png")
    rows = ["file_name, text", '"fit\\000.png", "a, b"', "001.png, c", ""]
    (folder / "metadata.csv").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(rows).encode())
    source = read_source(folder)
    assert _captions(source) == ["c", "a, b"]
    assert {p.concept for p in source.pictures} == {"mona"}


@pytest.mark.parametrize("separator", [";", "\t", ","])
def test_a_table_of_a_spreadsheet_in_any_language_is_read(folder: Path, separator: str) -> None:
    rows = [("file_name", "text"), ("000.png", '"mona, hat; smile"'), ("001.png", '"mona"')]
    (folder / "metadata.csv").write_text("\n".join(map(separator.join, rows)))
    assert _captions(read_source(folder)) == ["mona, hat; smile", "mona"]


def test_line_separators_inside_json_do_not_end_a_line(folder: Path) -> None:
    _write(
        folder / "metadata.jsonl",
        '{"file_name": "000.png", "text": "a\u2028b"}',
        "",
        '{"file_name": "001.png", "text": "c"}',
    )
    assert _captions(read_source(folder))[1] == "c"


def test_moved_folders_are_found_by_the_end_of_their_paths(folder: Path) -> None:
    (folder / "fit").mkdir()
    noise_image(9).save(folder / "fit" / "000.png")
    keys = ("/content/drive/mona/fit/000.png", "D:\\pictures\\000", str(folder / "001.png"))
    _write(folder / "meta.json", {key: {"caption": str(i)} for i, key in enumerate(keys)})
    source = read_source(folder)
    names = [p.path.relative_to(folder).as_posix() for p in source.pictures]
    assert names == ["000.png", "001.png", "fit/000.png"]
    assert _captions(source) == ["1", "2", "0"]


def test_absolute_keys_below_a_relative_root_are_found(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _write(folder / "meta.json", {str(folder / f"{i:03}.png"): {"caption": "a"} for i in range(2)})
    monkeypatch.chdir(folder.parent)
    source = read_source(Path("mona"))
    assert [str(p.path) for p in source.pictures] == [str(Path("mona") / f"{i:03}.png") for i in range(2)]
    assert source.notes == ()


def test_metadata_replaces_caption_files_and_unlisted_images_are_named(folder: Path) -> None:
    (folder / "000.txt").write_text("beside")
    _write(folder / "metadata.jsonl", {"file_name": "000.png", "text": "listed"})
    source = read_source(folder)
    assert _captions(source) == ["listed"]
    assert source.notes == ("not listed in metadata.jsonl, so left out: 001.png",)


def test_two_metadata_files_are_an_error_that_names_both(folder: Path) -> None:
    _write(folder / "metadata.jsonl", {"file_name": "000.png", "text": "a"})
    _write(folder / "meta_cap.json", {"000": {"caption": "b"}})
    with pytest.raises(DatasetError, match=r"meta_cap.json and metadata.jsonl both list its images"):
        read_source(folder)
    assert _captions(read_source(folder / "meta_cap.json")) == ["b"]


def test_other_json_files_are_not_metadata(folder: Path) -> None:
    for name, content in (
        ("config.json", {"lr": 1e-4}),
        ("000.json", {"x": {"tags": "of a downloader"}}),
        ("001.png.json", {"x": {"tags": "of a downloader"}}),
        ("log.jsonl", {"step": 1}),
        ("_meta.json", {"000": {"caption": "set aside"}}),
        (".meta.json", {"000": {"caption": "hidden"}}),
        ("dataset.toml", "x = 1"),
        ("table.csv", "a,b"),
    ):
        _write(folder / name, content)
    for number in range(2):
        (folder / f"{number:03}.txt").write_text("beside")
    source = read_source(folder)
    assert _captions(source) == ["beside", "beside"]
    assert [note.split(":")[0] for note in source.notes] == ["config.json", "dataset.toml", "log.jsonl", "table.csv"]


def test_masks_beside_listed_images(folder: Path) -> None:
    (folder / "masks").mkdir()
    noise_image(0).save(folder / "masks" / "001.png")
    _write(folder / "meta.json", {f"{i:03}": {"caption": "a"} for i in range(2)})
    assert [p.mask for p in read_source(folder).pictures] == [None, folder / "masks" / "001.png"]


def test_the_error_for_the_parent_folder_names_the_dataset(folder: Path) -> None:
    _write(folder / "metadata.jsonl", {"file_name": "000.png", "text": "a"})
    with pytest.raises(DatasetError, match=r"no images here, but there are in `mona`: set dataset.path="):
        read_source(folder.parent)


ROW = '{"file_name": "000.png", "text": "a"}'
ENTRY = '"000.png": {"caption": "a"}'


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("meta.json", "{\n" + ENTRY + "\n,}", "meta.json line 3: broken JSON (Expecting property name"),
        ("meta.json", "{}", "meta.json: lists no images: add them"),
        ("meta.json", "[1]", "meta.json: expected an object of images, got a list"),
        ("meta.json", f'{{{ENTRY}, "001": "b"}}', "meta.json: `001` is text: write an object"),
        ("meta.json", f"{{{ENTRY}, {ENTRY}}}", "meta.json: `000.png` is listed more than once: keep one"),
        ("meta.json", f'{{{ENTRY}, "000": {{"tags": "b"}}}}', "`000` is listed already (meta.json): remove one"),
        (
            "meta.json",
            '{"000": {"train_resolution": [8, 8]}}',
            "no column `caption` or `tags`, it has train_resolution",
        ),
        ("meta.json", '{"000": {"caption": 3}}', "000.png: its caption in meta.json is a number: write text"),
        (
            "meta.json",
            '{"000": {"caption": "a", "tags": ["b"]}}',
            "000.png: its tags in meta.json is a list: write text",
        ),
        ("meta.json", '{"000": {"caption": " , "}}', "000.png: its caption in meta.json is empty: write its tags"),
        (
            "meta.json",
            '{"007.png": {"caption": "a"}}',
            "`007.png` does not exist: correct the path or remove the entry",
        ),
        ("meta.json", '{"x/000.png": {"caption": "a"}}', "`x/000.png` does not exist"),
        ("meta.json", '{"/x/007.png": {"caption": "a"}}', "`/x/007.png` does not exist"),
        ("meta.json", '{" ": {"caption": "a"}}', "no image path, got ' '"),
        ("meta.json", '{"two": {"caption": "a"}}', "`two` may be two.png or two.jpg: write its suffix"),
        ("meta.json", '{"x.gif": {"caption": "a"}}', "`x.gif`: .gif images are not supported: save it as .png"),
        ("meta.json", '{"x.dat": {"caption": "a"}}', "`x.dat` is not an image: correct the path"),
        ("meta.json", '{"x.png": {"caption": "a"}}', "x.png: an empty file: replace or remove it"),
        ("metadata.jsonl", ROW + "\n{", "metadata.jsonl line 2: broken JSON (Expecting property name"),
        ("metadata.jsonl", ROW + "\n7", "metadata.jsonl line 2: expected an object, got a number"),
        ("metadata.jsonl", ROW + "\n" + ROW, "line 2: `000.png` is listed already (metadata.jsonl line 1): remove one"),
        ("metadata.jsonl", ROW + '\n{"text": "a"}', "metadata.jsonl line 2: no image path, got None"),
        ("metadata.jsonl", ROW + '\n{"file_name": 3}', "metadata.jsonl line 2: no image path, got 3"),
        (
            "metadata.jsonl",
            ROW + '\n{"file_name": "001.png"}',
            "001.png: its caption in metadata.jsonl line 2 is empty",
        ),
        ("metadata.jsonl", '{"file_name": "000.png", "prompt": "a"}', "`text` or `caption`, it has file_name, prompt"),
        (
            "metadata.jsonl",
            '{"path": "000.png", "text": "a"}',
            "no column `image_path` or `file_name`, it has path, text",
        ),
        ("metadata.jsonl", "\n", "metadata.jsonl: lists no images"),
        (
            "metadata.csv",
            "file_name,text\n000.png,a, b",
            "metadata.csv line 2: more fields than columns: put the caption",
        ),
        ("metadata.csv", "file_name,text\n000.png", "000.png: its caption in metadata.csv line 2 is empty"),
        ("metadata.csv", 'file_name,text\n000.png,"a\n001.png,b', "metadata.csv line 3: broken CSV (unexpected end"),
        ("metadata.csv", "file|text\n000.png|a", "no column `image_path` or `file_name`, it has file|text"),
        ("metadata.csv", "text,file_name\n000.png," + "tag, " * 99, "does not exist"),
        ("metadata.csv", "text,file_name\n000.png," + "x" * 999, "does not exist"),
        ("metadata.csv", "", "metadata.csv: lists no images"),
        ("metadata.csv", b"file_name,text\n000.png,\xe9", "metadata.csv: not UTF-8 text: save it as UTF-8"),
    ],
)
def test_each_metadata_problem_is_one_line(folder: Path, name: str, content: str | bytes, message: str) -> None:
    for number, image in enumerate(("two.png", "two.jpg", "x.gif")):
        noise_image(number).save(folder / image)
    for empty in ("x.png", "x.dat"):
        (folder / empty).write_bytes(b"")
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DatasetError) as caught:
        read_source(folder / name)
    assert message in str(caught.value)


def test_all_metadata_problems_are_reported_together(folder: Path) -> None:
    (folder / "000.png").write_bytes(b"")
    rows = ("{", {"file_name": "7.png", "text": "a"}, {"file_name": "000.png"}, {"file_name": "001.png", "text": ""})
    _write(folder / "metadata.jsonl", ROW, *rows)
    with pytest.raises(DatasetError) as caught:
        read_source(folder)
    text = str(caught.value)
    assert text.startswith(f"{folder}: 5 problems\n")
    for part in ("line 2: broken", "`7.png` does not", "listed already", "000.png: an empty", "001.png: its caption"):
        assert part in text
