"""A checkpoint for tests that change it."""

import shutil

import pytest


@pytest.fixture
def copied(checkpoint, tmp_path):
    return shutil.copytree(checkpoint, tmp_path / "model")
