"""WD14 taggers, tested with a small ONNX model that turns the mean colours of an image into tags."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper
from PIL import Image

from autolora.errors import ConfigError
from autolora.prepare.tagger import choose_tags, load_tagger, preprocess, read_tags, spell, tag_images
from autolora.prepare.tagger_base import Tagger, TaggerSettings

SIDE = 8  # pixels
# Tag, category, and the weights of blue, green, red (the order of the model's input) and of the bias.
TAGS = [
    ("general", 9, (0, 0, 0, 1)),
    ("explicit", 9, (0, 0, 0, -1)),
    ("blue_sky", 0, (1, 0, 0, 0)),
    ("green_grass", 0, (0, 1, 0, 0)),
    ("red_(rose)", 0, (0, 0, 1, 0)),
    ("mona_(game)", 4, (0, 0, 0.4, 0)),
]
RED, BLUE = (np.full((SIDE, SIDE, 3), color, np.uint8) for color in ((255, 0, 0), (0, 0, 255)))


def save_model(folder: Path, batch: int | str = "N", first: bool = False, activation: str = "Sigmoid") -> Path:
    """Write `model.onnx`, with a logit of 6 for a full colour and -6 for none, and its selected_tags.csv."""
    folder.mkdir(parents=True, exist_ok=True)
    weight = np.array([w[:3] for _, _, w in TAGS], np.float32).T * (12 / 255)
    bias = np.array([2 * w[3] if w[3] else -6 for _, _, w in TAGS], np.float32)
    shape = [batch, 3, SIDE, SIDE] if first else [batch, SIDE, SIDE, 3]
    nodes = [
        helper.make_node("ReduceMean", ["pixels"], ["means"], axes=[2, 3] if first else [1, 2], keepdims=0),
        helper.make_node("MatMul", ["means", "weight"], ["weighted"]),
        helper.make_node("Add", ["weighted", "bias"], ["logits"]),
        helper.make_node(activation, ["logits"], ["predictions"]),
    ]
    graph = helper.make_graph(
        nodes,
        "tagger",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("predictions", TensorProto.FLOAT, [batch, len(TAGS)])],
        [onnx.numpy_helper.from_array(weight, "weight"), onnx.numpy_helper.from_array(bias, "bias")],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), folder / "model.onnx"
    )
    rows = [f"{i},{name},{category},1" for i, (name, category, _) in enumerate(TAGS)]
    (folder / "selected_tags.csv").write_text("\n".join(["tag_id,name,category,count", *rows, ""]))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("tagger"))


@pytest.fixture(scope="module")
def tagger(folder: Path) -> Tagger:
    return load_tagger(folder)


def test_colours_get_their_tags(tagger: Tagger) -> None:
    """Fails if the channels are not in BGR order, or not from 0 to 255."""
    red, blue = tagger.tag([RED, BLUE])
    assert (red["red_(rose)"], red["blue_sky"], red["green_grass"]) == pytest.approx((0.9975, 0.0025, 0.0025), abs=1e-4)
    assert (blue["blue_sky"], blue["red_(rose)"]) == pytest.approx((0.9975, 0.0025), abs=1e-4)
    assert tagger.categories["mona_(game)"] == "character"


@pytest.mark.parametrize(("batch", "first"), [(1, False), (2, False), ("N", True), (2, True)])
def test_other_layouts_and_fixed_batches_give_the_same_tags(
    tagger: Tagger, tmp_path: Path, batch: int | str, first: bool
) -> None:
    images = [RED, BLUE, RED]
    assert load_tagger(save_model(tmp_path, batch, first)).tag(images) == tagger.tag(images)


def test_images_are_padded_with_white_and_in_bgr_order(tagger: Tagger) -> None:
    wide = preprocess(np.full((4, 8, 3), (255, 0, 0), np.uint8), 8)
    assert (wide[:2] == 255).all() and (wide[6:] == 255).all()
    assert (wide[2:6] == (0, 0, 255)).all()
    clear = preprocess(Image.new("RGBA", (6, 6), (255, 0, 0, 0)), SIDE)
    assert clear.shape == (SIDE, SIDE, 3) and clear.dtype == np.float32 and (clear == 255).all()
    assert (preprocess(Image.new("L", (3, 3), 7), SIDE) == 7).all()


def test_tags_are_ordered_and_ratings_are_separate(tagger: Tagger) -> None:
    purple = np.full((5, 9, 3), (255, 0, 254), np.uint8)[:5, :5]
    finished: list[int] = []
    settings = TaggerSettings(character_threshold=0.2, batch_size=2)
    taggings = tag_images(tagger, [purple, BLUE, RED], settings, finished.append)
    assert [t.tag for t in taggings[0].tags] == ["mona (game)", "red (rose)", "blue sky"]
    assert taggings[0].caption == "mona (game), red (rose), blue sky"
    assert taggings[0].tags[0].score < taggings[0].tags[2].score < taggings[0].tags[1].score
    assert taggings[0].rating is not None and taggings[0].rating.tag == "general"
    assert [t.tag for t in taggings[1].tags] == ["blue sky"]
    assert finished == [2, 1]


def test_an_array_of_images_and_an_empty_list(tagger: Tagger) -> None:
    assert [r.caption for r in tag_images(tagger, np.stack([RED, BLUE]), TaggerSettings())] == [
        "red (rose)",
        "blue sky",
    ]
    assert tag_images(tagger, [], TaggerSettings()) == []


def test_thresholds_of_categories_and_exclusions() -> None:
    categories = {"long_hair": "general", "mona_(game)": "character", "safe": "rating"}
    scores = {"long_hair": 0.35, "mona_(game)": 0.84, "safe": 0.9}

    def chosen(**settings: Any) -> str:
        return choose_tags(scores, categories, TaggerSettings(**settings)).caption

    assert chosen() == "long hair"
    assert chosen(general_threshold=0.36) == ""
    assert chosen(character_threshold=0.84) == "mona (game), long hair"
    assert chosen(exclude=("Long_Hair",)) == chosen(exclude=("long hair",)) == ""
    assert choose_tags({"a": 1.0}, {"a": "general"}, TaggerSettings()).rating is None


@pytest.mark.parametrize("tag", ["^_^", "0_0", "(o)_(o)", "<|>_<|>", ">_o", "||_||", "u_u"])
def test_kaomojis_keep_their_underscores(tag: str) -> None:
    assert spell(tag, TaggerSettings()) == tag


def test_spelling_of_tags() -> None:
    assert spell("mona_(game)", TaggerSettings()) == "mona (game)"
    assert spell("mona_(game)", TaggerSettings(underscores=True)) == "mona_(game)"
    assert spell("mona_(game)", TaggerSettings(escape_brackets=True)) == r"mona \(game\)"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"general_threshold": 0}, r"tagger\.general_threshold must be above 0"),
        ({"character_threshold": 1.5}, r"tagger\.character_threshold must be above 0 and at most 1, got 1\.5"),
        ({"batch_size": 0}, r"tagger\.batch_size must be at least 1, got 0"),
    ],
)
def test_invalid_settings_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TaggerSettings(**wrong)


def test_missing_files_and_folders_are_errors(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no such folder; expected a folder with model\.onnx and selected_tags\.csv"):
        load_tagger(tmp_path / "nothing")
    with pytest.raises(ConfigError, match=r"model\.onnx and selected_tags\.csv missing in this folder"):
        load_tagger(tmp_path)
    (tmp_path / "model.onnx").write_bytes((folder / "model.onnx").read_bytes())
    with pytest.raises(ConfigError, match=r": selected_tags\.csv missing in this folder"):
        load_tagger(tmp_path)


def test_names_are_looked_up_only_in_the_hubs_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ConfigError, match=r"`hf download SmilingWolf/tagger model\.onnx selected_tags\.csv`"):
        load_tagger("SmilingWolf/tagger")
    entry = tmp_path / "models--SmilingWolf--tagger"
    save_model(entry / "snapshots" / "abc")
    (entry / "refs").mkdir()
    (entry / "refs" / "main").write_text("abc")
    assert len(load_tagger("SmilingWolf/tagger").categories) == len(TAGS)


def test_missing_onnxruntime_is_an_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ConfigError, match=r"install autolora\[tagger\]"):
        load_tagger(folder)


def test_a_broken_model_is_one_line(tmp_path: Path) -> None:
    (save_model(tmp_path) / "model.onnx").write_bytes(b"no model")
    with pytest.raises(ConfigError, match="cannot be loaded") as caught:
        load_tagger(tmp_path)
    assert "\n" not in str(caught.value)


def test_files_of_different_models_are_an_error(tmp_path: Path) -> None:
    table = save_model(tmp_path) / "selected_tags.csv"
    table.write_text(table.read_text() + "7,solo,0,1\n")
    with pytest.raises(ConfigError, match=r"has 6 tags, selected_tags\.csv lists 7: use two files"):
        load_tagger(tmp_path)


def test_outputs_that_are_not_probabilities(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected probabilities"):
        load_tagger(save_model(tmp_path, activation="Identity")).tag([RED])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "columns none; expected tag_id, name, category, count"),
        (b"tag,kind\n1girl,0\n", "columns tag, kind; expected"),
        (b"tag_id,name,category,count\n1,1girl,7,3\n", "line 2: got name '1girl' of category '7'"),
        (b"tag_id,name,category,count\n1,1girl,0,3\n1,1girl,0,3\n", "line 3: got name '1girl'"),
        (b"tag_id,name,category,count\n1,,0,3\n", "line 2: got name ''"),
        (b"tag_id,name,category,count\n1,1girl\n", "line 2: got name '1girl' of category None"),
        (b"tag_id,name,category,count\n1,\xff,0,3\n", "cannot be read"),
    ],
)
def test_broken_lists_of_tags(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "selected_tags.csv"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        read_tags(path)


def test_quoted_names_and_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "selected_tags.csv"
    path.write_bytes('\ufefftag_id,name,category,count\n1,"a,b",0,3\n'.encode())
    assert read_tags(path) == {"a,b": "general"}


def test_an_input_that_is_not_an_image(tmp_path: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("Sigmoid", ["x"], ["y"])],
        "none",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, len(TAGS)])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, len(TAGS)])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(model, save_model(tmp_path) / "model.onnx")
    with pytest.raises(ConfigError, match=r"its input has shape \[1, 6\]"):
        load_tagger(tmp_path)


def pixels(seed: int) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)


def test_tags_do_not_depend_on_the_batch_size(tagger: Tagger) -> None:
    images = [pixels(i) for i in range(5)]
    together = tag_images(tagger, images, TaggerSettings(batch_size=5, general_threshold=0.1))
    assert together == tag_images(tagger, images, TaggerSettings(batch_size=2, general_threshold=0.1))
