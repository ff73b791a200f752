"""What the command lines of kill lab and bench share: a wrong value is reported as argparse reports its own errors."""

import argparse
from collections.abc import Callable
from typing import TypeVar

_Parsed = TypeVar("_Parsed")


def checked(parse_value: Callable[[str], _Parsed]) -> Callable[[str], _Parsed]:
    """A type for argparse that reports the message of a ValueError."""

    def parse_or_explain(text: str) -> _Parsed:
        try:
            return parse_value(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return parse_or_explain


def positive_count(text: str) -> int:
    """A number from 1 on. Raises ValueError."""
    if (number := int(text)) < 1:
        raise ValueError(f"{text} is less than 1")
    return number
