"""A model in the original (LDM) layout: one file that holds all networks, each under its prefix."""

import json
import re
from collections.abc import Container, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from minisd._internal.messages import listed, shown
from minisd._internal.vocabulary_files import token_ids
from minisd.configs import SDXL_VAE, CLIPTextConfig, UNetConfig, VAEConfig
from minisd.errors import FileFormatError, InputError, MismatchError
from minisd.models import VAE, CLIPTextTransformer, UNet
from minisd.pipeline import LOW_RES, Defaults, StableDiffusion
from minisd.pipeline.arguments import SDXL_DEFAULTS, UPSCALER_DEFAULTS
from minisd.schedulers import DDIM, PNDM, Euler, NoiseSchedule, Scheduler
from minisd.tokenizer import Tokenizer
from weights_loader import detect, official_configs
from weights_loader.build import Network, Prefixed, build, check_blocks
from weights_loader.formats.weight_file import WeightFile
from weights_loader.model_folder import LOW_RES_SCHEDULER
from weights_loader.names import TensorSource, diffusers, expand, ldm, openclip
from weights_loader.names.old_attention import as_stored
from weights_loader.settings import read_defaults, read_scheduler
from weights_loader.vocabulary import check_vocabulary, find_tokenizer, padded, restore_words

CONFIGS_KEY = "minisd.configs"  # in the metadata of files that minisd wrote: the configs of all parts
ADDED_TOKENS = "added_tokens"  # among them: {"tokenizer": {word: id}, "tokenizer_2": ...}

# Tensors beside those of a network that are not loaded: constants, the image half, what the VAE was trained against.
UNUSED_OF_TEXT = ("embeddings.position_ids", "logit_scale", "text_projection", "attn_mask", "visual.", "vision_model.")
UNUSED_OF_VAE = ("loss.", "logvar", "model_ema.")
MARKERS = ("v_pred", "ztsnr", "edm_mean", "edm_std", "edm_vpred.sigma_max", "edm_vpred.sigma_min")
# The tensors of SD 2.x do not show what the UNet predicts; the names of the official files do.
V_PREDICTION_NAMES = re.compile(r"768-v|v2-1_768|v-ema", re.IGNORECASE)
EPSILON_NAMES = re.compile(r"512-base|v2-1_512|512-inpainting|512-depth", re.IGNORECASE)


class ModelConfigs(NamedTuple):
    """The configs of all parts of a model; one in `texts` for each text encoder."""

    unet: UNetConfig
    vae: VAEConfig
    texts: list[CLIPTextConfig]
    scheduler: Scheduler
    defaults: Defaults
    low_res: NoiseSchedule
    added_tokens: Sequence[Mapping[str, int]] = ()  # {word: id} of each tokenizer


class StoredTextEncoder(NamedTuple):
    """A text encoder in a file: the prefix of its tensors, and in which of the two layouts they are."""

    prefix: str
    is_openclip: bool

    def tensor_sources(self, config: CLIPTextConfig, names: list[str]) -> dict[str, TensorSource]:
        """{parameter: its source}."""
        if self.is_openclip:
            return openclip.text_encoder(names)
        return expand(diffusers.text_encoder(config, prefix=""), names)

    def is_ignorable(self, config: CLIPTextConfig, name: str) -> bool:
        """Whether a tensor is not needed: a constant, the image half, the layer and projection that SD 2.x lacks."""
        return name.startswith(UNUSED_OF_TEXT) or (
            self.is_openclip and name.startswith(f"transformer.resblocks.{config.layers}.")
        )


