"""Helpers of the analysis tests: flags of both decoders, and runs read from a folder."""

from analysis.logged_runs import find_logged_runs

AUTOREGRESSIVE = {"exit_layer": None, "num_speculations": None}
SPECULATIVE = {"exit_layer": 8, "num_speculations": 6}


def read(folder):
    found = find_logged_runs([folder])
    assert found.unreadable == found.unfinished == 0
    return found.runs
