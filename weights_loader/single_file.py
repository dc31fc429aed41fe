"""A model in the original (LDM) layout: one file that holds all components, told apart by prefix."""

import json
import re
import warnings
from dataclasses import replace
from pathlib import Path

import torch

from minisd.configs import CLIPTextConfig, UNetConfig, VAEConfig
from minisd.errors import FileFormatError, InputError, MismatchError
from minisd.models import VAE, CLIPTextTransformer, UNet
from minisd.pipeline import LOW_RES, Defaults, StableDiffusion
from minisd.request import UPSCALER_DEFAULTS
from minisd.schedulers import DDIM, PNDM, NoiseSchedule, Scheduler
from minisd.tokenizer import Tokenizer
from weights_loader import detect, official_configs
from weights_loader.build import Prefixed, build
from weights_loader.files import WeightFile
from weights_loader.folder import LOW_RES_SCHEDULER
from weights_loader.names import Place, diffusers, expand, ldm, openclip

CONFIGS_KEY = "minisd.configs"  # in the metadata of files that minisd wrote: what shapes cannot tell

# SD 2.x files whose names say what their tensors do not: what the UNet predicts.
V_PREDICTION_NAMES = re.compile(r"768-v|v2-1_768|v-ema", re.IGNORECASE)
EPSILON_NAMES = re.compile(r"512-base|v2-1_512|512-inpainting|512-depth", re.IGNORECASE)


def load_single_file(
    file: WeightFile,
    device: torch.device | str,
    dtype: torch.dtype,
    prediction_type: str | None,
    tokenizer: Tokenizer,
) -> StableDiffusion:
    """The pipeline in an original single file. Raises MismatchError, FileFormatError, InputError."""
    unet_config, vae_config, text_config, scheduler, defaults, low_res = configs(file, prediction_type)
    text_prefix, is_openclip = text_prefix_of(file)

    def unet_places(names: list[str]) -> dict[str, Place]:
        return expand(ldm.unet(unet_config), names)

    def vae_places(names: list[str]) -> dict[str, Place]:
        return ldm.vae(vae_config, names)

    def text_places(names: list[str]) -> dict[str, Place]:
        if is_openclip:
            return openclip.text_encoder(names)
        return expand(diffusers.text_encoder(text_config, prefix=""), names)

    def text_ignorable(name: str) -> bool:
        unused_layer = f"transformer.resblocks.{text_config.layers}."
        names = ("embeddings.position_ids", "logit_scale", "text_projection")
        return name in names or (is_openclip and name.startswith(unused_layer))

    report_rest(file, text_prefix)
    parts = {prefix: Prefixed(file, prefix) for prefix in (ldm.UNET, ldm.VAE, text_prefix)}
    at = (device, dtype)
    return StableDiffusion(
        tokenizer=tokenizer,
        text_encoder=build(
            lambda: CLIPTextTransformer(text_config), text_places, parts[text_prefix], text_ignorable,
            f"{file.path.name}, {text_prefix}*", *at,
        ),
        vae=build(lambda: VAE(vae_config), vae_places, parts[ldm.VAE], _is_loss, f"{file.path.name}, {ldm.VAE}*", *at),
        unet=build(
            lambda: UNet(unet_config), unet_places, parts[ldm.UNET], _nothing, f"{file.path.name}, {ldm.UNET}*", *at
        ),
        scheduler=scheduler,
        defaults=defaults,
        low_res=low_res,
    )  # fmt: skip


