"""The scores of one example's text."""

from data import EvaluationExample
from prompts.answer_numbers import numeric_match
from prompts.dataset_table import DATASETS
from runs.code_execution import passes
from runs.definition import RunDefinition
from runs.metrics import text_scores


def scores_of(definition: RunDefinition, example: EvaluationExample, text: str) -> dict[str, float]:
    """Return the scores that the data set allows: none of the text without a reference."""
    data, scores = definition.arguments.data, {}
    dataset = DATASETS[data.dataset]
    if dataset.references:
        scores = text_scores(text, example.reference, definition.scoring["bleu_tokenizer"])
    if data.compares_numbers:
        scores["numeric_match"] = float(numeric_match(text, example.reference))
    if example.tests is not None:
        program = dataset.program(example.content, text)
        scores["pass@1"] = float(passes(f"{program}\n{example.tests}"))
    return scores
