"""Shared by tests of the analysis: the two decoders, and made-up runs that are read back."""

from analysis.logged_runs import find_logged_runs

AUTOREGRESSIVE = {"exit_layer": None, "num_speculations": None}
SPECULATIVE = {"exit_layer": 8, "num_speculations": 6}


def read(folder):
    found = find_logged_runs([folder])
    assert found.unreadable == found.unfinished == 0
    return found.runs
