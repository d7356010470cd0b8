"""Fixtures shared by all tests."""

from __future__ import annotations

import gc
from collections import defaultdict
from pathlib import Path

import pytest
import torch

from autolora.models.flow import FlowModel
from autolora.models.stable_diffusion import StableDiffusion
from tests import tiny, tiny_flow

gc.disable()  # until all test files are imported: what they make stays


def pytest_collection_finish() -> None:
    """Let the garbage collector look at what the tests make only, and less often: it took a tenth of the time."""
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)
    gc.enable()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let one worker run all tests of a file, or all that read the finished study, so that fixtures are built once.

    What takes long comes first, so that the workers end together.
    """
    fixtures = defaultdict[Path, set[str]](set)
    for item in items:
        fixtures[item.path].update(getattr(item, "fixturenames", ()))
    for item in items:
        group = "finished" if "finished" in fixtures[item.path] else str(item.path)
        item.add_marker(pytest.mark.xdist_group(group))
    items.sort(key=lambda item: ("finished" not in fixtures[item.path], item.get_closest_marker("slow") is None))


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Tiny tensors run faster on one thread, and several tests compare bit for bit."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A StableDiffusionPipeline folder of random weights (v-prediction, 32 px); read only."""
    return tiny.save_tiny(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="session")
def tiny_model(tiny_model_dir: Path) -> StableDiffusion:
    """The model of `tiny_model_dir`, shared: whoever attaches an adapter detaches it again."""
    return tiny.load_tiny(tiny_model_dir)


@pytest.fixture(scope="session")
def tiny_sd2(tmp_path_factory: pytest.TempPathFactory) -> StableDiffusion:
    """A Stable Diffusion 2 of random weights (v-prediction, 32 px), shared as above."""
    return tiny.load_tiny(tiny.save_tiny(tmp_path_factory.mktemp("tiny") / "sd2", family="sd2"), "sd2")


@pytest.fixture(scope="session")
def tiny_xl_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A StableDiffusionXLPipeline folder of random weights (noise prediction, 32 px); read only."""
    return tiny.save_tiny_xl(tmp_path_factory.mktemp("tiny") / "xl")


@pytest.fixture(scope="session")
def tiny_xl(tiny_xl_dir: Path) -> StableDiffusion:
    """The model of `tiny_xl_dir`, shared: whoever attaches an adapter detaches it again."""
    return tiny.load_tiny(tiny_xl_dir, "sdxl")


@pytest.fixture(scope="session")
def tiny_flows(tmp_path_factory: pytest.TempPathFactory) -> dict[str, FlowModel]:
    """A flow-matching model of random weights of each family (32 px), with its folder as `source`; shared as above."""
    folder = tmp_path_factory.mktemp("flow")
    return {f: tiny_flow.load_tiny_flow(tiny_flow.save_tiny_flow(folder / f, f), f) for f in tiny_flow.FAMILIES}