def load_single_file(
    file: WeightFile,
    device: torch.device | str,
    dtype: torch.dtype | None,
    prediction_type: str | None = None,
    tokenizer: Tokenizer | None = None,
    offline: bool | None = None,
    progress: bool = True,
) -> StableDiffusion:
    """The pipeline in an original single file. Raises MismatchError, FileFormatError, InputError.

    tokenizer: None searches its vocabulary, see find_tokenizer. What users should know is added to file.notices.
    """
    layout = detect.layout(file.shapes, file.path)
    if layout != "ldm":
        raise MismatchError(
            f"{file.path} is a single network ({layout}) in diffusers layout; load the folder of the whole "
            "model, which contains model_index.json."
        )
    configs, texts = read_configs(file, prediction_type), stored_text_encoders(file)
    note_leftovers(file, texts)
    if tokenizer is None:
        tokenizer = find_tokenizer(file.path, texts[0].is_openclip, offline, progress)
    tokenizers = [tokenizer, *(padded(tokenizer, text.is_openclip) for text in texts[1:])]
    for each, config in zip(tokenizers, configs.texts, strict=True):
        check_vocabulary(each, config)
    for each, added in zip(tokenizers, configs.added_tokens, strict=False):  # other programs' files have no words
        restore_words(each, added, file.path)

    def network(kind: type[Network], config: Any, prefix: str, tensor_sources: Any, ignorable: Any = None) -> Network:
        what, tensors = f"{file.path.name}, {prefix}*", Prefixed(file, prefix)
        check_blocks(config.layers if kind is CLIPTextTransformer else config.blocks, tensors, what)
        return build(lambda: kind(config), tensor_sources, tensors, what, device, dtype, ignorable)

    def vae_sources(names: list[str]) -> dict[str, TensorSource]:
        return as_stored(ldm.vae(configs.vae, names), Prefixed(file, ldm.VAE).shapes)

    encoders = [
        network(
            CLIPTextTransformer,
            config,
            text.prefix,
            partial(text.tensor_sources, config),
            partial(text.is_ignorable, config),
        )
        for text, config in zip(texts, configs.texts, strict=True)
    ]
    return StableDiffusion(
        tokenizer=tokenizers[0],
        text_encoder=encoders[0],
        vae=network(VAE, configs.vae, ldm.VAE, vae_sources, lambda name: name.startswith(UNUSED_OF_VAE)),
        unet=network(UNet, configs.unet, ldm.UNET, partial(expand, ldm.unet(configs.unet))),
        scheduler=configs.scheduler,
        defaults=configs.defaults,
        low_res=configs.low_res,
        tokenizer_2=tokenizers[1] if len(texts) == 2 else None,
        text_encoder_2=encoders[1] if len(texts) == 2 else None,
    )


def read_configs(file: WeightFile, prediction_type: str | None = None) -> ModelConfigs:
    """The configs of all parts: from the metadata of a file that minisd wrote, else from shapes and the file's name."""
    if CONFIGS_KEY in file.metadata:
        return _stored_configs(file, prediction_type)
    prefixes = stored_text_encoders(file)
    unet = detect.unet_config(Prefixed(file, ldm.UNET).shapes)
    vae = detect.vae_config(Prefixed(file, ldm.VAE).shapes)
    is_xl, is_upscaler = unet.pooled_width is not None, unet.class_count is not None
    texts = [
        detect.openclip_config(shapes, whole=is_xl) if prefix.is_openclip else detect.clip_config(shapes)
        for prefix in prefixes
        for shapes in [Prefixed(file, prefix.prefix).shapes]
    ]
    marked, zero_snr = marked_prediction(file.shapes, file.metadata, file.path)
    prediction_type = prediction_type or marked or _guess_prediction_type(file.path, unet)
    schedule = NoiseSchedule(prediction_type=prediction_type, rescale_betas_zero_snr=zero_snr)
    spacing = "trailing" if zero_snr else "leading"  # which begins at the level that is pure noise
    if is_xl:  # only the base has zeros as the condition of an empty negative prompt
        facts = {name: getattr(SDXL_VAE, name) for name in ("scaling_factor", "sample_size", "force_upcast")}
        vae, defaults = replace(vae, **facts), replace(SDXL_DEFAULTS, zero_empty_prompt=len(prefixes) == 2)
        return ModelConfigs(unet, vae, texts, Euler(schedule, timestep_spacing=spacing), defaults, LOW_RES)
    if is_upscaler:
        scheduler = DDIM(replace(LOW_RES, prediction_type=prediction_type))
        return ModelConfigs(unet, vae, texts, scheduler, UPSCALER_DEFAULTS, LOW_RES)
    if vae.scaling_factor == detect.UPSCALER_SCALING:
        file.notices.append(
            f"The scaling factor of the VAE is not in the file; {vae.scaling_factor} is assumed, because a VAE with "
            f"{len(vae.channels)} levels is usually that of the x4 upscaler; if the images are wrong, set "
            "sd.vae.config to a config with the right scaling_factor."
        )
    if prediction_type == "v_prediction":
        unet = replace(unet, sample_size=96)
    # as in the official repositories: PNDM for epsilon, DDIM for v-prediction and for inpainting with SD 1.x
    ddim = prediction_type == "v_prediction" or (unet.in_channels == 9 and not prefixes[0].is_openclip)
    sampler: Scheduler = DDIM(schedule, timestep_spacing=spacing) if ddim else PNDM(schedule)
    return ModelConfigs(unet, vae, texts, sampler, Defaults(), LOW_RES)


