"""A model whose drafts are often accepted."""

import gc
import weakref

import pytest


@pytest.fixture
def agreeable(model):
    """The tiny Llama with faint late layers, so that drafts are often accepted."""
    for layer in model.model.layers[1:]:
        layer.self_attn.o_proj.weight *= 0.15
        layer.mlp.down_proj.weight *= 0.15
    return model


def is_freed_at_once(make):
    """Return whether an object is freed with its last reference, without garbage collection."""
    made = make()
    known = weakref.ref(made)
    gc.disable()
    try:
        del made
        return known() is None
    finally:
        gc.enable()
