"""What a course pipeline does in place of minisd's own conventions, because the reference does it."""

import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.course_cells import FULL, SCHEDULE, alike, close, picture
from support.small import oracle_pipeline

from minisd import course
from minisd.errors import InputError
from minisd.schedulers import DDIM, LMS

PROMPT = "a red circle above a blue square"
NAMES = [
    "DDPMScheduler",
    "PNDMScheduler",
    "LMSDiscreteScheduler",
    "EulerDiscreteScheduler",
    "HeunDiscreteScheduler",
    "DPMSolverMultistepScheduler",
    "UniPCMultistepScheduler",
]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def sticker() -> Any:
    return course.StableDiffusionPipeline.from_pretrained("sticker")


@pytest.fixture(scope="module")
def reference(model_folder: str) -> Any:
    import diffusers

    pipe = diffusers.StableDiffusionPipeline.from_pretrained(model_folder, safety_checker=None, **FULL)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def model_folder() -> str:
    return str(Path(course.__file__).parents[1] / "assets" / "sticker")


@pytest.mark.parametrize("name", NAMES)
def test_samplers_on_zero_terminal_snr(sticker: Any, reference: Any, theirs: Any, ours: Any, name: str) -> None:
    """From the config of a v-prediction model; LMS, Heun and PNDM of the reference ignore rescale_betas_zero_snr."""
    results = []
    for lib, pipe in ((ours, sticker), (theirs, reference)):
        options = {"skip_prk_steps": True} if name == "PNDMScheduler" else {}  # minisd's default, as in SD
        scheduler = getattr(lib, name).from_config(pipe.scheduler.config, **options)
        parts = {**pipe.components, "scheduler": scheduler}
        other = lib.StableDiffusionPipeline(**parts, requires_safety_checker=False)
        other.set_progress_bar_config(disable=True)
        assert float(other.scheduler.init_noise_sigma) < (5000 if name == "EulerDiscreteScheduler" else 20)
        options = {"num_inference_steps": 4, "output_type": "np", "guidance_scale": 3.0}
        results.append(torch.from_numpy(other(PROMPT, generator=seeded(), **options).images))
        again = lib.DDIMScheduler.from_config(other.scheduler.config)  # nothing is lost on the way
        assert again.config.rescale_betas_zero_snr is True
        assert again.config.set_alpha_to_one is True
        assert again.config.timestep_spacing == "trailing"
    close(*results, 1 / 255)


@pytest.mark.parametrize("steps", [3, 6])
@pytest.mark.parametrize("strength", [0.35, 0.5, 0.9, 1.0])
@pytest.mark.parametrize(
    ("name", "own_way"),
    [
        ("LMSDiscreteScheduler", {"lower_order_start": True}),  # the reference weighs the first slopes as four
        ("PNDMScheduler", {"whole_first_step": True}),  # the reference cuts the list of calls
    ],
)
def test_begun_in_the_middle(
    sticker: Any,
    reference: Any,
    ours: Any,
    theirs: Any,
    name: str,
    own_way: dict[str, Any],
    strength: float,
    steps: int,
) -> None:
    """As in the reference; minisd's own way begins as a run from noise does."""

    def cell(lib: Any, pipe: Any) -> Any:
        options = {"skip_prk_steps": True} if name == "PNDMScheduler" else {}
        scheduler = getattr(lib, name).from_config(pipe.scheduler.config, **options)
        img2img = lib.StableDiffusionImg2ImgPipeline(
            **{**pipe.components, "scheduler": scheduler}, requires_safety_checker=False
        )
        img2img.set_progress_bar_config(disable=True)
        options = {"image": picture(), "strength": strength, "num_inference_steps": steps, "output_type": "np"}
        return img2img, torch.from_numpy(img2img(PROMPT, generator=seeded(), **options).images), options

    img2img, mine, options = cell(ours, sticker)
    close(mine, cell(theirs, reference)[1], 1 / 255)
    img2img.scheduler = replace(img2img.scheduler.core, **own_way)
    own = torch.from_numpy(img2img(PROMPT, generator=seeded(), **options).images)
    assert (own - mine).abs().max() > 0.01 or strength == 1


def test_the_option_of_lms(ours: Any) -> None:
    assert LMS().lower_order_start
    for scheduler in (
        ours.LMSDiscreteScheduler(**SCHEDULE),
        ours.LMSDiscreteScheduler.from_config(SCHEDULE),
        ours.LMSDiscreteScheduler.from_config(ours.PNDMScheduler().config),
        ours.LMSDiscreteScheduler.from_pretrained("sticker"),
    ):
        assert not scheduler.core.lower_order_start
    kept = ours.LMSDiscreteScheduler(lower_order_start=True)
    assert kept.core.lower_order_start
    assert ours.LMSDiscreteScheduler.from_config(kept.config).core.lower_order_start
    explicit = ours.LMSDiscreteScheduler(**SCHEDULE, rescale_betas_zero_snr=True)
    assert explicit.init_noise_sigma > 4000


