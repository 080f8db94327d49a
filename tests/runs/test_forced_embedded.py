"""Teacher-forced measures of SmolLM2-135M beside a plain loop over transformers' own model."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import benchmark
from command_line.script import run_script
from models.embedded import embedded_checkpoint
from runs.reader import find_runs, read_record
from tests.conftest import ROOT, write

WINDOW, STRIDE = 512, 320
PLANS = {
    "base": [],
    "angular": ["--prune_method", "angular", "--prune_n", "4", "--calibration_samples", "3"],
    "random": ["--prune_method", "random", "--dropout_threshold", "0.2", "--prune_seed", "1"],
}


@pytest.fixture(scope="module")
def texts():
    names = ("decoding", "data", "logs", "pruning")
    return [(ROOT / f"docs/{name}.md").read_text(encoding="utf-8")[:2600] for name in names]


def log_probabilities(model, ids):
    return model(torch.tensor([ids]), use_cache=False).logits[0].log_softmax(-1)


@torch.inference_mode()
def by_hand(kept, text):
    """Return nats per token, KL per token and agreement, in windows of transformers' own model."""
    folder = embedded_checkpoint()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    whole, pruned = (AutoModelForCausalLM.from_pretrained(folder).float() for _ in range(2))
    pruned.model.layers = torch.nn.ModuleList(pruned.model.layers[index] for index in kept)
    ids = [tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False)["input_ids"]]
    sums, count = torch.zeros(3, dtype=torch.float64), 0
    starts = range(0, max(1, len(ids) - 1 - WINDOW + STRIDE), STRIDE)
    assert len(starts) == 2
    for start in starts:
        read = ids[start : start + WINDOW]
        said, target = log_probabilities(pruned, read), log_probabilities(whole, read)
        for place in range(WINDOW - STRIDE if start else 0, len(read)):
            if start + place + 1 == len(ids):
                break
            sums[0] -= said[place, ids[start + place + 1]]
            sums[1] += (target[place].exp() * (target[place] - said[place])).sum()
            sums[2] += said[place].argmax() == target[place].argmax()
            count += 1
    assert count == len(ids) - 1
    return (sums / count).tolist()


@pytest.mark.slow
@pytest.mark.parametrize("plan", PLANS)
def test_two_windows_equal_a_loop_over_transformers(texts, tmp_path, plan):
    path = write(tmp_path / "texts.jsonl", [{"text": text} for text in texts])
    words = ["--model", "smollm2-135m", "--dtype", "float32", "--dataset", "text"]
    words += ["--data_path", str(path), "--num_samples", "1", "--random_shuffle", "false"]
    words += ["--window", str(WINDOW), "--stride", str(STRIDE), *PLANS[plan]]
    assert run_script(benchmark.main, [*words, "--output_dir", str(tmp_path / "logs")]) == 0
    (found,) = find_runs(tmp_path / "logs")
    record = read_record(found)
    forced = record.metrics["teacher_forced"]
    nats, kl, agreement = by_hand(record.plan["kept_layers"], texts[0])
    print(f"{plan}: {forced} beside {nats} {kl} {agreement}")
    assert forced["nats_per_token"] == pytest.approx(nats, abs=1e-4)
    assert forced["kl"] == pytest.approx(kl, abs=1e-4)
    assert forced["agreement"] == pytest.approx(agreement, abs=1 / forced["tokens"])
