"""scheduler_config.json in and out."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from support.scheduler_oracle import oracle

from minisd.errors import InputError
from minisd.schedulers import (
    DDIM,
    DDPM,
    LCM,
    LMS,
    PNDM,
    DPMSolverMultistep,
    Heun,
    NoiseSchedule,
    Scheduler,
    UniPC,
)

SAMPLERS = tuple(Scheduler.samplers.values())
SD15 = {
    "_class_name": "PNDMScheduler",
    "_diffusers_version": "0.6.0",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
    "clip_sample": False,
}
UNUSUAL: list[Scheduler] = [
    DDPM(clip_sample=True, clip_sample_range=2.0),
    DDIM(NoiseSchedule(beta_schedule="linear", prediction_type="v_prediction"), "trailing", 0, eta=0.3),
    DDIM(NoiseSchedule(rescale_betas_zero_snr=True, prediction_type="v_prediction"), clip_sample=True),
    DDIM(NoiseSchedule(trained_betas=(0.1, 0.2, 0.3), num_train_timesteps=3), set_alpha_to_one=True),
    PNDM(skip_prk_steps=False, set_alpha_to_one=True),
    LMS(NoiseSchedule(num_train_timesteps=500), "leading", use_karras_sigmas=True),
    Heun(timestep_spacing="trailing", use_karras_sigmas=True),
    DPMSolverMultistep(algorithm_type="sde-dpmsolver++", use_karras_sigmas=True),
    UniPC(NoiseSchedule(prediction_type="v_prediction"), "leading", 0),
    LCM(original_inference_steps=100, clip_sample=True, clip_sample_range=2.0),
]


def test_samplers_by_their_official_names() -> None:
    assert len(Scheduler.samplers) == 10
    for name, sampler in Scheduler.samplers.items():
        assert sampler.official_name == name
        assert sampler.samplers is Scheduler.samplers


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_defaults_are_stable_diffusion(sampler: type[Scheduler]) -> None:
    assert sampler.from_config(SD15) == sampler()
    assert Scheduler.from_config(SD15) == PNDM()


@pytest.mark.parametrize("scheduler", [*(sampler() for sampler in SAMPLERS), *UNUSUAL])
def test_out_and_in_again(scheduler: Scheduler) -> None:
    config = json.loads(json.dumps(scheduler.to_config()))
    assert Scheduler.from_config(config) == scheduler
    assert hash(Scheduler.from_config(config)) == hash(scheduler)
    theirs = oracle(scheduler)
    n = min(20, scheduler.schedule.num_train_timesteps - 1)
    if getattr(scheduler, "skip_prk_steps", True) or n > 3:
        theirs.set_timesteps(n)
        assert torch.allclose(theirs.timesteps.float(), scheduler.grid(n).timesteps.float(), rtol=1e-4)
    for key, value in config.items():
        if key in theirs.config and key != "_class_name":
            assert theirs.config[key] == value


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_missing_keys_mean_what_they_mean_to_the_official_class(sampler: type[Scheduler]) -> None:
    import diffusers

    theirs = getattr(diffusers, sampler.official_name)()
    ours = Scheduler.from_config({"_class_name": sampler.official_name})
    checked = 0
    for key, value in ours.to_config().items():
        if key in theirs.config and key != "_class_name":
            assert theirs.config[key] == value, key
            checked += 1
    assert checked >= 8


def test_values_that_were_only_another_class_defaults_are_dropped() -> None:
    import diffusers

    euler = diffusers.EulerDiscreteScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    assert DDIM.from_config(dict(euler.config)).timestep_spacing == "leading"
    assert LMS.from_config(dict(euler.config)).timestep_spacing == "linspace"
    stated = diffusers.EulerDiscreteScheduler(timestep_spacing="trailing")
    assert DDIM.from_config(dict(stated.config)).timestep_spacing == "trailing"


def test_every_official_config(shared_data: Path) -> None:
    files = sorted((shared_data / "configs").glob("*/*scheduler.json"))
    assert len(files) >= 14
    for file in files:
        config = json.loads(file.read_text())
        scheduler = Scheduler.from_config(config)
        assert scheduler.official_name == config["_class_name"]
        assert Scheduler.from_config(scheduler.to_config()) == scheduler
        for sampler in SAMPLERS:
            if sampler is Heun and config.get("clip_sample"):
                continue  # refused
            scheduler = sampler.from_config(config)
            for key, value in scheduler.to_config().items():
                if key in config and key != "_class_name":
                    assert config[key] == value


@pytest.mark.parametrize("model", ["sd15", "sd21_768v", "sdxl_base"])
def test_another_sampler_for_an_official_model(shared_data: Path, model: str) -> None:
    config = json.loads((shared_data / "configs" / model / "scheduler.json").read_text())
    facts = json.loads((shared_data / "schedulers" / f"from_config_{model}.json").read_text())
    for name, sampler in Scheduler.samplers.items():
        n = 8 if sampler is LCM else 20
        ours = sampler.in_place_of(Scheduler.from_config(config))
        assert torch.allclose(ours.grid(n).timesteps.float(), torch.tensor(facts[name][str(n)]["timesteps"]).float())
        assert ours.schedule == Scheduler.from_config(config).schedule


def test_another_sampler_with_changes() -> None:
    trailing = DDIM(timestep_spacing="trailing", steps_offset=0)
    ours = DPMSolverMultistep.in_place_of(trailing, use_karras_sigmas=True)
    assert ours == DPMSolverMultistep(timestep_spacing="trailing", steps_offset=0, use_karras_sigmas=True)
    assert DDIM.in_place_of(trailing, eta=0.5) == replace(trailing, eta=0.5)
    assert DDIM.in_place_of(DDIM()) == DDIM()
    with pytest.raises(InputError, match="use_karras_sigmas"):
        DDIM.in_place_of(trailing, use_karras_sigmas=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, "LMSDiscreteScheduler"),
        ({"_class_name": None}, "LMSDiscreteScheduler"),
        ({"_class_name": ["DDIMScheduler"]}, "LMSDiscreteScheduler"),
        ({"beta_schedule": "sigmoid"}, "squaredcos_cap_v2"),
        ({"prediction_type": "flow"}, "v_prediction"),
        ({"prediction_type": None}, "v_prediction"),
        ({"timestep_spacing": "log"}, "trailing"),
        ({"steps_offset": "1"}, "steps_offset"),
        ({"steps_offset": -1}, "steps_offset"),
        ({"steps_offset": True}, "steps_offset"),
        ({"set_alpha_to_one": "false"}, "set_alpha_to_one"),
        ({"beta_start": "0.1"}, "beta"),
        ({"trained_betas": [0.1]}, "trained_betas"),
        ({"_class_name": "DDPMScheduler", "variance_type": "learned_range"}, "fixed_small"),
        ({"_class_name": "DDPMScheduler", "clip_sample_range": -1}, "clip_sample_range"),
        ({"_class_name": "DDIMScheduler", "clip_sample_range": "1"}, "clip_sample_range"),
        ({"_class_name": "DDIMScheduler", "thresholding": True}, "thresholding"),
        ({"_class_name": "LMSDiscreteScheduler", "use_beta_sigmas": True}, "use_beta_sigmas"),
        ({"_class_name": "EulerDiscreteScheduler", "final_sigmas_type": "sigma_min"}, "final_sigmas_type"),
        ({"_class_name": "HeunDiscreteScheduler", "clip_sample": True}, "clip_sample"),
        ({"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "dpmsolver"}, "sde-dpmsolver"),
        ({"_class_name": "DPMSolverMultistepScheduler", "solver_order": 3}, "solver_order"),
        ({"_class_name": "UniPCMultistepScheduler", "solver_type": "bh1"}, "bh2"),
        ({"_class_name": "LCMScheduler", "original_inference_steps": 0}, "original_inference_steps"),
    ],
)
def test_wrong_values(change: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Scheduler.from_config({**SD15, **change})


def test_no_dict() -> None:
    for config in (None, "DDIMScheduler", [SD15]):
        with pytest.raises(InputError, match="dict"):
            Scheduler.from_config(config)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="None"):
        Scheduler.from_config({})


def test_unknown_and_inert_keys_are_ignored() -> None:
    config = {**SD15, "sample_max_value": 3, "thresholding": True, "schedule": "x", "something": [1]}
    assert Scheduler.from_config(config) == PNDM()


def test_fields_are_checked_whatever_their_annotations_look_like() -> None:
    """Annotations are strings in a module with postponed annotations."""

    @dataclass(frozen=True)
    class Postponed(DDIM):
        clip_twice: "bool" = False
        share: "float" = 0.5
        count: "int" = 1

    assert Postponed(clip_twice=True, share=1, count=0).share == 1
    for wrong in ({"clip_twice": 1}, {"share": -0.1}, {"share": True}, {"count": 1.0}, {"count": -1}):
        with pytest.raises(InputError, match=next(iter(wrong))):
            Postponed(**wrong)  # type: ignore[arg-type]
    assert Postponed not in Scheduler.samplers.values()


@pytest.mark.parametrize("eta", [-0.1, 1.1, float("nan"), "0", True, None])
def test_wrong_eta(eta: object) -> None:
    with pytest.raises(InputError, match="eta"):
        replace(DDIM(), eta=eta)
