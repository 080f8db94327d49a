"""What tests of several plots share."""

import pytest

from analysis import plots


@pytest.fixture
def figures(monkeypatch):
    """Each figure that would be saved, by its name."""
    kept = {}
    monkeypatch.setattr(plots, "save_figure", lambda figure, path: kept.update({path.name: figure}))
    return kept
