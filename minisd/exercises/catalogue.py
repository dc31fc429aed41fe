"""All exercises, in their order."""

import difflib
from collections.abc import Mapping

from minisd.errors import InputError
from minisd.exercises.exercise import Exercise
from minisd.exercises.tasks import (
    add_noise,
    alpha_bars,
    attention,
    byte_pairs,
    ddim_step,
    dreambooth_loss,
    euler_step,
    group_norm,
    guide,
    guided_target,
    heat_map,
    imagic_mix,
    lora_weight,
    mask_blend,
    progressive_target,
    res_block,
    sample_latents,
    size_vector,
    split_heads,
    steps_to_skip,
    text_states,
    timestep_embedding,
    training_loss,
    transformer_block,
    weight_names,
)

_MODULES = (
    add_noise, timestep_embedding, group_norm, attention, split_heads, res_block, transformer_block, text_states,
    byte_pairs, guide, ddim_step, alpha_bars, euler_step, sample_latents, steps_to_skip, lora_weight, dreambooth_loss,
    progressive_target, guided_target, imagic_mix, mask_blend, size_vector, heat_map, training_loss, weight_names,
)  # fmt: skip
EXERCISES: dict[str, Exercise] = {module.EXERCISE.name: module.EXERCISE for module in _MODULES}


def find(name: str, known: Mapping[str, Exercise] = EXERCISES) -> Exercise:
    """The exercise with this name, or number. Raises InputError, which names the nearest ones."""
    for exercise in known.values():
        if name in (exercise.name, str(exercise.number), f"{exercise.number:02d}"):
            return exercise
    near = difflib.get_close_matches(name, known, n=2, cutoff=0.4)
    hint = f"did you mean {' or '.join(near)}?" if near else "`minisd exercises list` shows all."
    raise InputError(f"there is no exercise {name!r}; {hint}")
