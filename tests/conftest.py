"""Fixtures shared by all tests."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from autolora.models.flow import FlowModel
from autolora.models.stable_diffusion import StableDiffusion
from tests import tiny, tiny_flow


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
