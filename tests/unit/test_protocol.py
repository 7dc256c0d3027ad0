"""A protocol is data: equal facts are equal, whatever order or kind of container they came in."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helixbench.errors import UserError
from helixbench.protocol import Protocol

LEAF = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
FACTS = st.dictionaries(
    st.text(),
    st.recursive(LEAF, lambda x: st.lists(x) | st.dictionaries(st.text(), x), max_leaves=6),
)


@given(st.text(), FACTS)
def test_a_cell_gives_back_the_protocol(name, facts):
    protocol = Protocol(name, facts)
    again = Protocol.parse(protocol.cell())
    assert again == protocol and hash(again) == hash(protocol) and again.digest == protocol.digest
    assert Protocol(name, dict(reversed(facts.items()))).cell() == protocol.cell()


def test_facts_make_the_difference():
    base = Protocol("localization", {"split": "half", "optim": {"steps": 500}, "sizes": (1, 2)})
    assert base == Protocol(
        "localization", {"sizes": [1, 2], "optim": {"steps": 500}, "split": "half"}
    )
    assert base != base.having(split="third") and base.having(split="half") == base
    assert base.without("split", "absent") == Protocol(
        "localization", {"optim": {"steps": 500}, "sizes": [1, 2]}
    )
    assert base.get("split") == "half" and base.get("absent", 3) == 3
    assert (
        len({base.digest, base.having(split="third").digest, Protocol("other", base.facts).digest})
        == 3
    )


@pytest.mark.parametrize("cell", ["", "half split, 500 steps", "[]", '{"name": "x"}', "3"])
def test_other_text_is_refused(cell):
    with pytest.raises(UserError, match="score again"):
        Protocol.parse(cell)
