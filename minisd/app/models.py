"""The pipelines of the page: each is loaded once and stays."""

import weights_loader
from minisd.demos.catalogue import Entry
from minisd.pipeline import StableDiffusion
from weights_loader.sources import EMBEDDED


class Models:
    """A given checkpoint serves all demos of its task; the other demos keep the embedded model of their task."""

    def __init__(self, source: str | None = None, device: str | None = None) -> None:
        """Load the model that draws. Raises the classes of minisd.errors, for a source that does not load.

        source: as for weights_loader.load; None: the embedded models.
        """
        self.device = weights_loader.check_device(device or weights_loader.best_device())
        self.source = source
        self._loaded: dict[str, StableDiffusion] = {}
        self.load(source or EMBEDDED)

    def load(self, name: str) -> StableDiffusion:
        """The pipeline of a name, from the file or from memory. Raises the classes of minisd.errors."""
        if name not in self._loaded:
            self._loaded[name] = weights_loader.load(name, device=self.device)
        return self._loaded[name]

    def name_of(self, entry: Entry) -> str:
        """The name of a demo's model: the given one where its task fits."""
        return self.name_for(entry.model) if entry.loads else self.source or entry.model

    def name_for(self, own: str) -> str:
        """The name of the given model where it has the task of the embedded model `own`, else `own`."""
        if self.source is not None and self.load(self.source).task == self.load(own).task:
            return self.source
        return own
