"""Names from outside, such as paths, as they can be printed: on one line, and in UTF-8.

Knows nothing of where the text goes. For log lines the formatters do it (logd/shared/logging_setup.py).
"""

from pathlib import Path


def printable(name: str | Path) -> str:
    r"""The name with an escape (\n, \xfc) in place of each character that is not for printing.

    Bytes that are not UTF-8 are in a name of Python as single surrogates (PEP 383).
    """
    text = str(name)
    return text if text.isprintable() else "".join(each if each.isprintable() else _escape(each) for each in text)


def _escape(character: str) -> str:
    if "\udc80" <= character <= "\udcff":
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode("ascii")