def _stored_configs(file: WeightFile, prediction_type: str | None) -> ModelConfigs:
    try:
        stored = json.loads(file.metadata[CONFIGS_KEY])
    except (ValueError, RecursionError):
        stored = None
    parts = ("unet", "vae", "scheduler", "defaults")
    objects = [*stored.values(), *map(stored.get, parts)] if isinstance(stored, dict) else [None]
    if not all(isinstance(each, dict) for each in objects):
        raise FileFormatError(
            f"{file.path}: {CONFIGS_KEY} in the metadata is damaged, expected JSON objects {', '.join(parts)}; save "
            "the model again."
        )
    texts = [stored[name] for name in ("text_encoder", "text_encoder_2") if name in stored]
    low_res = stored.get(LOW_RES_SCHEDULER)
    added = stored.get(ADDED_TOKENS, {})
    return ModelConfigs(
        official_configs.unet_config(stored["unet"]),
        official_configs.vae_config(stored["vae"]),
        [official_configs.text_config(text) for text in texts],
        read_scheduler(stored["scheduler"], file.notices, prediction_type),
        read_defaults(stored["defaults"], f"{CONFIGS_KEY} in the metadata"),
        LOW_RES if low_res is None else read_scheduler(low_res, file.notices).schedule,
        [token_ids(added[name], f"{file.path}: {ADDED_TOKENS}") for name in sorted(added)],
    )


def stored_text_encoders(file: WeightFile) -> list[StoredTextEncoder]:
    """The text encoders of a file: one, or SDXL's two. Some files omit `text_model.`. Raises MismatchError for none."""
    found = []
    for clip, open_clip in ((ldm.CLIP, ldm.OPENCLIP), ldm.text_prefixes(0), ldm.text_prefixes(1)):
        if f"{open_clip}token_embedding.weight" in file.shapes:
            found.append(StoredTextEncoder(open_clip, True))
            continue
        for prefix in (f"{clip}text_model.", clip):
            if f"{prefix}embeddings.token_embedding.weight" in file.shapes:
                found.append(StoredTextEncoder(prefix, False))
                break
    if not found:
        raise MismatchError(
            f"{file.path} has no text encoder (cond_stage_model.* or conditioner.*); load a file of a whole model."
        )
    return found


def note_leftovers(file: WeightFile, texts: list[StoredTextEncoder]) -> None:
    """Add notices on tensors beside the networks, which are not loaded: averages (EMA), and what no network reads."""
    parts = (ldm.UNET, ldm.VAE, *(text.prefix for text in texts))
    usual = (*detect.UNUSED_PREFIXES, *detect.SCHEDULE_BUFFERS)
    rest = [name for name in file.shapes if not name.startswith(parts)]
    unknown = [n for n in rest if not n.startswith(usual) and not n.endswith(("position_ids", "logit_scale"))]
    unknown = [name for name in unknown if name not in MARKERS]
    if unknown:
        file.notices.append(f"{len(unknown)} tensors that no network reads were not loaded: {listed(unknown, 5)}.")
    averages = sum(name.startswith(f"{ldm.EMA}diffusion_model") for name in file.shapes)
    if averages:
        file.notices.append(f"The file also holds {averages} averaged (EMA) UNet tensors; the plain ones are loaded.")


def marked_prediction(names: Container[str], metadata: Mapping[str, str], path: Path) -> tuple[str | None, bool]:
    """What a file says of its schedule: what the UNet predicts (None: nothing is said), and zero terminal SNR.

    Tensors without elements are marks (v_pred, ztsnr); modelspec.prediction_type is in the metadata of newer trainers.
    Raises MismatchError: marks that disagree, or of a noise schedule that minisd lacks.
    """
    if edm := [name for name in MARKERS if name.startswith("edm_") and name in names]:
        raise MismatchError(
            f"{path} holds {edm[0]}: it was trained on the noise levels of EDM, which minisd does not have; "
            "use another file of this model."
        )
    said = metadata.get("modelspec.prediction_type", "").strip().lower()
    types = {"": None, "v": "v_prediction", "v_prediction": "v_prediction", "epsilon": "epsilon", "eps": "epsilon"}
    mark = "v_prediction" if "v_pred" in names else None
    if said not in types or (mark and types[said] not in (None, mark)):
        raise MismatchError(
            f"{path} has modelspec.prediction_type {shown(said)} here{' and a tensor v_pred' * bool(mark)}, "
            "expected 'epsilon' or 'v', and one answer; correct the metadata."
        )
    return mark or types[said], "ztsnr" in names or metadata.get("ss_zero_terminal_snr") == "True"


def _guess_prediction_type(path: Path, unet: UNetConfig) -> str:
    if unet.class_count is not None:
        return "v_prediction"
    if unet.context_width != 1024 or unet.in_channels != 4 or EPSILON_NAMES.search(path.name):
        return "epsilon"
    if V_PREDICTION_NAMES.search(path.name):
        return "v_prediction"
    raise InputError(
        f"{path.name} is SD 2.x, whose tensors do not show what the UNet predicts; pass "
        "prediction_type='v_prediction' (768 models) or 'epsilon' (512 base models)."
    )
