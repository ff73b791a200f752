"""The lines of a batch: what they may say, and that whatever is wrong with one of them is said with its number."""

import json

import pytest

from kv.request import Refusal
from kv.resources.batch import OPERATIONS_MAX, parse
from logd.shared.protocol import Check, Transaction

PUT, DELETE = {"op": "put", "key": "a", "value": "1"}, {"op": "delete", "key": "b"}


def lines(*operations):
    return b"".join(json.dumps(each).encode() + b"\n" for each in operations)


def refusal_of(body):
    with pytest.raises(Refusal) as raised:
        parse(body)
    return raised.value.status[:3], raised.value.text


def test_the_lines_of_a_batch_are_one_transaction():
    checks = [{"op": "check", "key": "a", "etag": '"t"'}, {"op": "check", "key": "c", "absent": True}]
    value = {"op": "put", "key": "d", "value": "ü\n\U0001f600"}
    expected = Transaction(
        [Check("a", ["t"], negated=False), Check("c", None, negated=True)],
        {"a": b"1", "d": "ü\n\U0001f600".encode()},
        ["b"],
    )
    assert parse(lines(PUT, checks[0], value, DELETE, checks[1])) == expected
    assert parse(lines(PUT, checks[0], value, DELETE, checks[1])[:-1]) == expected
    assert parse(lines(PUT, checks[0], value, DELETE, checks[1]).replace(b"\n", b"\r\n")) == expected


def test_a_batch_has_so_many_operations_and_no_more():
    checks = [{"op": "check", "key": "a", "absent": True}] * OPERATIONS_MAX
    assert len(parse(lines(*checks)).checks) == OPERATIONS_MAX
    assert refusal_of(lines(*checks, PUT)) == ("413", "batch too large")


BAD_LINES = {
    "nothing": (b"", ""),
    "white space": (b" ", ""),
    "no JSON": (b"put a 1", ""),
    "an array": (b"[]", ""),
    "two objects": (lines(PUT)[:-1] + lines(PUT)[:-1], ""),
    "a comment": (lines(PUT)[:-1] + b" // x", ""),
    "cut short": (lines(PUT)[:-3], ""),
    "a nest without end": (b"[" * 100_000, ""),
    "a byte order mark": (b"\xef\xbb\xbf" + lines(PUT)[:-1], ""),
    "no operation": (b'{"key": "a"}', "op"),
    "an unknown operation": (b'{"op": "get", "key": "a"}', "get"),
    "a control character in an operation": (b'{"op": "a\\nb", "key": "a"}', ""),
    "an operation in capitals": (b'{"op": "PUT", "key": "a", "value": "1"}', "PUT"),
    "an unknown field": (b'{"op": "delete", "key": "a", "value": "1"}', "value"),
    "no key": (b'{"op": "delete"}', "key"),
    "no value": (b'{"op": "put", "key": "a"}', "value"),
    "a number for a value": (b'{"op": "put", "key": "a", "value": 1}', "value"),
    "null for a value": (b'{"op": "put", "key": "a", "value": null}', "value"),
    "an empty value": (b'{"op": "put", "key": "e", "value": ""}', "value cannot be empty"),
    "half a surrogate": (b'{"op": "put", "key": "a", "value": "\\ud800"}', ""),
    "a surrogate and text": (b'{"op": "put", "key": "a", "value": "\\ud800x      "}', ""),
    "no UTF-8": (b'{"op": "put", "key": "a", "value": "\xff"}', ""),
    "an empty key": (b'{"op": "delete", "key": ""}', "key cannot be empty"),
    "a bad key": (b'{"op": "delete", "key": "a b"}', "key contains invalid characters"),
    "a key that is not ASCII": ('{"op": "delete", "key": "ü"}'.encode(), "key contains invalid characters"),
    "a key with a line feed": (b'{"op": "delete", "key": "a\\n"}', "key contains invalid characters"),
    "a bad key in a check": (b'{"op": "check", "key": "/", "absent": true}', "key contains invalid characters"),
    "a check of nothing": (b'{"op": "check", "key": "a"}', "a check needs either etag or absent"),
    "a check of both": (b'{"op":"check","key":"a","etag":"t","absent":true}', "a check needs either etag or absent"),
    "absent, but not": (b'{"op": "check", "key": "a", "absent": false}', "absent"),
    "a weak tag": (b'{"op": "check", "key": "a", "etag": "W/\\"t\\""}', "etag is no strong entity tag"),
    "half a tag": (b'{"op": "check", "key": "a", "etag": "\\"t"}', "etag is no strong entity tag"),
    "a tag with a space": (b'{"op": "check", "key": "a", "etag": "a b"}', "etag is no strong entity tag"),
    "a key that is put twice": (lines(PUT)[:-1], "the key is written twice"),
    "a key that is put and deleted": (b'{"op": "delete", "key": "a"}', "the key is written twice"),
}


@pytest.mark.parametrize(("line", "reason"), BAD_LINES.values(), ids=BAD_LINES)
def test_what_is_wrong_with_a_line_is_said_with_its_number_in_one_line_of_text(line, reason):
    status, text = refusal_of(lines(PUT, DELETE) + line + b"\n" + lines({"op": "put", "key": "z", "value": "1"}))
    assert status == "400"
    assert text.startswith("line 3: ")
    assert reason in text
    assert len(text) < 300
    assert text.isprintable()


@pytest.mark.parametrize("size", [10_000, 1_000_000])
def test_what_is_wrong_is_not_repeated_at_length(size):
    assert len(refusal_of(b'{"op": "%b"}' % (b"x" * size))[1]) < 300
