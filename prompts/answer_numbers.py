r"""Find the number that a text gives as its answer, to compare answers as numbers.

The answer is the first number after the last "####" (GSM8K's mark), or without that mark the last
number of the text. Numbers are written as in English: 1,234.50, .5, 1.5e3, -3, 1/2, 2 1/2. Signs of
currency and percent do not count: $50, 50% and 50 are equal.
"""

import re
from decimal import Decimal
from fractions import Fraction

MARK = "####"
# A hyphen behind a digit, a letter or a bracket subtracts or joins: 16-3, GPT-4, f(x)-1.
_SIGN = r"(?<![\w.)\]%])[-+\u2212]"
_CURRENCY = r"[$\u20ac\u00a3\u00a5\u20b9]"
_WHOLE = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)"
_EXPONENT = r"[eE][-+\u2212]?\d{1,3}(?!\w)"
_DECIMAL = rf"(?:{_WHOLE}(?:\.\d+)?|(?<!\d)\.\d+)(?:{_EXPONENT})?"
# No zero after the stroke: nothing is divided by it.
_BELOW = r"/(?P<below>(?!0+(?!\d))\d+)(?![\d/]|\.\d)"
_NUMBER = re.compile(
    rf"(?P<sign>{_SIGN})?(?:{_CURRENCY}\s?)?(?P<late_sign>(?<={_CURRENCY})[-\u2212])?"
    rf"(?:(?P<units>\d+) (?=\d+/\d))?(?P<value>{_DECIMAL})(?:{_BELOW})?"
)


def answer_number(text: str) -> Fraction | None:
    """Return the number that the text gives as its answer; None if it gives no number."""
    _, mark, after = text.rpartition(MARK)
    numbers = list(_NUMBER.finditer(after))
    return _value(numbers[0 if mark else -1]) if numbers else None


def numeric_match(prediction: str, reference: str) -> bool:
    """Return whether both texts give the same number; a text without a number matches nothing."""
    predicted = answer_number(prediction)
    return predicted is not None and predicted == answer_number(reference)


def _value(found: re.Match[str]) -> Fraction:
    # By Decimal, since int() refuses the 4300 digits that a model may write in a loop.
    value = Fraction(Decimal(found["value"].replace(",", "").replace("\u2212", "-")))
    if found["below"]:
        value /= Fraction(Decimal(found["below"]))
        value += Fraction(Decimal(found["units"] or "0"))
    negative = (found["sign"] or found["late_sign"] or "+") != "+"
    return -value if negative else value
