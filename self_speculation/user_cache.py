"""The folder of files that are slow to make and can be made again."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """Return the folder of compiled steps and converted models (XDG Base Directory)."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "layerskip-pruning"
