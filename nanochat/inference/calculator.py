"""The model's calculator: arithmetic only, exact, always quick. Nothing is ever evaluated by Python."""

import ast
import operator
import re
from collections.abc import Callable
from fractions import Fraction
from typing import Any

MAX_LENGTH = 200  # characters; bounds the depth of the syntax tree too
MAX_BITS = 1024  # of a numerator or denominator anywhere on the way: about 308 digits
DECIMALS = 10  # shown of a result that is not whole

_ALPHABET = re.compile(r"[0-9+\-*/%(). ,]+")
_THOUSANDS_COMMA = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")


class _NotArithmetic(Exception):
    """Something other than numbers and operators, or a number too large."""


def evaluate(expression: str) -> str | None:
    """The value of an arithmetic expression, or None if it is not one, has no value, or is too large.

    Numbers, `+ - * / // % **`, parentheses and commas between thousands. Calculation is in exact fractions, so
    0.1 + 0.2 is 0.3; results are rounded to DECIMALS places. Powers have whole exponents. Never raises.
    """
    expression = _THOUSANDS_COMMA.sub("", expression.strip())
    if len(expression) > MAX_LENGTH or not _ALPHABET.fullmatch(expression):
        return None
    try:
        return _shown(_value(ast.parse(expression, mode="eval").body))
    except (_NotArithmetic, SyntaxError, ValueError, ZeroDivisionError, RecursionError, MemoryError):
        return None


def _value(node: ast.AST) -> Fraction:
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return _bounded(Fraction(str(node.value)))
    if isinstance(node, ast.UnaryOp) and type(node.op) in (ast.USub, ast.UAdd):
        value = _value(node.operand)
        return -value if isinstance(node.op, ast.USub) else value
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        return _bounded(Fraction(_OPERATORS[type(node.op)](_value(node.left), _value(node.right))))
    raise _NotArithmetic


def _power(base: Fraction, exponent: Fraction) -> Fraction:
    if exponent.denominator != 1 or abs(exponent) * _bits(base) > MAX_BITS:  # before it is computed
        raise _NotArithmetic
    return base ** int(exponent)


_OPERATORS: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: _power,
}


def _bits(value: Fraction) -> int:
    return max(value.numerator.bit_length(), value.denominator.bit_length())


def _bounded(value: Fraction) -> Fraction:
    if _bits(value) > MAX_BITS:
        raise _NotArithmetic
    return value


def _shown(value: Fraction) -> str:
    """At most DECIMALS places, no needless zeros. Raises _NotArithmetic for what would be shown as zero but is not."""
    scaled = round(value * 10**DECIMALS)
    if scaled == 0 != value:
        raise _NotArithmetic
    whole, places = divmod(abs(scaled), 10**DECIMALS)
    digits = f"{whole}.{places:0{DECIMALS}d}".rstrip("0").rstrip(".")
    return f"-{digits}" if scaled < 0 else digits
