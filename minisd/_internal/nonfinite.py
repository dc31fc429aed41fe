"""Why the output of a network is not finite."""

import torch
from torch import nn


def explain_nonfinite(network: nn.Module) -> str:
    """The likely cause of NaN or infinity in a network's output, and the remedy, for an error message."""
    bad = [name for name, tensor in network.state_dict().items() if not torch.isfinite(tensor).all()]
    if bad:
        return f"{len(bad)} of its weights hold NaN or infinity ({', '.join(bad[:3])}), download them again"
    return "its weights are finite, try float32 and a guidance scale below 20"
