"""Names of an OpenCLIP text encoder: the one in single files of SD 2.x, and the second one of SDXL."""

from weights_loader.names import TensorSource

LAYER = {
    "norm1": "ln_1",
    "attention.out": "attn.out_proj",
    "norm2": "ln_2",
    "expand": "mlp.c_fc",
    "contract": "mlp.c_proj",
}
OUTER = {
    "token_embedding.weight": TensorSource("token_embedding.weight"),
    "position_embedding.weight": TensorSource("positional_embedding"),
    "final_norm.weight": TensorSource("ln_final.weight"),
    "final_norm.bias": TensorSource("ln_final.bias"),
    "text_projection.weight": TensorSource("text_projection", transposed=True),  # stored for x @ P
}


def text_encoder(parameters: list[str]) -> dict[str, TensorSource]:
    """{our parameter: its source}: q, k and v are the thirds of one stacked matrix."""
    sources = {}
    for parameter in parameters:
        if parameter in OUTER:
            sources[parameter] = OUTER[parameter]
            continue
        _, i, rest = parameter.split(".", 2)
        module, kind = rest.rsplit(".", 1)
        theirs = f"transformer.resblocks.{i}"
        if module.removeprefix("attention.") in ("q", "k", "v"):
            third = "qkv".index(module[-1])
            sources[parameter] = TensorSource(f"{theirs}.attn.in_proj_{kind}", third=third)
        else:
            sources[parameter] = TensorSource(f"{theirs}.{LAYER[module]}.{kind}")
    return sources
