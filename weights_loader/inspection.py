"""What a file or folder contains, without loading it: layout, family, networks, dtypes, notices."""

from collections import Counter
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

from minisd.errors import MismatchError
from weights_loader import detect, official_configs
from weights_loader.adapters.description import describe
from weights_loader.build import Prefixed
from weights_loader.formats.weight_file import WeightFile, open_weights
from weights_loader.loading import stored_defaults
from weights_loader.model_folder import SCHEDULER_CONFIG, ModelFolder
from weights_loader.names import ldm
from weights_loader.single_file import read_configs, stored_text_encoders
from weights_loader.sources import resolve


@dataclass
class ComponentSummary:
    """One network in a file: its numbers of tensors and parameters, and how many tensors each dtype has."""

    tensors: int
    parameters: int
    dtypes: dict[str, int]


@dataclass
class Inspection:
    """The result of `inspect`; print it for a table."""

    path: Path
    layout: str
    family: str
    prediction_type: str | None
    components: dict[str, ComponentSummary]
    notices: list[str] = field(default_factory=list)
    words: str = ""  # every word that the model was trained on, where that is known

    def __str__(self) -> str:
        lines = [f"{self.path}", f"layout     {self.layout}", f"family     {self.family}"]
        if "unet" in self.components:
            lines.append(f"predicts   {self.prediction_type or 'unknown (the tensors do not show it)'}")
        for name, part in self.components.items():
            dtypes = ", ".join(f"{dtype} x{count}" for dtype, count in part.dtypes.items())
            lines.append(f"{name:<16} {part.tensors:5d} tensors {part.parameters:13,d} parameters  {dtypes}")
        if self.words:
            lines.append(f"knows      {len(self.words.split())} words: {self.words}")
        return "\n".join(lines + [f"note: {notice}" for notice in self.notices])


def inspect(source: str | Path) -> Inspection:
    """The layout, family, networks, dtypes and notices of a file or folder; print it for a table.

    An adapter's layout names its format, and its rank or its number of vectors.
    source: as for weights_loader.load, but nothing is downloaded. Raises the classes of minisd.errors.
    """
    path = resolve(source, offline=True)
    return _inspect_folder(ModelFolder(path)) if path.is_dir() else _inspect_file(open_weights(path))


def _inspect_folder(folder: ModelFolder) -> Inspection:
    layout = f"diffusers ({folder.index['_class_name']})"
    unet = official_configs.unet_config(folder.json("unet"))
    scheduler = folder.json("scheduler", SCHEDULER_CONFIG)
    components = {}
    for name in (*(f"text_encoder{suffix}" for suffix in folder.text_suffixes), "unet", "vae"):
        tensors = folder.weights(name)
        dtypes = tensors.dtypes if isinstance(tensors, WeightFile) else {}
        components[name] = _summary(tensors.shapes, dtypes)
    prediction_type = scheduler.get("prediction_type", "epsilon")
    words = stored_defaults(folder).words
    return Inspection(folder.path, layout, unet.family, prediction_type, components, folder.notices, words)


def _inspect_file(file: WeightFile) -> Inspection:
    if (adapter := describe(file.shapes)) is not None:
        everything = {adapter.kind: _summary(file.shapes, file.dtypes)}
        return Inspection(file.path, adapter.layout, adapter.family, None, everything, file.notices)
    try:
        layout = detect.layout(file.shapes, file.path)
    except MismatchError as error:  # it names the format, which is what inspecting is for
        everything = {"everything": _summary(file.shapes, file.dtypes)}
        return Inspection(file.path, "unknown", str(error), None, everything, file.notices)
    if layout != "ldm":
        network = {str(layout): _summary(file.shapes, file.dtypes)}
        return Inspection(file.path, "diffusers, one network", f"a {layout}", None, network, file.notices)
    texts = {f"text_encoder{'_2' if i else ''}": text.prefix for i, text in enumerate(stored_text_encoders(file))}
    prefixes = {"unet": ldm.UNET, "vae": ldm.VAE, **texts, "EMA": ldm.EMA}
    parts = {name: {n: s for n, s in file.shapes.items() if n.startswith(p)} for name, p in prefixes.items()}
    parts["rest"] = {n: s for n, s in file.shapes.items() if not n.startswith(tuple(prefixes.values()))}
    components = {name: _summary(shapes, file.dtypes) for name, shapes in parts.items() if shapes}
    family = detect.unet_config(Prefixed(file, ldm.UNET).shapes).family
    prediction_type, words = None, ""
    try:
        configs = read_configs(file)
        prediction_type, words = configs.scheduler.schedule.prediction_type, configs.defaults.words
    except ValueError as error:
        file.notices.append(str(error))
    return Inspection(file.path, "ldm (original single file)", family, prediction_type, components, file.notices, words)


def _summary(shapes: detect.Shapes, dtypes: dict[str, Any]) -> ComponentSummary:
    counts = Counter(str(dtypes[name]).removeprefix("torch.") for name in shapes if name in dtypes)
    return ComponentSummary(len(shapes), sum(prod(shape) for shape in shapes.values()), dict(counts))
