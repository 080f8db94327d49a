"""The numbers that texts give as answers, in the formats in which models and people write them."""

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prompts.answer_numbers import answer_number, numeric_match

HALF = Fraction(1, 2)
FORMATS = {
    # plain
    "18": 18,
    "The answer is 18.": 18,
    "3.": 3,
    "3.0": 3,
    "0.25": Fraction(1, 4),
    ".5": HALF,
    "007": 7,
    "٣٤": 34,
    "3rd": 3,
    # signs
    "-3": -3,
    "\u22123": -3,
    "+3": 3,
    "-.5": -HALF,
    "x=-3": -3,
    "5 - 3": 3,
    "16-3": 3,
    "GPT-4": 4,
    "f(x)-1": 1,
    # thousands
    "1,000": 1000,
    "$1,234.00": 1234,
    "1,234,567.5": 1234567 + HALF,
    "1,2,3": 3,
    "12,34": 34,
    # currency, percent, markup
    "$ 70000": 70000,
    "-$5": -5,
    "$-5": -5,
    "\u20ac20": 20,
    "50%": 50,
    "**18**": 18,
    r"\boxed{18}": 18,
    "(18)": 18,
    "18km": 18,
    # fractions
    "1/2": HALF,
    "-1/2": -HALF,
    "2 1/2": 2 + HALF,
    "10/2=5": 5,
    "3/05": Fraction(3, 5),
    "1/0": 0,
    # exponents
    "1.5e3": 1500,
    "1E-2": Fraction(1, 100),
    "2e\u22121": Fraction(1, 5),
    "4 eggs": 4,
    # the mark
    "9 * 2 = <<9*2=18>>18\n#### 18": 18,
    "#### 1\n#### 2": 2,
    "#### $1,200 for 3 weeks": 1200,
    "12 + 6 = 18\n####": None,
    # none
    "no number": None,
    "": None,
    "e, -, $, %, ., /": None,
    "\u00bd": None,
}


@pytest.mark.parametrize("text", FORMATS)
def test_the_number_of_an_answer(text):
    assert answer_number(text) == FORMATS[text]


@pytest.mark.parametrize(
    ("prediction", "reference"),
    [
        (" She makes $18.00 every day.", "9 * 2 = 18\n#### 18"),
        ("#### 1,000", "#### 1000.0"),
        ("0.5", "1/2"),
        ("50 %", "50%"),
        ("\u22123", "-3"),
        ("1.5e3", "1,500"),
    ],
)
def test_equal_numbers_match_however_they_are_written(prediction, reference):
    assert numeric_match(prediction, reference)
    assert numeric_match(reference, prediction)


@pytest.mark.parametrize(
    ("prediction", "reference"),
    [("18", "-18"), ("0.33", "1/3"), ("18 eggs, then 3", "18"), ("no number", "18"), ("", "0")],
)
def test_other_numbers_and_none_do_not_match(prediction, reference):
    assert not numeric_match(prediction, reference)


def test_texts_without_a_number_match_nothing():
    assert not numeric_match("none", "none")


def test_more_digits_than_python_turns_into_an_int():
    digits = "9" * 5000
    assert answer_number(f"{digits}.0") == answer_number(digits)
    assert not numeric_match(digits, digits[1:])


@settings(deadline=None)
@given(st.decimals(allow_nan=False, allow_infinity=False, places=3), st.sampled_from(["", ","]))
def test_a_formatted_number_is_read_back_exactly(number, separator):
    assert answer_number(f"so it is {number:{separator}f}.") == Fraction(number)


@settings(deadline=None)
@given(st.text())
def test_any_text_has_a_number_or_none(text):
    found = answer_number(text)
    assert found is None or isinstance(found, Fraction)
