"""What is in a file or folder, without loading it: layout, family, components, dtypes, surprises."""

from collections import Counter
from dataclasses import dataclass, field
from math import prod
from pathlib import Path

from minisd.errors import MismatchError
from weights_loader import detect, official_configs
from weights_loader.build import Prefixed
from weights_loader.folder import component_json, component_weights, read_index, text_parts
from weights_loader.formats.weight_file import WeightFile, open_weights
from weights_loader.names import ldm
from weights_loader.single_file import configs, text_sources


@dataclass
class Component:
    """One network in a file: how many tensors and parameters, in which dtypes."""

    tensors: int
    parameters: int
    dtypes: dict[str, int]


@dataclass
class Inspection:
    """What `inspect` found; `str()` of it is a table for people."""

    path: Path
    layout: str
    family: str
    prediction_type: str | None
    components: dict[str, Component]
    notices: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f"{self.path}", f"layout     {self.layout}", f"family     {self.family}"]
        lines.append(f"predicts   {self.prediction_type or 'not to be seen in the tensors'}")
        for name, part in self.components.items():
            dtypes = ", ".join(f"{kind} x{count}" for kind, count in part.dtypes.items())
            lines.append(f"{name:<16} {part.tensors:5d} tensors {part.parameters:13,d} parameters  {dtypes}")
        return "\n".join(lines + [f"note: {notice}" for notice in self.notices])


def inspect_path(path: Path) -> Inspection:
    """Look at a model folder or a weight file. Raises what reading them raises; foreign files are named."""
    return _folder(path) if path.is_dir() else _file(path)


def _folder(folder: Path) -> Inspection:
    index = read_index(folder)
    unet = official_configs.unet_config(component_json(folder, "unet"))
    scheduler = component_json(folder, "scheduler", "scheduler_config.json")
    components = {}
    for name in (*(f"text_encoder{suffix}" for suffix in text_parts(index)), "unet", "vae"):
        tensors = component_weights(folder, name)
        dtypes = tensors.dtypes if isinstance(tensors, WeightFile) else {}
        components[name] = _component(tensors.shapes, dtypes)
    return Inspection(
        folder,
        f"diffusers ({index['_class_name']})",
        detect.family(unet),
        scheduler.get("prediction_type", "epsilon"),
        components,
    )


def _file(path: Path) -> Inspection:
    file = open_weights(path)
    try:
        layout = detect.layout(file.shapes, path)
    except MismatchError as error:  # to say what a foreign file is, is what inspecting is for
        everything = {"everything": _component(file.shapes, file.dtypes)}
        return Inspection(path, "unknown", str(error), None, everything, file.notices)
    if layout != "ldm":
        part = {str(layout): _component(file.shapes, file.dtypes)}
        return Inspection(path, "diffusers, one component", f"a {layout}", None, part, file.notices)
    texts = {f"text_encoder{'_2' if i else ''}": source.prefix for i, source in enumerate(text_sources(file))}
    prefixes = {"unet": ldm.UNET, "vae": ldm.VAE, **texts, "EMA": ldm.EMA}
    parts = {name: {n: s for n, s in file.shapes.items() if n.startswith(p)} for name, p in prefixes.items()}
    parts["rest"] = {n: s for n, s in file.shapes.items() if not n.startswith(tuple(prefixes.values()))}
    components = {name: _component(shapes, file.dtypes) for name, shapes in parts.items() if shapes}
    unet = detect.unet_config(Prefixed(file, ldm.UNET).shapes)
    prediction, notices = None, list(file.notices)
    try:
        prediction = configs(file).scheduler.schedule.prediction_type
    except ValueError as error:
        notices.append(str(error))
    return Inspection(path, "ldm (original single file)", detect.family(unet), prediction, components, notices)


def _component(shapes: detect.Shapes, dtypes: dict) -> Component:
    kinds = Counter(str(dtypes[name]).removeprefix("torch.") for name in shapes if name in dtypes)
    return Component(len(shapes), sum(prod(shape) for shape in shapes.values()), dict(kinds))
