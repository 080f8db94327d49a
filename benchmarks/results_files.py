"""What a benchmark leaves: its measurements, and a page that tells them."""

import json
from pathlib import Path
from typing import Any

from files.writing import replace_text


def write_results(path: Path, results: dict[str, Any], page: str) -> None:
    """Writes `path`.json and `path`.md."""
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_text(path.with_suffix(".json"), json.dumps(results, indent=1) + "\n")
    replace_text(path.with_suffix(".md"), page)
