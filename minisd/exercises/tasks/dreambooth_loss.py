"""DreamBooth's loss with prior preservation."""

import torch
import torch.nn.functional as F
from torch import Tensor

from minisd.exercises.exercise import Case, Exercise, Mistake
from minisd.exercises.inputs import normal
from minisd.training import fine_tuning

TASK = """
DreamBooth's loss (Ruiz et al. 2022): the mean square error on images of the subject, plus `prior_weight` times
that on images of its class.

prediction and target (B, C, h, w): the first `subjects` rows are of the subject, the others of the class -> a
scalar.
"""


def dreambooth_loss(prediction: Tensor, target: Tensor, subjects: int, prior_weight: float) -> Tensor:
    errors = (prediction - target).square().flatten(1).mean(1)
    return errors[:subjects].mean() + prior_weight * errors[subjects:].mean()


def cases() -> list[Case]:
    prediction, target = normal(5, 3, 4, 2, seed=1), normal(5, 3, 4, 2, seed=2)
    target[:2] *= 2
    return [
        Case("two of the subject, three of the class", (prediction, target, 2, 0.7)),
        Case("weight 0", (prediction, target, 3, 0.0)),
    ]


def _over_all(prediction: Tensor, target: Tensor, subjects: int, prior_weight: float) -> Tensor:
    return F.mse_loss(prediction, target)


def _unweighted(prediction: Tensor, target: Tensor, subjects: int, prior_weight: float) -> Tensor:
    return dreambooth_loss(prediction, target, subjects, 1.0)


def _halves(prediction: Tensor, target: Tensor, subjects: int, prior_weight: float) -> Tensor:
    return dreambooth_loss(prediction, target, len(target) // 2, prior_weight)


def _class_first(prediction: Tensor, target: Tensor, subjects: int, prior_weight: float) -> Tensor:
    errors = (prediction - target).square().flatten(1).mean(1)
    return errors[subjects:].mean() + prior_weight * errors[:subjects].mean()


def _summed(prediction: Tensor, target: Tensor, subjects: int, prior_weight: float) -> Tensor:
    errors = (prediction - target).square().flatten(1).mean(1)
    return errors[:subjects].sum() + prior_weight * errors[subjects:].sum()


def _by_mse(prediction: Tensor, target: Tensor, subjects: int, prior_weight: float) -> Tensor:
    parts = [F.mse_loss(prediction[rows], target[rows]) for rows in (slice(subjects), slice(subjects, None))]
    return torch.add(parts[0], parts[1], alpha=prior_weight)


EXERCISE = Exercise(
    number=20,
    name="dreambooth_loss",
    title="DreamBooth's loss",
    level=1,
    minutes=10,
    notebook="25",
    task=TASK,
    reference=dreambooth_loss,
    answer=fine_tuning.fine_tune,
    cases=cases,
    mistakes=(
        Mistake("the error is taken over all images alike; the class has a weight of its own", _over_all),
        Mistake("prior_weight is not used", _unweighted),
        Mistake("the batch is cut in the middle; cut it after `subjects` rows", _halves),
        Mistake("subject and class are exchanged; the subject comes first", _class_first),
        Mistake("the errors of the images are summed; expected their mean", _summed),
    ),
    hints=(
        "Two errors, each a mean of its own: over the rows of the subject, which come first, and over the others.",
        "Only the error of the class has a weight; with weight 0 the class does not count at all.",
        "tensor[:n] are the first n rows, tensor[n:] the others.",
    ),
    variants=(_by_mse,),
)
