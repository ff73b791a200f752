"""The table of keys and values is a dict to those who use it, and none of its steps grows with the number of keys."""

from hypothesis import given
from hypothesis import strategies as st

from logd.local.table import Table

KEYS = st.text("ab:", min_size=1, max_size=2)
ENTRIES = st.dictionaries(KEYS, st.binary(max_size=3))


def table_of(entries):
    table = Table()
    table.put_all(entries)
    return table


@given(ENTRIES, ENTRIES, st.lists(KEYS))
def test_it_is_a_dict_to_those_who_use_it(before, added, keys):
    model, table = dict(before), table_of(before)
    assert table == model
    model |= added
    table.put_all(added)
    assert table == model
    for key in keys:
        assert (key in table) == (key in model)
        assert table.get(key) == model.get(key)
        assert table.get(key, b"default") == model.get(key, b"default")
    assert table.get_all(keys) == [model.get(key) for key in keys]
    assert (len(table), set(table), dict(table.items())) == (len(model), set(model), model)
    for key in keys:
        assert table.pop(key, None) == model.pop(key, None)
        table["new"] = model["new"] = b"value"
    assert table == model


def test_keys_are_spread_so_that_no_part_has_more_than_a_few_times_its_share():
    """A dict grows in one step, which takes as long as it has keys."""
    table = table_of({f"user:{number:08}": b"" for number in range(100_000)})
    assert max(map(len, table.parts)) < 3 * len(table) / len(table.parts)
