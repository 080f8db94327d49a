"""Where this project keeps what it has made once and would have to make again."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """The folder of converted models and compiled steps, after the XDG convention."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "layerskip-pruning"
