"""Batches hold every document once, within bounds, in an order that the seed draws."""

import dataclasses
from collections import Counter

import pytest

from training.batches import UNLEARNED, BatchPlan, collate
from training.documents import Document

LENGTHS = [3, 9, 4, 4, 7, 3, 8, 5, 6, 3] * 5


@pytest.fixture
def plan():
    return BatchPlan(LENGTHS, batch_tokens=20, seed=1)


def test_an_epoch_holds_every_document_once_within_the_bounds(plan):
    batches = plan.epoch(0)
    seen = Counter(index for batch in batches for index in batch)
    assert seen == Counter(range(len(LENGTHS)))
    for batch in batches:
        assert max(LENGTHS[index] for index in batch) * len(batch) <= 20


def test_batches_follow_seed_and_epoch_alone(plan):
    first, second = plan.epoch(0), plan.epoch(1)
    assert first != second
    assert plan.epoch(0) == first
    assert dataclasses.replace(plan, seed=2).epoch(0) != first


def test_a_walk_goes_on_where_another_stopped(plan):
    total = plan.steps(3)
    whole = list(plan.walk(0, total))
    assert len(whole) == total
    for first in (1, len(plan.epoch(0)), total - 1):
        assert list(plan.walk(first, total)) == whole[first:]


def test_little_is_padding():
    lengths = [1 + number % 50 for number in range(4000)]
    plan = BatchPlan(lengths, 1000, 0)
    read = sum(max(lengths[i] for i in batch) * len(batch) for batch in plan.epoch(0))
    assert read < 1.02 * sum(lengths)


def test_labels_end_with_their_document():
    documents = [Document([1, 2, 3], [False, True, True]), Document([4, 5], [True, True])]
    batch = collate(documents)
    assert batch.ids_BT.tolist() == [[1, 2, 3], [4, 5, 0]]
    assert batch.labels_BT.tolist() == [[2, 3, UNLEARNED], [5, UNLEARNED, UNLEARNED]]
    assert batch.positions_BT.tolist() == [[0, 1, 2], [0, 1, 0]]
