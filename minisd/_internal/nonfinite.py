"""Why a network may have given NaN."""

import torch
from torch import nn


def diagnosis(network: nn.Module) -> str:
    """What to do about a network whose output is not finite: the first of its tensors that hold NaN, if any do."""
    bad = [name for name, tensor in network.state_dict().items() if not torch.isfinite(tensor).all()]
    if bad:
        return f"{len(bad)} of its weights hold NaN or infinity ({', '.join(bad[:3])}), fetch them again"
    return "its weights are finite, try float32 and a guidance scale below 20"