def configs(
    file: WeightFile, prediction_type: str | None = None
) -> tuple[UNetConfig, VAEConfig, CLIPTextConfig, Scheduler, Defaults, NoiseSchedule]:
    """The configs of all components: as minisd wrote them into the file, else from its shapes and its name."""
    if CONFIGS_KEY in file.metadata:
        try:
            stored = json.loads(file.metadata[CONFIGS_KEY])
            scheduler = Scheduler.from_config(_with_prediction(stored["scheduler"], prediction_type))
            return (
                official_configs.unet_config(stored["unet"]),
                official_configs.vae_config(stored["vae"]),
                official_configs.text_config(stored["text_encoder"]),
                scheduler,
                Defaults(**stored["defaults"]),
                Scheduler.from_config(stored[LOW_RES_SCHEDULER]).schedule if LOW_RES_SCHEDULER in stored else LOW_RES,
            )
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise FileFormatError(f"{file.path}: the metadata {CONFIGS_KEY} is damaged ({error!r}).") from error
    text_prefix, is_openclip = text_prefix_of(file)
    unet = detect.unet_config(Prefixed(file, ldm.UNET).shapes)
    vae = detect.vae_config(Prefixed(file, ldm.VAE).shapes)
    text_shapes = Prefixed(file, text_prefix).shapes
    text = detect.openclip_config(text_shapes) if is_openclip else detect.clip_config(text_shapes)
    if prediction_type is None:
        prediction_type = _guess_prediction(file.path, unet)
    if unet.class_count is not None:
        return unet, vae, text, DDIM(replace(LOW_RES, prediction_type=prediction_type)), UPSCALER_DEFAULTS, LOW_RES
    if prediction_type == "v_prediction":
        unet = replace(unet, sample_size=96)
    # as the official repositories ship them: PNDM for eps, DDIM for v and for inpainting with SD 1.x
    schedule = NoiseSchedule(prediction_type=prediction_type)
    ddim = prediction_type == "v_prediction" or (unet.in_channels == 9 and not is_openclip)
    return unet, vae, text, DDIM(schedule) if ddim else PNDM(schedule), Defaults(), LOW_RES


def text_prefix_of(file: WeightFile) -> tuple[str, bool]:
    """The prefix of the text encoder, and whether it is OpenCLIP's; old files lack the level `text_model.`."""
    if f"{ldm.OPENCLIP}token_embedding.weight" in file.shapes:
        return ldm.OPENCLIP, True
    for prefix in (f"{ldm.CLIP}text_model.", ldm.CLIP):
        if f"{prefix}embeddings.token_embedding.weight" in file.shapes:
            return prefix, False
    raise MismatchError(f"{file.path} has no text encoder (cond_stage_model.*); it is not a whole model.")


def report_rest(file: WeightFile, text_prefix: str) -> None:
    """Refuse tensors that belong to nothing; warn when weights that somebody may want are left out."""
    known = (ldm.UNET, ldm.VAE, text_prefix, *detect.EXTRAS)
    strange = [name for name in file.shapes if not name.startswith(known) and name not in detect.SCHEDULE_BUFFERS]
    strange = [name for name in strange if not name.endswith(("position_ids", "logit_scale"))]
    if strange:
        raise MismatchError(
            f"{file.path} holds {len(strange)} tensors of no component: {', '.join(sorted(strange)[:10])}; "
            "it is another kind of model."
        )
    averages = sum(name.startswith(f"{ldm.EMA}diffusion_model") for name in file.shapes)
    if averages:
        warnings.warn(
            f"{file.path.name} also holds {averages} averaged (EMA) UNet tensors; the plain ones are loaded.",
            stacklevel=2,
        )


def _guess_prediction(path: Path, unet: UNetConfig) -> str:
    if unet.class_count is not None:
        return "v_prediction"
    if unet.context_width != 1024 or unet.in_channels != 4 or EPSILON_NAMES.search(path.name):
        return "epsilon"
    if V_PREDICTION_NAMES.search(path.name):
        return "v_prediction"
    raise InputError(
        f"{path.name} is SD 2.x, whose tensors do not tell what the UNet predicts: pass "
        "prediction_type='v_prediction' (768 models) or 'epsilon' (512 base models)."
    )


def _with_prediction(scheduler: dict, prediction_type: str | None) -> dict:
    return scheduler if prediction_type is None else {**scheduler, "prediction_type": prediction_type}


def _is_loss(name: str) -> bool:
    return name.startswith("loss.")  # the discriminator that the autoencoder was trained against


def _nothing(name: str) -> bool:
    return False
