"""The loop trains every family of base models alike, and tells each what it needs to know of a picture."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from autolora.adapters.adapter_set import attach
from autolora.adapters.kinds import LoRA
from autolora.data.buckets import BucketSettings
from autolora.data.concepts import DatasetSettings, load_dataset, with_buckets
from autolora.data.crops import size_ids
from autolora.data.sources import Picture
from autolora.models.base import BaseModel, Context
from autolora.models.flow import FlowModel
from autolora.models.stable_diffusion import StableDiffusion
from autolora.optim.optimizers import AdamW
from autolora.optim.schedules import Constant
from autolora.train import checkpoint
from autolora.train.caches import LatentCache, PromptCache
from autolora.train.checkpoint import Checkpoint
from autolora.train.loop import train
from autolora.train.run import Run, TrainSettings
from autolora.train.slot import Job, TrainingContext
from tests import tiny, tiny_flow

RUN = Run(
    "families",
    LoRA(dim=2, alpha=1, text_encoder=True),
    AdamW(lr=1e-3),
    Constant(),
    TrainSettings(epochs=2, images_per_concept=6, batch_size=2, prior_preservation_ratio=0.5),
)
SIZES = [(48, 32), (32, 48), (40, 40), (64, 32), (36, 32), (32, 36)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("pictures") / "6_mona girl"
    out.mkdir()
    generator = torch.Generator().manual_seed(0)
    for i, (width, height) in enumerate(SIZES):
        pixels = torch.randint(256, (height, width, 3), generator=generator, dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(out / f"{i}.png")
        (out / f"{i}.txt").write_text(f"1girl, mona, tag{i}")
    return out.parent


def run_of(model: BaseModel) -> Run:
    """The same for every family, but for text encoders that no LoRA file holds."""
    return replace(RUN, adapter=replace(RUN.adapter, text_encoder=len(model.modules) > 1))


def work(model: BaseModel, folder: Path, cache: Path) -> TrainingContext:
    settings = DatasetSettings(path=str(folder), buckets=BucketSettings(count=2, bucket_reso_steps=16))
    dataset = with_buckets(load_dataset(settings), settings, model.resolution)
    drawn = tuple(replace(picture, caption="1girl") for picture in dataset.pictures[:4])
    return TrainingContext(
        model,
        attach(model.modules, run_of(model).adapter),
        dataset,
        LatentCache(model, cache),
        PromptCache(model),
        drawn,
    )


def train_all(context: TrainingContext, assignment: Job) -> list[Checkpoint]:
    waiting = iter([assignment])
    try:
        return [
            slot.checkpoint
            for ready in train(lambda: next(waiting, None), context)
            for slot in ready
            if slot.checkpoint
        ]
    finally:
        context.adapter.detach()


@pytest.fixture(params=["sd1", "sd2", "sdxl", *tiny_flow.FAMILIES])
def model(
    request: pytest.FixtureRequest,
    tiny_model: StableDiffusion,
    tiny_sd2: StableDiffusion,
    tiny_xl: StableDiffusion,
    tiny_flows: dict[str, FlowModel],
) -> BaseModel:
    found: dict[str, BaseModel] = {"sd1": tiny_model, "sd2": tiny_sd2, "sdxl": tiny_xl, **tiny_flows}
    return found[request.param]


def test_a_resumed_run_is_the_uninterrupted_one(model: BaseModel, folder: Path, tmp_path: Path) -> None:
    run = run_of(model)
    whole = train_all(work(model, folder, tmp_path), Job(run))
    checkpoint.save(whole[0], tmp_path / "latest.pt")
    resumed = train_all(work(model, folder, tmp_path), Job(run, checkpoint.load(tmp_path / "latest.pt", run)))
    assert [c.step for c in whole] == [c.step for c in resumed] and len(whole) == 2
    for a, b in zip(whole, resumed, strict=True):
        assert a.train_loss == b.train_loss and a.val_losses == b.val_losses
        assert all(torch.equal(a.state[key], b.state[key]) for key in a.state)
    assert {key.partition(".")[0] for key in whole[0].state} == set(model.modules)


@pytest.mark.parametrize("family", tiny_flow.FAMILIES)
def test_flow_matching_trains_in_16_bit(
    family: str, tiny_flows: dict[str, FlowModel], folder: Path, tmp_path: Path
) -> None:
    expected = train_all(work(tiny_flows[family], folder, tmp_path), Job(run_of(tiny_flows[family])))
    path, half = Path(str(tiny_flows[family].source)), {"dtype": "bfloat16", "gradient_checkpointing": True}
    model = tiny_flow.load_tiny_flow(path, family, **half)
    whole = train_all(work(model, folder, tmp_path), Job(run_of(model)))
    assert whole[-1].train_loss == pytest.approx(expected[-1].train_loss, rel=0.02)
    assert whole[-1].val_loss == pytest.approx(expected[-1].val_loss, rel=0.02)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_16_bit_weights_train(dtype: str, tiny_xl_dir: Path, folder: Path, tmp_path: Path) -> None:
    model = tiny.load_tiny(tiny_xl_dir, "sdxl", dtype=dtype, gradient_checkpointing=True)
    whole = train_all(work(model, folder, tmp_path), Job(RUN))
    expected = train_all(work(tiny.load_tiny(tiny_xl_dir, "sdxl"), folder, tmp_path), Job(RUN))
    assert whole[-1].train_loss == pytest.approx(expected[-1].train_loss, rel=0.02)
    assert whole[-1].val_loss == pytest.approx(expected[-1].val_loss, rel=0.02)


def test_the_model_is_told_how_each_picture_was_cropped(
    tiny_xl: StableDiffusion, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[Tensor, tuple[int, ...]]] = []
    predict = tiny_xl.predict

    def watched(noisy: Tensor, timesteps: Tensor, context: Context) -> Tensor:
        assert context.sizes is not None and len(context.sizes) == len(noisy)
        told.append((context.sizes, tuple(noisy.shape[2:])))
        return predict(noisy, timesteps, context)

    monkeypatch.setattr(tiny_xl, "predict", watched)
    context = work(tiny_xl, folder, tmp_path)
    expected = {size_ids(picture) for picture in (*context.dataset.pictures, *context.dataset.validation)}
    train_all(context, Job(RUN))
    assert {tuple(row) for sizes, _ in told for row in sizes.tolist()} == expected
    for sizes, (height, width) in told:
        assert {tuple(row[4:]) for row in sizes.tolist()} == {(4 * height, 4 * width)}


@pytest.mark.parametrize(
    ("size", "frame", "flip", "expected"),
    [
        ((1600, 1000), (1024, 1024), False, (1000, 1600, 0, 307, 1024, 1024)),
        ((1600, 1000), (1024, 1024), True, (1000, 1600, 0, 307, 1024, 1024)),
        ((1000, 1600), (1024, 1024), False, (1600, 1000, 307, 0, 1024, 1024)),
        ((512, 512), (1024, 1024), False, (512, 512, 0, 0, 1024, 1024)),
        ((2048, 1024), (1344, 768), False, (1024, 2048, 0, 96, 768, 1344)),
    ],
)
def test_sizes_are_height_before_width_and_crops_of_the_resized_picture(
    size: tuple[int, int], frame: tuple[int, int], flip: bool, expected: tuple[int, ...]
) -> None:
    picture = Picture(Path("a.png"), "", "a", *size, "0", bucket=frame)
    assert size_ids(picture, flip) == expected
