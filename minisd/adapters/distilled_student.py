"""A distilled student as the changes of its teacher: of low rank for matrices and convolutions, whole for vectors.

The singular values of a change fall quickly, so the largest of them, which give the closest matrix of their number
(Eckart and Young 1936), are a small file in place of a whole UNet.
"""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from minisd.adapters import LowRankChanges
from minisd.errors import InputError, MismatchError
from minisd.models import UNet
from minisd.pipeline import StableDiffusion

GUIDANCE = "guidance.weight"  # the layer that reads the guidance scale; the teacher has none


class StudentChanges(LowRankChanges):
    """The changes of a teacher's UNet. The parameter names are those in the student's file."""

    def __init__(self, teacher: UNet, rank: int, guidance_width: int) -> None:
        shapes = {name: parameter.shape for name, parameter in teacher.named_parameters()}
        super().__init__(teacher, [name for name, shape in shapes.items() if len(shape) > 1], rank)
        self.vector_names = [name for name, shape in shapes.items() if len(shape) == 1]
        self.vectors = nn.ParameterList(torch.zeros(shapes[name]) for name in self.vector_names)
        self.guidance = nn.Parameter(torch.zeros(teacher.config.channels[0], guidance_width))

    def weights(self, network: nn.Module) -> dict[str, Tensor]:
        """The student's weights, by name."""
        vectors = zip(self.vector_names, self.vectors, strict=True)
        changed = {name: network.get_parameter(name) + change for name, change in vectors}
        return super().weights(network) | changed | {GUIDANCE: self.guidance}


@torch.no_grad()
def student_changes(teacher: UNet, student: UNet, rank: int) -> StudentChanges:
    """The changes of low rank that are closest to the student. Raises InputError if it is no student of this teacher.

    The student reads the guidance scale; the teacher does not.
    """
    width = student.config.guidance_width
    if width is None or replace(student.config, guidance_width=None) != teacher.config:
        raise InputError("the student has other sizes than its teacher, or does not read the guidance scale.")
    changes = StudentChanges(teacher, rank, width)
    for name, down, up in zip(changes.names, changes.down, changes.up, strict=True):
        difference = (student.get_parameter(name) - teacher.get_parameter(name)).float().flatten(1)
        left, values, right = torch.linalg.svd(difference, full_matrices=False)
        kept, root = min(rank, len(values)), values[:rank].sqrt()
        down.zero_()[:kept] = root[:, None] * right[:kept]
        up[:, :kept] = left[:, :kept] * root
    for name, change in zip(changes.vector_names, changes.vectors, strict=True):
        change.copy_(student.get_parameter(name) - teacher.get_parameter(name))
    changes.guidance.copy_(student.get_parameter(GUIDANCE))
    return changes.requires_grad_(False)


@torch.no_grad()
def apply_student(sd: StableDiffusion, changes: StudentChanges, steps: int) -> StableDiffusion:
    """A pipeline that draws with the student in so many steps; it shares everything but the UNet with `sd`."""
    with torch.device("meta"):
        unet = UNet(replace(sd.unet.config, guidance_width=changes.guidance.shape[1]))
    own = {name: weight.clone() for name, weight in sd.unet.state_dict().items()}
    unet.load_state_dict(own | changes.to(sd.device, torch.float32).weights(sd.unet), strict=True, assign=True)
    unet = unet.to(sd.device, sd.dtype).eval()
    defaults = replace(sd.defaults, num_inference_steps=steps)
    student = StableDiffusion(sd.tokenizer, sd.text_encoder, sd.vae, unet, sd.scheduler, defaults, sd.low_res)
    student.preview_decoder = sd.preview_decoder
    return student


def student_from_tensors(teacher: UNet, tensors: Mapping[str, Tensor]) -> StudentChanges:
    """The changes with the state dict `tensors`. Raises MismatchError if they belong to another UNet."""
    try:
        changes = StudentChanges(teacher, len(tensors["down.0"]), tensors["guidance"].shape[1])
        changes.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
    except (KeyError, IndexError, RuntimeError) as error:
        raise MismatchError(
            f"these are not the changes of a student of this UNet ({error}); reinstall minisd."
        ) from error
    return changes.requires_grad_(False)
