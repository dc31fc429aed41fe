"""A model in the original (LDM) layout: one file that holds all components, told apart by prefix."""

import json
import re
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch

from minisd.configs import CLIPTextConfig, UNetConfig, VAEConfig
from minisd.errors import FileFormatError, InputError, MismatchError
from minisd.models import VAE, CLIPTextTransformer, UNet
from minisd.pipeline import LOW_RES, Defaults, StableDiffusion
from minisd.pipeline.request import SDXL_DEFAULTS, UPSCALER_DEFAULTS
from minisd.schedulers import DDIM, PNDM, Euler, NoiseSchedule, Scheduler
from minisd.tokenizer import Tokenizer
from weights_loader import detect, official_configs
from weights_loader.build import Prefixed, build
from weights_loader.folder import LOW_RES_SCHEDULER
from weights_loader.formats.weight_file import WeightFile
from weights_loader.names import Place, diffusers, expand, ldm, openclip
from weights_loader.vocabulary import padded

XL_SCALING = 0.13025  # of the latents of SDXL's autoencoder
CONFIGS_KEY = "minisd.configs"  # in the metadata of files that minisd wrote: what shapes cannot tell

# SD 2.x files whose names say what their tensors do not: what the UNet predicts.
V_PREDICTION_NAMES = re.compile(r"768-v|v2-1_768|v-ema", re.IGNORECASE)
EPSILON_NAMES = re.compile(r"512-base|v2-1_512|512-inpainting|512-depth", re.IGNORECASE)


class Configs(NamedTuple):
    """The configs of all components of a file; one for each text encoder."""

    unet: UNetConfig
    vae: VAEConfig
    texts: list[CLIPTextConfig]
    scheduler: Scheduler
    defaults: Defaults
    low_res: NoiseSchedule


class TextSource(NamedTuple):
    """Where a text encoder is in a file, and in which of the two layouts."""

    prefix: str
    is_openclip: bool


def load_single_file(
    file: WeightFile,
    device: torch.device | str,
    dtype: torch.dtype,
    prediction_type: str | None,
    tokenizer: Tokenizer,
) -> StableDiffusion:
    """The pipeline in an original single file. Raises MismatchError, FileFormatError, InputError."""
    found, sources = configs(file, prediction_type), text_sources(file)

    def unet_places(names: list[str]) -> dict[str, Place]:
        return expand(ldm.unet(found.unet), names)

    def vae_places(names: list[str]) -> dict[str, Place]:
        return ldm.vae(found.vae, names)

    report_rest(file, sources)
    at = (device, dtype)
    texts = [
        _text_encoder(file, source, config, device, dtype) for source, config in zip(sources, found.texts, strict=True)
    ]
    return StableDiffusion(
        tokenizer=tokenizer,
        text_encoder=texts[0],
        vae=build(
            lambda: VAE(found.vae), vae_places, Prefixed(file, ldm.VAE), _is_loss, f"{file.path.name}, {ldm.VAE}*", *at
        ),
        unet=build(
            lambda: UNet(found.unet), unet_places, Prefixed(file, ldm.UNET), _nothing,
            f"{file.path.name}, {ldm.UNET}*", *at,
        ),
        scheduler=found.scheduler,
        defaults=found.defaults,
        low_res=found.low_res,
        tokenizer_2=padded(tokenizer, sources[1].is_openclip) if len(texts) == 2 else None,
        text_encoder_2=texts[1] if len(texts) == 2 else None,
    )  # fmt: skip


def _text_encoder(
    file: WeightFile, source: TextSource, config: CLIPTextConfig, device: torch.device | str, dtype: torch.dtype
) -> CLIPTextTransformer:
    def places(names: list[str]) -> dict[str, Place]:
        if source.is_openclip:
            return openclip.text_encoder(names)
        return expand(diffusers.text_encoder(config, prefix=""), names)

    def ignorable(name: str) -> bool:
        unused_layer = f"transformer.resblocks.{config.layers}."
        names = ("embeddings.position_ids", "logit_scale", "text_projection")
        return name in names or (source.is_openclip and name.startswith(unused_layer))

    what = f"{file.path.name}, {source.prefix}*"
    tensors = Prefixed(file, source.prefix)
    return build(lambda: CLIPTextTransformer(config), places, tensors, ignorable, what, device, dtype)


