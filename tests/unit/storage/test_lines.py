"""Requests made in one piece stand in a body as they stand there one by one."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from claude_batch_dagster.core.request import LineFrame, Request
from claude_batch_dagster.storage.keys import pack_keys
from claude_batch_dagster.storage.lines import Lines
from tests.lines import encode_line

ROWS = st.lists(st.tuples(st.binary(min_size=16, max_size=16), st.binary(max_size=40), st.booleans()), max_size=12)
TAGS = st.text("0123456789abcdef", min_size=8, max_size=8)


@given(rows=ROWS, name=st.text(min_size=1, max_size=40), head=st.binary(max_size=9), tag=TAGS)
def test_chosen_requests_are_filled_in_as_each_is_encoded_alone(
    rows: list[tuple[bytes, bytes, bool]], name: str, head: bytes, tag: str
) -> None:
    lines = Lines.of(LineFrame(name, head), [rest for _, rest, _ in rows])
    for row, (_, rest, _) in enumerate(rows):
        assert lines.params(row) == head + rest
    wanted = [Request(key, head + rest) for key, rest, chosen in rows if chosen]
    if not wanted:
        return
    keys = pack_keys([request.key for request in wanted])
    encoded = [encode_line(name, request, tag) for request in wanted]
    taken = lines.take(np.array([chosen for _, _, chosen in rows]))
    assert taken.lines_bytes.tolist() == [len(line) for line in encoded]
    pieces = taken.fill(keys, tag)
    assert b"".join(pieces) == b",\n".join(encoded)
    chosen = [chosen for _, _, chosen in rows]
    stretches = sum(one and not before for before, one in zip([False, *chosen], chosen, strict=False))
    assert len(pieces) in (1, stretches)
    assert all(2 * len(b"".join(pieces)) >= len(lines.content) for piece in pieces if isinstance(piece, memoryview))
    # The next shard's requests begin in the middle of the same piece.
    half = slice(len(wanted) // 2, None)
    assert b"".join(taken.take(half).fill(keys[half], tag[::-1])) == b",\n".join(
        encode_line(name, request, tag[::-1]) for request in wanted[half]
    )
