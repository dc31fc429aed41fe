"""All graded tasks, in their order."""

from minisd.exercises.exercise import Exercise
from minisd.exercises.graded import (
    blend_prompts,
    churn_step,
    dynamic_threshold,
    shifted_alpha_bars,
    sigmoid_alpha_bars,
    weighted_attention,
)

_MODULES = (sigmoid_alpha_bars, shifted_alpha_bars, churn_step, blend_prompts, dynamic_threshold, weighted_attention)
GRADED: dict[str, Exercise] = {module.TASK.name: module.TASK for module in _MODULES}