def test_a_foreign_prediction_type_is_said(ours: Any, sticker: Any) -> None:
    """The schedulers that the courses write by hand predict noise, "sticker" predicts v."""
    pndm = ours.PNDMScheduler(**SCHEDULE, skip_prk_steps=True)
    with pytest.warns(UserWarning, match="'epsilon', but this model predicts 'v_prediction'.*pass prediction_type"):
        pipe = ours.StableDiffusionPipeline(**{**sticker.components, "scheduler": pndm})
    with pytest.warns(UserWarning, match="PNDMScheduler"):
        ours.StableDiffusionPipeline.from_pretrained("sticker", scheduler=pndm)
    vae, text, tokenizer, unet = (
        kind.from_pretrained("sticker")
        for kind in (ours.AutoencoderKL, ours.CLIPTextModel, ours.CLIPTokenizer, ours.UNet2DConditionModel)
    )
    with pytest.warns(UserWarning, match="v_prediction"):
        ours.StableDiffusionPipeline(vae, text, tokenizer, unet, pndm)
    with pytest.warns(UserWarning, match="v_prediction"):
        pipe.scheduler = ours.EulerDiscreteScheduler(**SCHEDULE)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pipe.scheduler = ours.PNDMScheduler(**SCHEDULE, prediction_type="v_prediction")
        pipe.scheduler = ours.LMSDiscreteScheduler.from_config(sticker.scheduler.config)
        pipe(PROMPT, num_inference_steps=1)
        ours.StableDiffusionPipeline(**sticker.components)


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0, -2.0])
def test_no_guidance_up_to_1(sticker: Any, reference: Any, scale: float) -> None:
    options = {"num_inference_steps": 2, "guidance_scale": scale, "negative_prompt": "blue"}
    alike(*(pipe(PROMPT, generator=seeded(), **options).images for pipe in (sticker, reference)))


def test_the_timesteps_after_a_run(sticker: Any, reference: Any) -> None:
    results = []
    for pipe in (sticker, reference):
        pipe(PROMPT, num_inference_steps=3, generator=seeded(), output_type="latent")
        results.append(pipe.scheduler.timesteps)
    assert results[0].tolist() == results[1].tolist()
    assert len(results[0]) == 3


def test_a_depth_pipeline_needs_a_depth_model(ours: Any, sticker: Any) -> None:
    for make in (
        lambda: ours.StableDiffusionDepth2ImgPipeline.from_pretrained("sticker"),
        lambda: ours.StableDiffusionDepth2ImgPipeline(**sticker.components),
    ):
        with pytest.raises(InputError, match="'sticker-depth'"):
            make()
    pipe = ours.StableDiffusionDepth2ImgPipeline.from_pretrained("sticker-depth")
    with pytest.raises(InputError, match="give image"):
        pipe(PROMPT, depth_map=np.zeros((64, 64), np.float32))


def test_other_official_arguments(sticker: Any, reference: Any) -> None:
    """prompt_embeds equal the reference; clip_skip leaves out the last layers; what minisd lacks is named."""
    options = {"num_inference_steps": 2, "guidance_scale": 3.0}
    results = []
    for pipe in (sticker, reference):
        ids = sticker.tokenizer([PROMPT, ""], padding="max_length", max_length=77, return_tensors="pt").input_ids
        with torch.no_grad():
            cond, uncond = pipe.text_encoder(ids)[0].split(1)
        embeds = {"prompt_embeds": cond, "negative_prompt_embeds": uncond}
        results.append(pipe(**embeds, generator=seeded(), cross_attention_kwargs=None, **options).images)
    alike(*results)
    with torch.no_grad():
        hidden = sticker.text_encoder(ids[:1], output_hidden_states=True).hidden_states
        embeds["prompt_embeds"] = sticker.text_encoder.text_model.final_layer_norm(hidden[-2])
    skipped = sticker(PROMPT, clip_skip=1, generator=seeded(), **options).images
    alike(skipped, sticker(prompt_embeds=embeds["prompt_embeds"], generator=seeded(), **options).images)
    assert np.abs(np.asarray(skipped[0], int) - np.asarray(results[0][0], int)).max() > 5
    with pytest.raises(InputError, match="StableDiffusionPipeline has no cross_attention_kwargs, ip_adapter_image"):
        sticker(PROMPT, ip_adapter_image=1, cross_attention_kwargs={"scale": 1}, callback_on_step_end=None)
    with pytest.raises(InputError, match="clip_skip"):
        sticker(PROMPT, clip_skip=99)
    with pytest.raises(InputError, match="clip_skip"):
        sticker(prompt_embeds=cond, clip_skip=1)


