"""The SDXL model compared with diffusers' own pipeline, from prompts to an exported LoRA."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionXLPipeline

from autolora.adapters.adapter_set import AdapterSet, attach
from autolora.adapters.base import State
from autolora.adapters.formats import kohya_name
from autolora.adapters.kinds import LoRA
from autolora.adapters.read import read_lora, read_metadata
from autolora.errors import ConfigError, ModelError
from autolora.export.metadata import ExportFacts
from autolora.export.readers.diffusers import DiffusersReference
from autolora.export.verify import compare_renders, verify_deltas
from autolora.export.write import export_lora
from autolora.models.base import Context
from autolora.models.load import load_model
from autolora.models.settings import ModelSettings, RenderSettings
from autolora.models.stable_diffusion import StableDiffusion
from autolora.sampling import RenderRequest, render
from tests import tiny
from tests.adapters.test_contract import KINDS, move
from tests.export.diffusers_log import warnings_at_loading
from tests.export.world import dataset, run

pytestmark = pytest.mark.slow  # trains, renders or loads many models

PIPELINE: Any = StableDiffusionXLPipeline
SPEC = LoRA(dim=4, alpha=2, text_encoder=True, targets=("attention", "feed_forward", "projections", "conv"))
FACTS = ExportFacts("1girl, zorak", 0.7, "a test", 40)
PROMPTS = ["1girl, Mona", "", "mona_(é), " * 7]


@pytest.fixture(scope="module")
def pipeline(tiny_xl_dir: Path) -> Any:
    pipeline = PIPELINE.from_pretrained(tiny_xl_dir, torch_dtype=torch.float32)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, clip_sample=False)  # type: ignore[no-untyped-call]
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture
def adapter(tiny_xl: StableDiffusion) -> Iterator[AdapterSet]:
    adapter_set = attach(tiny_xl.modules, SPEC)
    adapter_set.start(0, SPEC, torch.Generator().manual_seed(0))
    move(adapter_set, size=0.05)
    yield adapter_set
    adapter_set.detach()


def noisy_of(model: StableDiffusion, count: int = 2) -> torch.Tensor:
    return torch.randn(count, *model.latent_shape, generator=torch.Generator().manual_seed(3))


def test_prompts_encode_as_in_diffusers(tiny_xl: StableDiffusion, pipeline: Any) -> None:
    expected = [pipeline.encode_prompt(prompt, device="cpu", do_classifier_free_guidance=False) for prompt in PROMPTS]
    contexts = tiny_xl.encode_prompts(PROMPTS)
    assert contexts.pooled is not None and len(contexts) == 3
    torch.testing.assert_close(contexts.tokens, torch.cat([e[0] for e in expected]), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(contexts.pooled, torch.cat([e[2] for e in expected]), atol=1e-5, rtol=1e-4)


def test_a_long_prompt_has_more_tokens_and_the_pooled_embedding_of_its_first_window(tiny_xl: StableDiffusion) -> None:
    long = ", ".join(f"tag{i:02}" for i in range(20))
    both, first = tiny_xl.encode_prompts(["1girl", long]), tiny_xl.encode_prompts([long[: long.index("tag12")]])
    assert both.tokens.shape[1] == 2 * tiny.TOKENS
    assert both.pooled is not None and first.pooled is not None
    torch.testing.assert_close(both.pooled[1:], first.pooled, atol=1e-5, rtol=1e-4)


def test_the_unet_gets_the_pooled_prompt_and_the_crop(tiny_xl: StableDiffusion, pipeline: Any) -> None:
    context, noisy, steps = tiny_xl.encode_prompts(["a", "b"]), noisy_of(tiny_xl), torch.tensor([10, 900])
    sizes = torch.tensor([[48, 40, 4, 0, 32, 32], [32, 32, 0, 0, 32, 32]])
    added = {"text_embeds": context.pooled, "time_ids": sizes}
    expected = pipeline.unet(noisy, steps, context.tokens, added_cond_kwargs=added, return_dict=False)[0]
    cropped = tiny_xl.predict(noisy, steps, Context(context.tokens, context.pooled, sizes))
    torch.testing.assert_close(cropped, expected, atol=1e-5, rtol=1e-4)
    uncropped = tiny_xl.predict(noisy, steps, context)
    assert torch.allclose(uncropped[1], cropped[1], atol=1e-6)
    assert not torch.allclose(uncropped[0], cropped[0], atol=1e-6)


def test_a_render_equals_diffusers(tiny_xl: StableDiffusion, pipeline: Any) -> None:
    settings = RenderSettings(num_inference_steps=5, guidance_scale=3.0, negative_prompt="red")
    images = render(tiny_xl, [RenderRequest("1girl, mona", 7, 0.0), RenderRequest("b", 8, 0.0)], settings)
    for image, prompt, seed in zip(images, ["1girl, mona", "b"], [7, 8], strict=True):
        expected = pipeline(
            prompt,
            negative_prompt="red",
            num_inference_steps=5,
            guidance_scale=3.0,
            generator=torch.Generator().manual_seed(seed),
        ).images[0]
        assert np.abs(image.astype(int) - np.asarray(expected).astype(int)).max() <= 1


def test_clip_skip_2_is_the_default_and_is_verified_by_renders(
    tiny_xl_dir: Path, adapter: AdapterSet, tmp_path: Path
) -> None:
    plain, model = (tiny.load_tiny(tiny_xl_dir, "sdxl", clip_skip=skip) for skip in (None, 2))
    assert torch.equal(model.encode_prompts(PROMPTS).tokens, plain.encode_prompts(PROMPTS).tokens)
    path = export_lora(adapter.state(0), run(SPEC), dataset(), model, tmp_path, "xl", facts=FACTS).path
    assert read_metadata(path)["ss_clip_skip"] == "None" and DiffusersReference(path, tiny_xl_dir, model).can_render


def test_an_export_predicts_the_same_in_diffusers(
    tiny_xl: StableDiffusion, tiny_xl_dir: Path, adapter: AdapterSet, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state = adapter.state(0)
    exported = export_lora(state, run(SPEC), dataset(), tiny_xl, tmp_path, "xl", facts=FACTS, dtype=torch.float32)
    metadata = read_metadata(exported.path)
    assert metadata["ss_base_model_version"] == "sdxl_base_v1-0" and metadata["ss_v_parameterization"] == "False"
    assert metadata["modelspec.architecture"] == "stable-diffusion-xl-v1-base/lora"
    assert {path.partition(".")[0] for path in adapter.layers} == {"unet", "text_encoder", "text_encoder_2"}
    assert verify_deltas(state, exported.path, tiny_xl).delta_error < 1e-5
    back = read_lora(exported.path, tiny_xl)
    assert back.keys() == state.keys() and all(torch.allclose(back[key], state[key].float()) for key in state)
    reference = DiffusersReference(exported.path, tiny_xl_dir, tiny_xl)
    assert reference.verify_deltas(state).layers == len(adapter.layers)
    noisy, steps = noisy_of(tiny_xl), torch.tensor([50, 700])
    context = tiny_xl.encode_prompts(["1girl", "hat"])
    added = {"text_embeds": context.pooled, "time_ids": torch.tensor([[32, 32, 0, 0, 32, 32]] * 2)}
    with torch.no_grad():
        ours = tiny_xl.predict(noisy, steps, context)
        theirs = reference.pipeline.unet(noisy, steps, context.tokens, added_cond_kwargs=added, return_dict=False)[0]
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    with adapter.disabled():
        assert not torch.allclose(tiny_xl.predict(noisy, steps, context), ours, atol=1e-3)
    requests, settings = (
        [RenderRequest("1girl", 3, 1.0), RenderRequest("hat", 4, 0.5)],
        RenderSettings(num_inference_steps=3, guidance_scale=2.0),
    )
    compare_renders(render(tiny_xl, requests, settings, adapter), reference.render(requests, settings))
    assert warnings_at_loading(exported.path, tiny_xl_dir, "sdxl", caplog) == []


@pytest.mark.parametrize("kind", KINDS)
def test_every_adapter_is_trained_in_32_bits_on_16_bit_weights(kind: str, tiny_xl_dir: Path, tmp_path: Path) -> None:
    model = tiny.load_tiny(tiny_xl_dir, "sdxl", dtype="bfloat16", gradient_checkpointing=True)
    spec = KINDS[kind]
    adapter = attach(model.modules, spec)
    adapter.start(0, spec, torch.Generator().manual_seed(0))
    move(adapter, size=0.05)
    with adapter.weighted(torch.tensor([1.0, 0.5])):
        predicted = model.predict(noisy_of(model), torch.tensor([50, 700]), model.encode_prompts(["1girl", "hat"]))
        predicted.square().mean().backward()
    adapter.gather_grads()
    assert predicted.dtype == torch.float32
    for path, layer in adapter.layers.items():
        unused = path.startswith("text_encoder.encoder.layers.1.")  # the first encoder's last layer is not used
        for parameter in layer.delta.parameters(0):
            assert parameter.dtype == torch.float32
            assert unused or (parameter.grad is not None and parameter.grad.dtype == torch.float32), path
    path = export_lora(adapter.state(0), run(spec), dataset(), model, tmp_path, kind, facts=FACTS).path
    verify_deltas(adapter.state(0), path, model)


def gradients(model: StableDiffusion, weights: torch.Tensor) -> State:
    spec = LoRA(dim=2, alpha=1)
    adapter = attach(model.modules, spec)
    try:
        adapter.start(0, spec, torch.Generator().manual_seed(0))
        move(adapter)
        with adapter.weighted(weights):
            context = model.encode_prompts(["1girl", "hat"])
            loss = model.predict(noisy_of(model), torch.tensor([50, 700]), context).square().mean()
            (loss * model.loss_scale).backward()
        adapter.gather_grads(model.loss_scale)
        return {str(i): p.grad.clone() for i, p in enumerate(adapter.parameters(0)) if p.grad is not None}
    finally:
        adapter.detach()


def test_checkpointed_gradients_are_the_same(tiny_xl: StableDiffusion, tiny_xl_dir: Path) -> None:
    weights = torch.tensor([0.3, 1.0])
    expected = gradients(tiny_xl, weights)
    checkpointed = gradients(tiny.load_tiny(tiny_xl_dir, "sdxl", gradient_checkpointing=True), weights)
    assert checkpointed.keys() == expected.keys() and len(checkpointed)
    assert all(torch.allclose(checkpointed[key], expected[key], atol=1e-6) for key in expected)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_gradients_of_16_bit_weights_are_close(dtype: str, tiny_xl: StableDiffusion, tiny_xl_dir: Path) -> None:
    expected = torch.cat([g.flatten() for g in gradients(tiny_xl, torch.ones(2)).values()])
    half = gradients(tiny.load_tiny(tiny_xl_dir, "sdxl", dtype=dtype), torch.ones(2))
    gradient = torch.cat([g.flatten() for g in half.values()])
    assert float((gradient - expected).norm() / expected.norm()) < 0.1


def test_a_wrong_family_is_refused_with_the_right_one(tiny_model_dir: Path, tiny_xl_dir: Path) -> None:
    with pytest.raises(ModelError, match=r"is an SDXL model \(StableDiffusionXLPipeline\): set model\.family=sdxl"):
        load_model(ModelSettings(path=str(tiny_xl_dir)))
    with pytest.raises(ModelError, match=r"is a Stable Diffusion 1.x model .*: set model\.family=sd1"):
        load_model(ModelSettings(family="sdxl", path=str(tiny_model_dir)))
    with pytest.raises(ConfigError, match=r"model\.dtype must be one of float32, bfloat16, float16, got half"):
        ModelSettings(dtype="half")


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("unet.down_blocks.0.resnets.0.conv1", "lora_unet_input_blocks_1_0_in_layers_2"),
        ("unet.down_blocks.0.downsamplers.0.conv", "lora_unet_input_blocks_3_0_op"),
        ("unet.down_blocks.1.resnets.0.conv_shortcut", "lora_unet_input_blocks_4_0_skip_connection"),
        (
            "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k",
            "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k",
        ),
        ("unet.down_blocks.2.attentions.1.proj_in", "lora_unet_input_blocks_8_1_proj_in"),
        ("unet.mid_block.resnets.1.time_emb_proj", "lora_unet_middle_block_2_emb_layers_1"),
        (
            "unet.mid_block.attentions.0.transformer_blocks.9.ff.net.2",
            "lora_unet_middle_block_1_transformer_blocks_9_ff_net_2",
        ),
        ("unet.up_blocks.0.upsamplers.0.conv", "lora_unet_output_blocks_2_2_conv"),
        ("unet.up_blocks.1.attentions.2.proj_out", "lora_unet_output_blocks_5_1_proj_out"),
        ("unet.up_blocks.2.resnets.2.conv2", "lora_unet_output_blocks_8_0_out_layers_3"),
        ("unet.conv_out", "lora_unet_out_2"),
        ("unet.add_embedding.linear_2", "lora_unet_label_emb_0_2"),
        ("text_encoder.encoder.layers.0.mlp.fc1", "lora_te1_text_model_encoder_layers_0_mlp_fc1"),
        (
            "text_encoder_2.text_model.encoder.layers.31.self_attn.q_proj",
            "lora_te2_text_model_encoder_layers_31_self_attn_q_proj",
        ),
    ],
)
def test_layers_have_the_names_of_the_original_code(path: str, name: str) -> None:
    assert kohya_name(path, "sdxl") == name


def test_loading_gives_no_warning_and_keeps_the_global_random_state(tiny_xl_dir: Path) -> None:
    before = torch.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tiny.load_tiny(tiny_xl_dir, "sdxl")
    assert torch.equal(before, torch.get_rng_state())
