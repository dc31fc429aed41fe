"""scheduler_config.json, the official description of a sampler: read it, write it, exchange one sampler for another."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from inspect import isabstract
from typing import Any, ClassVar, Self

from minisd._internal.messages import shown
from minisd.errors import InputError
from minisd.schedulers.schedule import NoiseSchedule

OFFICIAL_DEFAULTS = {  # of the official classes; the defaults of our fields are the values of SD 1.x instead
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "prediction_type": "epsilon",
    "timestep_spacing": "leading",
    "steps_offset": 0,
}


@dataclass(frozen=True)
class OfficialConfig:
    """The methods of a sampler that read and write its config.

    official_name: the name of the class in diffusers.
    official_defaults: the defaults of that class, where they differ from OFFICIAL_DEFAULTS and from our fields.
    fixed_values: keys of that class which are not fields here, with the one value that this sampler supports.
    neutral: further keys of that class, which have no effect on the sampler.
    samplers: all samplers by official_name, set in minisd/schedulers/__init__.py.
    """

    official_name: ClassVar[str]
    official_defaults: ClassVar[dict[str, Any]] = {}
    fixed_values: ClassVar[dict[str, Any]] = {}
    neutral: ClassVar[tuple[str, ...]] = ("dynamic_thresholding_ratio", "sample_max_value")  # only with thresholding
    samplers: ClassVar[dict[str, type[Any]]] = {}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """The sampler that a config describes; called on a sampler's class, that sampler with the values of the config.

        A missing key has the default of the official class; keys without effect on the sampler are ignored.
        Raises InputError for an unknown class, and for values that the sampler does not support.
        """
        if not isinstance(config, Mapping):
            raise InputError(f"config is {type(config).__name__}, expected a dict as in scheduler_config.json.")
        if isabstract(cls):  # Scheduler itself
            name = config.get("_class_name")
            if not isinstance(name, str) or name not in cls.samplers:
                raise InputError(
                    f"_class_name of the scheduler config is {shown(name)}, expected one of "
                    f"{', '.join(sorted(cls.samplers))}; to use another one in its place, call that class's own "
                    "from_config, as in DDIM.from_config(config)."
                )
            return cls.samplers[name].from_config(config)
        # diffusers lists the keys whose values are defaults of the class that wrote the file
        written_defaults = config.get("_use_default_values") or ()
        if not isinstance(written_defaults, list | tuple):
            raise InputError(f"_use_default_values is {shown(written_defaults)}, expected a list of keys.")
        stated = {key: value for key, value in config.items() if key not in written_defaults}
        for key, only in cls.fixed_values.items():
            if stated.get(key, only) != only:
                raise InputError(
                    f"{key} is {shown(stated[key])}, expected {only!r}: {cls.__name__} supports no other value."
                )
        values = {**OFFICIAL_DEFAULTS, **cls.official_defaults, **stated}
        schedule = {each.name: values[each.name] for each in fields(NoiseSchedule) if each.name in values}
        values["schedule"] = NoiseSchedule(**schedule)
        return cls(**{each.name: values[each.name] for each in fields(cls) if each.name in values})

    @classmethod
    def in_place_of(cls, other: "OfficialConfig", **changes: Any) -> Self:
        """This sampler for the model of another sampler: on the same noise schedule, with the values that both have.

        Fields that the other sampler lacks have their SD defaults; if the other one clips (as for models of pixels),
        they have the defaults of the official class. timestep_spacing is taken over unless it is the default of the
        other's class: each class has a spacing that suits it. changes: values of this sampler's fields.
        Raises InputError for a change that is not a field.
        """
        own = {each.name for each in fields(cls)}
        unknown = sorted(set(changes) - own)
        if unknown:
            raise InputError(f"{cls.__name__} has no {', '.join(unknown)}, expected {', '.join(sorted(own))}.")
        defaults = cls.official_defaults if getattr(other, "clip_sample", False) else {}
        values = {name: value for name, value in defaults.items() if name in own}
        values |= {name: getattr(other, name) for name in own if hasattr(other, name)}
        usual_spacing = {**OFFICIAL_DEFAULTS, **other.official_defaults}["timestep_spacing"]
        if type(other) is not cls and values["timestep_spacing"] == usual_spacing:
            del values["timestep_spacing"]
        return cls(**{**values, **changes})

    def to_config(self) -> dict[str, Any]:
        """The content of scheduler_config.json: from_config restores this sampler, and the official class reads it."""
        values = asdict(self)
        values = {"_class_name": self.official_name, **values.pop("schedule"), **values}
        if values["trained_betas"] is not None:
            values["trained_betas"] = list(values["trained_betas"])
        return values
