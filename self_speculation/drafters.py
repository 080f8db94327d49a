"""DRAFTERS: everything that can propose tokens, by the name that `--drafter` takes.

This module imports nothing heavy, so that the command line can read the names.
"""

import importlib
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class DrafterEntry:
    """Where the class of a drafter is, and what the drafter needs.

    `layers` says which layers of the model draft: `exit_layer`, `plan`, or None for a drafter that
    runs no layer. `combines`: the drafter asks another one where it has no idea itself.
    """

    module: str
    class_name: str
    layers: str | None = None
    combines: bool = False

    def load(self) -> type[Any]:
        """Return the class, a `Drafter`."""
        found: type[Any] = getattr(importlib.import_module(self.module), self.class_name)
        return found


LEAST_MATCH = 2  # tokens that must match before a hybrid looks up, unless told otherwise
_LAYERS = "self_speculation.layer_drafter", "LayerDrafter"
DRAFTERS: dict[str, DrafterEntry] = {
    "early_exit": DrafterEntry(*_LAYERS, layers="exit_layer"),
    "pruned": DrafterEntry(*_LAYERS, layers="plan"),
    "lookup": DrafterEntry("self_speculation.lookup_drafter", "LookupDrafter"),
    "recycling": DrafterEntry("self_speculation.recycling_drafter", "RecyclingDrafter"),
    "hybrid": DrafterEntry("self_speculation.hybrid_drafter", "HybridDrafter", combines=True),
}