def configs(file: WeightFile, prediction_type: str | None = None) -> Configs:
    """The configs of all components: as minisd wrote them into the file, else from its shapes and its name."""
    if CONFIGS_KEY in file.metadata:
        return _stored_configs(file, prediction_type)
    sources = text_sources(file)
    unet = detect.unet_config(Prefixed(file, ldm.UNET).shapes)
    vae = detect.vae_config(Prefixed(file, ldm.VAE).shapes)
    is_xl = unet.pooled_width is not None
    texts = [
        detect.openclip_config(shapes, whole=is_xl) if source.is_openclip else detect.clip_config(shapes)
        for source in sources
        for shapes in [Prefixed(file, source.prefix).shapes]
    ]
    if prediction_type is None:
        prediction_type = _guess_prediction(file.path, unet)
    schedule = NoiseSchedule(prediction_type=prediction_type)
    if is_xl:  # the base hears zeros where there is no negative prompt, its refiner does not
        vae = replace(vae, scaling_factor=XL_SCALING, sample_size=1024, force_upcast=True)
        defaults = replace(SDXL_DEFAULTS, zero_empty_prompt=len(sources) == 2)
        return Configs(unet, vae, texts, Euler(schedule, timestep_spacing="leading"), defaults, LOW_RES)
    if unet.class_count is not None:
        upscaling = DDIM(replace(LOW_RES, prediction_type=prediction_type))
        return Configs(unet, vae, texts, upscaling, UPSCALER_DEFAULTS, LOW_RES)
    if prediction_type == "v_prediction":
        unet = replace(unet, sample_size=96)
    # as the official repositories ship them: PNDM for eps, DDIM for v and for inpainting with SD 1.x
    ddim = prediction_type == "v_prediction" or (unet.in_channels == 9 and not sources[0].is_openclip)
    return Configs(unet, vae, texts, DDIM(schedule) if ddim else PNDM(schedule), Defaults(), LOW_RES)


def _stored_configs(file: WeightFile, prediction_type: str | None) -> Configs:
    try:
        stored = json.loads(file.metadata[CONFIGS_KEY])
        scheduler = Scheduler.from_config(_with_prediction(stored["scheduler"], prediction_type))
        texts = [stored[name] for name in ("text_encoder", "text_encoder_2") if name in stored]
        return Configs(
            official_configs.unet_config(stored["unet"]),
            official_configs.vae_config(stored["vae"]),
            [official_configs.text_config(text) for text in texts],
            scheduler,
            Defaults(**stored["defaults"]),
            Scheduler.from_config(stored[LOW_RES_SCHEDULER]).schedule if LOW_RES_SCHEDULER in stored else LOW_RES,
        )
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise FileFormatError(f"{file.path}: the metadata {CONFIGS_KEY} is damaged ({error!r}).") from error


def text_sources(file: WeightFile) -> list[TextSource]:
    """The text encoders of a file: one, or SDXL's two; old files lack the level `text_model.`."""
    rows = [(ldm.CLIP, ldm.OPENCLIP), *(ldm.text_prefixes(i) for i in (0, 1))]
    found = []
    for clip, open_clip in rows:
        if f"{open_clip}token_embedding.weight" in file.shapes:
            found.append(TextSource(open_clip, True))
            continue
        for prefix in (f"{clip}text_model.", clip):
            if f"{prefix}embeddings.token_embedding.weight" in file.shapes:
                found.append(TextSource(prefix, False))
                break
    if not found:
        raise MismatchError(
            f"{file.path} has no text encoder (cond_stage_model.* or conditioner.*); it is not a whole model."
        )
    return found


def report_rest(file: WeightFile, texts: Sequence[TextSource]) -> None:
    """Refuse tensors that belong to nothing; warn when weights that somebody may want are left out."""
    known = (ldm.UNET, ldm.VAE, *(source.prefix for source in texts), *detect.EXTRAS)
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
