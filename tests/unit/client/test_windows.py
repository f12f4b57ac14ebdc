"""What is read in bulk: requests on their way together, answered with pages that end anywhere, give each message once (G7)."""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trilogue.actors.protocol.errors import HistoryTrimmed, ProtocolError
from trilogue.actors.protocol.messages import RUN, SKIP, Run, Skip, pack_records
from trilogue.actors.protocol.vocabulary import Piece
from trilogue.client.reading.windows import Page, Span, Window, Windows, against, page_in

SENDER = f"ann/{'0' * 32}"
Sizes = dict[str, list[int]]
"""How many messages each run of a session has."""


def runs_of(session: str, sizes: list[int]) -> list[Run]:
    runs, seq = [], 1
    for size in sizes:
        runs.append(Run(RUN, session, SENDER, seq, seq, 7, [5] * size, [b"%d" % (seq + k) for k in range(size)]))
        seq += size
    return runs


def answer(store: dict[str, list[Run]], asked: list[Window], runs_max: int, gone: dict[str, int]) -> Page:
    """What a store with these runs says, at most so many; what lies below `gone` was trimmed."""
    found: list[Run] = []
    for (session, after, last, inside), _ in asked:
        for run in store[session]:
            ends = run.first_seq + len(run.bodies) - 1
            if after < run.first_seq <= last or (inside and run.first_seq <= after < ends):
                if len(found) == runs_max:
                    return Page(found, 100 * len(found), None)
                if max(run.first_seq, after + 1) < gone.get(session, 0):
                    return Page(found, 100 * len(found), (session, gone[session]))
                found.append(run)
    return Page(found, 100 * len(found), None)


def read(
    plan: Windows, store: dict[str, list[Run]], ahead: int, page_runs: list[int], gone: dict[str, int]
) -> list[tuple[str, int, bytes]]:
    """Ask for all that is wanted, `ahead` questions at a time; the pages have so many runs at most, in turn."""
    taken: list[tuple[str, int, bytes]] = []
    asked: deque[list[Window]] = deque()
    steps = 0
    while True:
        while len(asked) < ahead and (windows := plan.next()):
            asked.append(windows)
        if not asked:
            return taken
        windows = asked.popleft()
        page = answer(store, windows, page_runs[steps % len(page_runs)], gone)
        steps += 1
        assert steps < 10_000, "it never ends"
        assert against(windows, page) is None
        part, rest = plan.match(windows, page)
        taken += [(r.session, r.first_seq + k, body) for r in part for k, body in enumerate(r.bodies)]
        if rest:
            asked.appendleft(rest)


@given(
    st.lists(st.lists(st.integers(1, 9), max_size=12), min_size=1, max_size=4),
    st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), min_size=4, max_size=4),
    st.integers(1, 2000),
    st.integers(1, 4),
    st.lists(st.integers(1, 5), min_size=1, max_size=5),
    st.dictionaries(st.sampled_from(("s0", "s1")), st.integers(0, 60)),
)
def test_every_message_that_is_wanted_comes_once_and_in_order_wherever_pages_end_G7(
    sizes: list[list[int]], cuts: list[tuple[int, int]], page_bytes: int, ahead: int, page_runs: list[int],
    trimmed: dict[str, int],
) -> None:  # fmt: skip
    store = {f"s{k}": runs_of(f"s{k}", of_session) for k, of_session in enumerate(sizes)}
    gone = {}
    plan, wanted = Windows(page_bytes, sessions_max=3, passes_over_gone=True), []
    for (session, runs), (after, count) in zip(store.items(), cuts, strict=False):
        head = sum(len(run.bodies) for run in runs)
        plan.add(Span(session, after, min(head, after + count)))
        gone[session] = min(trimmed.get(session, 0), head + 1)
        first = max(after + 1, gone[session])
        wanted += [(session, seq, b"%d" % seq) for seq in range(first, min(head, after + count) + 1)]
    assert read(plan, store, ahead, page_runs, gone) == wanted


def test_what_is_gone_is_an_error_unless_the_reader_passes_over_it() -> None:
    runs = runs_of("s", [3, 3, 3])
    strict, lenient = Windows(10_000, sessions_max=10), Windows(10_000, sessions_max=10, passes_over_gone=True)
    for plan in (strict, lenient):
        plan.add(Span("s", 0, 9))
    asked, page = strict.next(), Page(runs[:1], 100, ("s", 8))
    assert lenient.next() == asked
    with pytest.raises(HistoryTrimmed) as trimmed:
        strict.match(asked, page)
    assert (trimmed.value.session, trimmed.value.first_available) == ("s", 8)
    assert lenient.match(asked, page) == (runs[:1], [Window(Piece("s", 7, 9, True), 9)])
    assert against(asked, Page([], 0, ("s", 8))) is None


def test_what_came_behind_a_hole_is_not_believed_and_asked_for_again_G7() -> None:
    plan = Windows(10_000, sessions_max=10)
    plan.add(Span("s", 0, 9))
    asked, again = plan.next(), [Window(Piece("s", 3, 9, True), 9)]
    first, second, third = runs_of("s", [3, 3, 3])
    assert asked == [Window(Piece("s", 0, 9, True), 9)]
    assert plan.match(asked, Page([first, third], 100, None)) == ([first], again)
    assert plan.match(again, Page([second, third], 100, None)) == ([second, third], [])


def test_an_answer_that_lacks_what_it_should_begin_with_is_told_from_an_empty_window() -> None:
    whole, part = [Window(Piece("s", 4, 9, True), 9)], [Window(Piece("s", 4, 9, False), 9)]
    first, second = runs_of("s", [3, 6])
    assert against(whole, Page([second], 1, None)) is None
    assert "no record of session 's' after 4 came" in str(against(whole, Page([first], 1, None)))
    assert "no record" in str(against(whole, Page([], 0, None)))
    assert "no record" in str(against(whole, Page([], 0, ("s", 5))))
    assert "no record" in str(against(whole, Page([second._replace(session="t")], 1, None)))
    assert against(part, Page([], 0, None)) is None


def test_requests_are_as_large_as_messages_turn_out_to_be() -> None:
    plan = Windows(1_000, sessions_max=10)
    plan.add(Span("s", 0, 10_000))
    [(piece, _)] = asked = plan.next()
    assert piece.last == 1_000 // 128
    plan.match(asked, Page(runs_of("s", [piece.last]), 4 * piece.last, None))
    [(next_piece, _)] = plan.next()
    assert (next_piece.after, next_piece.inside) == (piece.last, False)
    assert next_piece.last - next_piece.after > piece.last


def test_what_is_no_run_is_refused() -> None:
    run = runs_of("s", [2])[0]
    packed = pack_records([run])[1:]
    assert page_in([packed, None]) == Page([run], len(packed), None)
    assert page_in([packed, ["s", 5]]) == Page([run], len(packed), ("s", 5))
    skip = pack_records([Skip(SKIP, "s", SENDER, 1, 7)])[1:]
    for answered in (None, packed, [packed], [[run], None], [packed, ["s"]], [b"\xc1", None], [skip, None], [b"\x01", None]):
        with pytest.raises(ProtocolError):
            page_in(answered)
