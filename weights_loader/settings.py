"""The settings of a model folder beside its networks: the sampler, and the recommended steps and guidance.

Loading does not fail for want of a sampler: another one takes its place on the same noise schedule, with a notice.
"""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from minisd._internal.messages import shown
from minisd.errors import InputError, MismatchError
from minisd.pipeline import Defaults
from minisd.schedulers import (
    DDIM,
    DDPM,
    LCM,
    DPMSolverMultistep,
    EulerAncestral,
    Heun,
    NoiseSchedule,
    Scheduler,
)
from weights_loader.official_configs import Json, make_config

# Official samplers that minisd lacks, on the same noise schedules -> the sampler of ours that takes their place.
STAND_INS: dict[str, type[Scheduler]] = {
    "DDIMParallelScheduler": DDIM,
    "DDPMParallelScheduler": DDPM,
    "DPMSolverSDEScheduler": DPMSolverMultistep,
    "KDPM2AncestralDiscreteScheduler": EulerAncestral,
    "KDPM2DiscreteScheduler": Heun,
    "SASolverScheduler": DPMSolverMultistep,
    "TCDScheduler": LCM,
}
STOCHASTIC = ("DPMSolverSDEScheduler", "SASolverScheduler")
ALGORITHMS = {"dpmsolver": "dpmsolver++", "sde-dpmsolver": "sde-dpmsolver++", "deis": "dpmsolver++"}
# Values of samplers that minisd has, but with which the network expects other noise levels, or predicts more.
OTHER_MODELS = {
    "use_flow_sigmas": True,
    "timestep_type": "continuous",
    "variance_type": "learned",
    "prediction_type": "flow_prediction",
}


def read_scheduler(config: Json, notices: list[str], prediction_type: str | None = None) -> Scheduler:
    """scheduler_config.json -> a sampler; for what minisd lacks the closest one, with a sentence in `notices`.

    prediction_type: in place of that of the config. Raises MismatchError: a value of another kind, or a noise schedule
    that minisd lacks; InputError: another prediction_type.
    """
    name, values = config.get("_class_name"), dict(config)
    if not isinstance(name, str):
        raise MismatchError(f"the scheduler config has _class_name {shown(name)}, expected the name of a class.")
    if prediction_type is not None:
        values["prediction_type"] = NoiseSchedule(prediction_type=prediction_type).prediction_type
    for key, other in OTHER_MODELS.items():
        if str(values.get(key)).startswith(str(other)):
            raise MismatchError(
                f"the scheduler config has {key} {shown(values[key])}; minisd does not have such a noise schedule."
            )
    sampler = Scheduler.samplers.get(name) or _stand_in(name, values, notices)
    values["_class_name"] = sampler.official_name
    if name in STOCHASTIC:
        values["algorithm_type"] = "sde-dpmsolver++"
    lacking = _take_unsupported(values, sampler)
    if lacking and name in Scheduler.samplers:
        notices.append(f"The scheduler config has {', '.join(lacking)}; {sampler.__name__} draws without.")
    try:
        return Scheduler.from_config(values)
    except InputError as error:
        raise MismatchError(f"the scheduler config does not fit its sampler: {error}") from None


def _stand_in(name: str, values: Mapping[str, Any], notices: list[str]) -> type[Scheduler]:
    """The sampler in place of one that minisd lacks. Raises MismatchError for samplers on other noise schedules."""
    if values.get("trained_betas") is None and not {"beta_start", "beta_end", "beta_schedule"} <= values.keys():
        raise MismatchError(
            f"the scheduler config has _class_name {shown(name)} and no betas, expected one of "
            f"{', '.join(sorted(Scheduler.samplers))}; minisd does not have such a noise schedule."
        )
    sampler = STAND_INS.get(name, DPMSolverMultistep)
    if name not in ("DDIMParallelScheduler", "DDPMParallelScheduler"):  # which are equal
        notices.append(
            f"minisd has no {shown(name)}; {sampler.__name__} takes its place on the same noise schedule, and images "
            "differ somewhat from those of that sampler."
        )
    return sampler


def _take_unsupported(values: dict[str, Any], sampler: type[Scheduler]) -> list[str]:
    """Remove the values that the sampler does not support; what they were. Raises MismatchError for another kind."""
    written_defaults = values.get("_use_default_values") or ()
    if not isinstance(written_defaults, list | tuple):
        raise MismatchError(f"the scheduler config has _use_default_values {shown(written_defaults)}, expected a list.")
    lacking = []
    for key, only in sampler.fixed_values.items():
        if key not in values or key in written_defaults or values[key] == only:
            continue
        value = values.pop(key)
        kind = type(only)
        if only is not None and not isinstance(value, (int, float) if kind is float else kind):
            raise MismatchError(f"the scheduler config has {key} {shown(value)}, expected {shown(only)}.")
        lacking.append(f"{key} {shown(value)}")
    algorithm = values.get("algorithm_type")
    if isinstance(algorithm, str) and algorithm in ALGORITHMS:
        values["algorithm_type"] = ALGORITHMS[algorithm]
        lacking.append(f"algorithm_type {algorithm}")
    return lacking


def read_defaults(stored: Json, name: str) -> Defaults:
    """The recommended settings in a JSON object, `name` in messages. Raises MismatchError."""
    values = {each.name: stored[each.name] for each in fields(Defaults) if each.name in stored}
    return make_config(Defaults, name, values, {"zero_empty_prompt": "force_zeros_for_empty_prompt"})
