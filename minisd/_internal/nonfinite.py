"""Why the output of a network is not finite."""

import torch
from torch import nn


def explain_nonfinite(network: nn.Module, scale: float = 1.0) -> str:
    """The likely cause of NaN or infinity in a network's output, and the remedy, for an error message.

    scale: the guidance scale of the call.
    """
    bad = [name for name, tensor in network.state_dict().items() if not torch.isfinite(tensor).all()]
    if bad:
        return f"{len(bad)} of its weights hold NaN or infinity ({', '.join(bad[:3])}), download them again"
    dtype = next(network.parameters()).dtype
    remedies = ["float32"] * (dtype != torch.float32) + ["a guidance scale below 20"] * (abs(scale) > 20)
    advice = " and ".join(remedies) or "other inputs, or download the weights again"
    return f"its weights are finite in {str(dtype).removeprefix('torch.')}, try {advice}"
