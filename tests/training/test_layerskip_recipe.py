"""The recipe's numbers are those of the paper."""

import math
from collections import Counter

import pytest

from training.layerskip_recipe import EARLY_EXIT_CURRICULA, Moment, Recipe


def test_layer_dropout_rises_exponentially_with_depth():
    rates = Recipe(max_layer_dropout=0.2).dropout_rates(9, progress=0.0)
    assert rates[0] == 0
    assert rates[-1] == pytest.approx(0.2)
    ratios = [(later + 0.2) / (rate + 0.2) for rate, later in zip(rates, rates[1:], strict=False)]
    assert ratios == pytest.approx([2 ** (1 / 8)] * 8)


def test_layer_dropout_rises_exponentially_with_time_from_scratch():
    recipe = Recipe(max_layer_dropout=0.2, layer_dropout_curriculum="exponential")
    steps = (Moment(step, 9) for step in (0, 4, 8))
    last = [recipe.dropout_rates(4, moment.progress)[-1] for moment in steps]
    assert last == pytest.approx([0.0, 0.2 * (math.sqrt(2) - 1), 0.2])


@pytest.mark.parametrize("curriculum", EARLY_EXIT_CURRICULA)
def test_a_model_of_one_layer_drops_none_and_learns(curriculum):
    assert Recipe().dropout_rates(1, 0.5) == [0.0]
    assert Recipe(early_exit_curriculum=curriculum).exit_weights(1, Moment(0, 1)) == {1: 1.0}


def test_exit_weights_are_the_papers():
    """Of four layers: e times 0, 1 and 3, then 3 + 3 e; divided by their sum."""
    recipe = Recipe(early_exit_scale=0.5, early_exit_curriculum="none")
    weights = recipe.exit_weights(4, Moment(0, 10))
    total = 0.5 + 1.5 + 4.5
    assert weights == pytest.approx({2: 0.5 / total, 3: 1.5 / total, 4: 4.5 / total})


def test_uniform_exit_weights():
    recipe = Recipe(
        early_exit_scale=0.5, early_exit_weights="uniform", early_exit_curriculum="none"
    )
    weights = recipe.exit_weights(3, Moment(0, 10))
    assert weights == pytest.approx({1: 0.25, 2: 0.25, 3: 0.5})


@pytest.mark.parametrize("curriculum", EARLY_EXIT_CURRICULA)
@pytest.mark.parametrize("step", [0, 7, 99])
def test_the_last_layer_always_learns_and_shares_sum_to_one(curriculum, step):
    weights = Recipe(early_exit_curriculum=curriculum).exit_weights(6, Moment(step, 100))
    assert 6 in weights
    assert sum(weights.values()) == pytest.approx(1)


def test_without_a_scale_the_last_layer_learns_alone():
    recipe = Recipe(early_exit_scale=0.0, early_exit_curriculum="none")
    assert recipe.exit_weights(6, Moment(0, 10)) == {6: 1.0}


def test_rotation_gives_every_early_exit_its_turn():
    recipe = Recipe(early_exit_weights="uniform", rotation_interval=3)
    turns = Counter()
    for step in range(3):
        turns.update(set(recipe.exit_weights(8, Moment(step, 90))) - {8})
    assert turns == dict.fromkeys(range(1, 8), 1)
    assert set(recipe.exit_weights(8, Moment(0, 90))) == {1, 4, 7, 8}
    assert set(recipe.exit_weights(8, Moment(1, 90))) == {2, 5, 8}


def test_the_gradual_curriculum_descends_and_is_over_halfway():
    recipe = Recipe(early_exit_weights="uniform", early_exit_curriculum="gradual")
    lowest = [min(recipe.exit_weights(4, Moment(step, 80))) for step in (0, 9, 10, 20, 30, 79)]
    assert lowest == [4, 4, 3, 2, 1, 1]
