"""What the command lines of the tools beside the tests share: errors of a value are shown as argparse shows its own."""

import argparse
from collections.abc import Callable
from typing import TypeVar

_Parsed = TypeVar("_Parsed")


def checked(parse_value: Callable[[str], _Parsed]) -> Callable[[str], _Parsed]:
    """Have argparse show what a ValueError says."""

    def parse_or_explain(text: str) -> _Parsed:
        try:
            return parse_value(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return parse_or_explain
