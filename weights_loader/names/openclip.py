"""Names of an OpenCLIP text transformer, as inside the single files of SD 2.x (and the second encoder of SDXL)."""

from weights_loader.names import Place

LAYER = {
    "norm1": "ln_1",
    "attention.out": "attn.out_proj",
    "norm2": "ln_2",
    "expand": "mlp.c_fc",
    "contract": "mlp.c_proj",
}
OUTER = {
    "token_embedding.weight": Place("token_embedding.weight"),
    "position_embedding.weight": Place("positional_embedding"),
    "final_norm.weight": Place("ln_final.weight"),
    "final_norm.bias": Place("ln_final.bias"),
    "text_projection.weight": Place("text_projection", transposed=True),  # they write x @ P
}


def text_encoder(parameters: list[str]) -> dict[str, Place]:
    """{our parameter: its place}: q, k and v are the thirds of one stacked matrix."""
    places = {}
    for parameter in parameters:
        if parameter in OUTER:
            places[parameter] = OUTER[parameter]
            continue
        _, i, rest = parameter.split(".", 2)
        module, kind = rest.rsplit(".", 1)
        theirs = f"transformer.resblocks.{i}"
        if module.removeprefix("attention.") in ("q", "k", "v"):
            third = "qkv".index(module[-1])
            places[parameter] = Place(f"{theirs}.attn.in_proj_{kind}", third=third)
        else:
            places[parameter] = Place(f"{theirs}.{LAYER[module]}.{kind}")
    return places
