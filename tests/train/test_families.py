"""The loop trains base models of every family, and gives each its image sizes."""

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

pytestmark = pytest.mark.slow  # trains, renders or loads many models

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
    """Return the same run for every family, without the text encoder where LoRA files hold none."""
    return replace(RUN, adapter=replace(RUN.adapter, text_encoder=len(model.modules) > 1))


def make_context(model: BaseModel, folder: Path, cache: Path) -> TrainingContext:
    settings = DatasetSettings(path=str(folder), buckets=BucketSettings(count=2, bucket_reso_steps=16))
    dataset = with_buckets(load_dataset(settings), settings, model.resolution)
    class_pictures = tuple(replace(picture, caption="1girl") for picture in dataset.pictures[:4])
    return TrainingContext(
        model,
        attach(model.modules, run_of(model).adapter),
        dataset,
        LatentCache(model, cache),
        PromptCache(model),
        class_pictures,
    )


def train_all(context: TrainingContext, job: Job) -> list[Checkpoint]:
    jobs = iter([job])
    try:
        return [
            slot.checkpoint for ready in train(lambda: next(jobs, None), context) for slot in ready if slot.checkpoint
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
    models: dict[str, BaseModel] = {"sd1": tiny_model, "sd2": tiny_sd2, "sdxl": tiny_xl, **tiny_flows}
    return models[request.param]


def test_a_resumed_run_equals_an_uninterrupted_one(model: BaseModel, folder: Path, tmp_path: Path) -> None:
    run = run_of(model)
    checkpoints = train_all(make_context(model, folder, tmp_path), Job(run))
    checkpoint.save(checkpoints[0], tmp_path / "latest.pt")
    resumed = train_all(make_context(model, folder, tmp_path), Job(run, checkpoint.load(tmp_path / "latest.pt", run)))
    assert [c.step for c in checkpoints] == [c.step for c in resumed] and len(checkpoints) == 2
    for a, b in zip(checkpoints, resumed, strict=True):
        assert a.train_loss == b.train_loss and a.val_losses == b.val_losses
        assert all(torch.equal(a.state[key], b.state[key]) for key in a.state)
    assert {key.partition(".")[0] for key in checkpoints[0].state} == set(model.modules)


@pytest.mark.parametrize("family", tiny_flow.FAMILIES)
def test_flow_matching_trains_in_16_bit(
    family: str, tiny_flows: dict[str, FlowModel], folder: Path, tmp_path: Path
) -> None:
    expected = train_all(make_context(tiny_flows[family], folder, tmp_path), Job(run_of(tiny_flows[family])))
    path, half = Path(str(tiny_flows[family].source)), {"dtype": "bfloat16", "gradient_checkpointing": True}
    model = tiny_flow.load_tiny_flow(path, family, **half)
    checkpoints = train_all(make_context(model, folder, tmp_path), Job(run_of(model)))
    assert checkpoints[-1].train_loss == pytest.approx(expected[-1].train_loss, rel=0.02)
    assert checkpoints[-1].val_loss == pytest.approx(expected[-1].val_loss, rel=0.02)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_16_bit_weights_train(dtype: str, tiny_xl_dir: Path, folder: Path, tmp_path: Path) -> None:
    model = tiny.load_tiny(tiny_xl_dir, "sdxl", dtype=dtype, gradient_checkpointing=True)
    checkpoints = train_all(make_context(model, folder, tmp_path), Job(RUN))
    expected = train_all(make_context(tiny.load_tiny(tiny_xl_dir, "sdxl"), folder, tmp_path), Job(RUN))
    assert checkpoints[-1].train_loss == pytest.approx(expected[-1].train_loss, rel=0.02)
    assert checkpoints[-1].val_loss == pytest.approx(expected[-1].val_loss, rel=0.02)


def test_the_model_gets_the_crop_of_each_image(
    tiny_xl: StableDiffusion, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[Tensor, tuple[int, ...]]] = []
    predict = tiny_xl.predict

    def recording_predict(noisy: Tensor, timesteps: Tensor, conditioning: Context) -> Tensor:
        assert conditioning.sizes is not None and len(conditioning.sizes) == len(noisy)
        calls.append((conditioning.sizes, tuple(noisy.shape[2:])))
        return predict(noisy, timesteps, conditioning)

    monkeypatch.setattr(tiny_xl, "predict", recording_predict)
    context = make_context(tiny_xl, folder, tmp_path)
    expected = {size_ids(picture) for picture in (*context.dataset.pictures, *context.dataset.validation)}
    train_all(context, Job(RUN))
    assert {tuple(row) for sizes, _ in calls for row in sizes.tolist()} == expected
    for sizes, (height, width) in calls:
        assert {tuple(row[4:]) for row in sizes.tolist()} == {(4 * height, 4 * width)}


@pytest.mark.parametrize(
    ("size", "bucket", "flip", "expected"),
    [
        ((1600, 1000), (1024, 1024), False, (1000, 1600, 0, 307, 1024, 1024)),
        ((1600, 1000), (1024, 1024), True, (1000, 1600, 0, 307, 1024, 1024)),
        ((1000, 1600), (1024, 1024), False, (1600, 1000, 307, 0, 1024, 1024)),
        ((512, 512), (1024, 1024), False, (512, 512, 0, 0, 1024, 1024)),
        ((2048, 1024), (1344, 768), False, (1024, 2048, 0, 96, 768, 1344)),
    ],
)
def test_sizes_are_height_width_and_the_crop_of_the_resized_image(
    size: tuple[int, int], bucket: tuple[int, int], flip: bool, expected: tuple[int, ...]
) -> None:
    picture = Picture(Path("a.png"), "", "a", *size, "0", bucket=bucket)
    assert size_ids(picture, flip) == expected
