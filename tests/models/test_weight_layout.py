"""The memory layout of weights changes no value."""

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from arguments.model import ModelArguments
from models.loading import load_model
from models.runtime import start
from models.weight_layout import favour_single_rows
from pruned_model import PruneModel
from pruning.plan import PrunePlan
from tests.conftest import random_prompt, tiny_config

needs_mkl = pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="torch has no MKL")


def tied_model():
    torch.manual_seed(0)
    return LlamaForCausalLM(tiny_config(tie_word_embeddings=True)).eval().requires_grad_(False)


@needs_mkl
def test_values_and_ties_stay(tokenizer, tmp_path):
    model, reference = tied_model(), tied_model()
    favour_single_rows(model)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    for (name, one), (_, other) in zip(
        model.named_parameters(), reference.named_parameters(), strict=True
    ):
        assert torch.equal(one, other), name
    ids_1T = torch.tensor([random_prompt(20)])
    torch.testing.assert_close(model(ids_1T).logits, reference(ids_1T).logits)

    pruned = PruneModel(model, PrunePlan("test", 6, (0, 1, 4, 5)))
    pruned.prune()
    pruned.save(tokenizer, tmp_path / "saved", "tiny")
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    torch.testing.assert_close(saved(ids_1T).logits, model(ids_1T).logits)


@needs_mkl
def test_only_widening_layers_are_turned():
    model = tied_model()
    favour_single_rows(model)
    layer = model.model.layers[0]
    turned = (layer.mlp.gate_proj, layer.mlp.up_proj, model.lm_head)
    kept = (layer.mlp.down_proj, layer.self_attn.q_proj, layer.self_attn.k_proj)
    assert not any(linear.weight.is_contiguous() for linear in turned)
    assert all(linear.weight.is_contiguous() for linear in kept)


@pytest.mark.parametrize(
    ("dtype", "compiled", "turned"),
    [("float32", False, True), ("bfloat16", False, False), ("float32", True, False)],
)
@needs_mkl
def test_loaded_models_lie_as_their_decoder_reads_them(checkpoint, dtype, compiled, turned):
    arguments = ModelArguments(model=str(checkpoint), dtype=dtype, compile=compiled)
    weight = load_model(arguments, start(arguments)).model.lm_head.weight
    assert weight.is_contiguous() != turned