@torch.no_grad()
def test_arguments_of_the_text_encoder(sticker: Any, reference: Any) -> None:
    ids = sticker.tokenizer(PROMPT, padding="max_length", max_length=77, return_tensors="pt").input_ids
    mine, other = (
        pipe.text_encoder(ids, attention_mask=None, output_hidden_states=True) for pipe in (sticker, reference)
    )
    close(mine[0], other[0], 1e-5)
    close(mine.pooler_output, other.pooler_output, 1e-5)
    for a, b in zip(mine.hidden_states, other.hidden_states, strict=True):
        close(a, b, 1e-5)
    assert len(sticker.text_encoder(ids, return_dict=False)) == 2
    for wrong in ({"attention_mask": torch.ones(1, 77)}, {"output_attentions": True}, {"position_ids": ids}):
        with pytest.raises(InputError, match=next(iter(wrong))):
            sticker.text_encoder(ids, **wrong)


def test_an_id_of_another_vocabulary(sticker: Any) -> None:
    """The courses write ids of SD 1 by hand; "sticker" has fewer."""
    encoder, ids = sticker.text_encoder, torch.tensor([[0, 6829]])
    table = encoder.text_model.embeddings.token_embedding
    for use in (encoder, encoder.text_model.embeddings, table, encoder.get_input_embeddings()):
        with pytest.raises(InputError, match=rf"ids are 0 to 6829, expected .* 0 to {len(table.weight) - 1}"):
            use(ids)


def test_the_config_of_a_pipeline(ours: Any, theirs: Any, sticker: Any, reference: Any) -> None:
    """The class of each part, also after another scheduler was assigned; by key and by attribute."""
    names = ("vae", "text_encoder", "tokenizer", "unet", "scheduler")
    results = []
    for lib, pipe in ((ours, sticker), (theirs, reference)):
        img2img = lib.StableDiffusionImg2ImgPipeline(**pipe.components, requires_safety_checker=False)
        before = {name: img2img.config[name][1] for name in names}
        img2img.scheduler = lib.EulerDiscreteScheduler.from_config(pipe.scheduler.config)
        config = img2img.config
        after = {name: getattr(config, name)[1] for name in names}
        results.append((before, after, config["requires_safety_checker"]))
    assert results[0] == results[1]
    assert results[0][0] != results[0][1]
    assert sticker.config["_class_name"] == json.loads(reference.to_json_string())["_class_name"]
    with pytest.raises(AttributeError, match="has no 'safety'"):
        _ = sticker.config.safety


def test_values_of_a_config_on_the_part(sticker: Any, reference: Any) -> None:
    """The textual-inversion notebook reads vae.sample_size; the parts have their config's values as attributes."""
    assert sticker.vae.sample_size == sticker.vae.config.sample_size == reference.vae.config.sample_size
    for name in ("sample_size", "in_channels"):
        assert getattr(sticker.unet, name) == getattr(sticker.unet.config, name) == getattr(reference.unet.config, name)
    for part in (sticker.vae, sticker.unet, sticker.text_encoder):
        with pytest.raises(AttributeError, match="no_such_size"):
            _ = part.no_such_size


def test_revisions_and_variants_of_local_models(ours: Any, model: str, tmp_path: Path) -> None:
    oracle_pipeline(tmp_path / "tokenizer").save_pretrained(tmp_path / "small")
    for source in ("sticker", str(tmp_path / "small")):
        for revision in ("fp16", "main"):
            ours.StableDiffusionPipeline.from_pretrained(source, revision=revision)
            ours.UNet2DConditionModel.from_pretrained(source, subfolder="unet", revision=revision)
            ours.DDIMScheduler.from_pretrained(source, subfolder="scheduler", revision=revision)
        with pytest.warns(UserWarning, match="no weights of variant 'fp16'; the plain ones"):
            pipe = ours.StableDiffusionPipeline.from_pretrained(
                source, variant="fp16", use_safetensors=True, low_cpu_mem_usage=True
            )
        assert pipe.dtype == torch.float32
    with pytest.raises(InputError, match="revision is 'v2'"):
        ours.StableDiffusionPipeline.from_pretrained(model, revision="v2")


def test_saving_twice(ours: Any, sticker: Any, tmp_path: Path) -> None:
    """The second save replaces the first; files that the course wrote itself stay."""
    (tmp_path / "learned_embeds-step-250.bin").write_bytes(b"mine")
    sticker.save_pretrained(tmp_path)
    other = ours.StableDiffusionPipeline(**sticker.components)
    other.scheduler = DDIM(schedule=sticker.scheduler.core.schedule, eta=0.5)
    other.save_pretrained(str(tmp_path))
    assert (tmp_path / "learned_embeds-step-250.bin").read_bytes() == b"mine"
    again = ours.StableDiffusionPipeline.from_pretrained(tmp_path)
    assert again.scheduler.core.timestep_spacing == "leading"
