"""Every key of the reference's classes is read, must have one value, or has no effect: none is ignored unseen."""

import inspect
from collections.abc import Collection
from dataclasses import fields
from typing import Any

import pytest

from minisd.configs import CLIPImageConfig, CLIPTextConfig, UNetConfig
from minisd.schedulers import NoiseSchedule, Scheduler
from weights_loader import clip_configs, official_configs, pixel_configs
from weights_loader.official_configs import unet_json, vae_json

diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")

UNET_READ = {
    *unet_json(UNetConfig(pooled_width=64, class_count=4, guidance_width=8)),
    *("num_attention_heads", "mid_block_only_cross_attention", "only_cross_attention"),
    "transformer_layers_per_block",
}
# of transformers' base class for all configs, about the saving and the outputs of any network
OF_ANY_NETWORK = {
    *("self", "transformers_version", "architectures", "output_hidden_states", "return_dict", "dtype"),
    *("chunk_size_feed_forward", "is_encoder_decoder", "id2label", "label2id", "problem_type"),
}


def keys(kind: Any) -> set[str]:
    return set(inspect.signature(kind.__init__).parameters) - {"self"}


def unseen(kind: Any, *seen: Collection[str]) -> set[str]:
    return keys(kind).difference(*seen)


def test_networks() -> None:
    c = official_configs
    assert not unseen(diffusers.UNet2DConditionModel, UNET_READ, c.UNET_MUST_BE, c.UNET_NEUTRAL)
    vae = {*vae_json(official_configs.vae_config({})), "latents_mean", "latents_std"}
    assert not unseen(diffusers.AutoencoderKL, vae, c.VAE_MUST_BE)
    pixels = pixel_configs.pixel_unet_json(UNetConfig(context_width=0))
    assert not unseen(diffusers.UNet2DModel, pixels, pixel_configs.PIXEL_UNET_MUST_BE)
    read = {"projection_dim", "eos_token_id"}
    assert not unseen(transformers.CLIPTextConfig, c.TEXT_FIELDS, c.TEXT_NEUTRAL, read, OF_ANY_NETWORK)
    assert read <= keys(transformers.CLIPTextConfig)
    neutral = {"attention_dropout", "initializer_range", "initializer_factor"}
    read = {"num_channels", "projection_dim"}  # the projection is that of the whole CLIP
    assert not unseen(transformers.CLIPVisionConfig, clip_configs.IMAGE_FIELDS, read, neutral, OF_ANY_NETWORK)
    json = clip_configs.clip_json(CLIPTextConfig(projection_width=768), CLIPImageConfig())
    assert not unseen(transformers.CLIPConfig, json, {"logit_scale_init_value", "initializer_factor"}, OF_ANY_NETWORK)


@pytest.mark.parametrize("name", Scheduler.samplers)
def test_samplers(name: str) -> None:
    sampler = Scheduler.samplers[name]
    read = {each.name for kind in (NoiseSchedule, sampler) for each in fields(kind)}
    assert not unseen(getattr(diffusers, name), read, sampler.fixed_values, sampler.neutral)
    assert not read & {*sampler.fixed_values, *sampler.neutral}
