"""What a benchmark leaves: its measurements, and a page that tells them."""

import json
from pathlib import Path
from typing import Any


def write_results(path: Path, results: dict[str, Any], page: str) -> None:
    """Writes `path`.json and `path`.md."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n")
    path.with_suffix(".md").write_text(page)
