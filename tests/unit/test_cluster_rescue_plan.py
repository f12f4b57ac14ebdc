"""What a rescue concludes from the stores that are left, rule by rule (G2, G8, G11)."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from trilogue.actors.protocol.frames import encode_frame
from trilogue.actors.protocol.messages import RUN, pack_records
from trilogue.actors.protocol.ranges import Member, PartitionRecord, Range, decode_record, encode_record
from trilogue.actors.protocol.thinning import thinned
from trilogue.actors.protocol.vocabulary import FenceAnswer, Say, TailEntry
from trilogue.cluster.commands.rescue import Rescue, Wanted
from trilogue.cluster.commands.rescue_plan import NOBODY, Holding, Recovery, is_nobody, least_ensemble, recover

A, B, C = (Member(f"store-{k}", f"uuid {k}", 1) for k in (1, 2, 3))
NONE = Member("store-9", f"{NOBODY}x", 0)


def crc(epoch: int, index: int) -> int:
    """Each frame has its own, and the writer of an epoch makes one for each index."""
    return epoch * 1000 + index


def holding(
    member: Member, *tail: tuple[int, int], committed: int = 0, base: int = 1, certain: bool = True, links: tuple[int, ...] = ()
) -> Holding:
    """A store that holds the (epoch, index) of `tail`, from what it knows committed; `links` are older indexes of epoch 1."""
    entries = [TailEntry(index, epoch, crc(epoch, index)) for epoch, index in tail]
    if base > 1 and committed <= base:
        entries.insert(0, TailEntry(base - 1, 0, crc(1, base - 1)))
    base_prev = crc(1, base - 1) if base > 1 else 0
    return Holding(member, FenceAnswer(committed, certain, base, entries), base_prev, {i: crc(1, i) for i in links})


def decide(*holdings: Holding, copies: int = 3, min_copies: int = 1) -> Recovery:
    found = recover(holdings, copies, min_copies, NONE)
    if not found.conflict:
        record = PartitionRecord(1, "w", "", found.ranges)
        assert decode_record(encode_record(record)) == record
    return found


def test_g2_one_store_that_is_left_is_what_the_partition_goes_on_from() -> None:
    found = decide(holding(A, (1, 5), (1, 6), committed=5))
    assert found == Recovery("store-1", 6, (Range(1, (A,)),), (), (), "")


def test_g2_the_longest_log_of_the_highest_epoch_wins_and_who_has_less_is_filled_later() -> None:
    found = decide(holding(A, (1, 5), (1, 6)), holding(B, (1, 5), (1, 6), (2, 7)), holding(C, (1, 5), (1, 6), (2, 7)))
    assert found.ranges == (Range(1, (B, C)),)
    assert (found.last, found.doubts) == (7, ())


def test_g8_frames_that_the_chosen_log_has_not_are_doubtful() -> None:
    found = decide(holding(A, (1, 5), (4, 6)), holding(B, (1, 5), (5, 6), (5, 7)))
    assert (found.source, found.last) == ("store-2", 7)
    (doubt,) = found.doubts
    assert "store-1 has frame 6" in doubt


def test_g2_below_what_is_known_to_be_committed_a_different_frame_was_never_acked() -> None:
    found = decide(holding(A, (1, 5), (4, 6), committed=5), holding(B, (5, 6), (5, 7), committed=6))
    assert (found.source, found.doubts) == ("store-2", ())


def test_g2_a_higher_epoch_without_a_frame_that_is_known_to_be_committed_does_not_win() -> None:
    found = decide(holding(A, (4, 6), (4, 7), committed=6), holding(B, (1, 5), (5, 6)))
    assert found.source == "store-1"
    assert found.ranges == (Range(1, (A,)),)


@pytest.mark.parametrize("tail", [[(5, 6)], []])
def test_g8_two_stories_about_a_committed_frame_or_none_decide_nothing(tail: list[tuple[int, int]]) -> None:
    one = holding(A, *tail, committed=6)
    other = holding(B, (4, 6), committed=6) if tail else holding(B, (4, 5), committed=5)
    assert "frame 6 is known to be committed" in decide(one, other).conflict


def test_a_store_that_cannot_tell_is_chosen_only_when_there_is_no_other() -> None:
    unsure = holding(A, (1, 5), (1, 6), certain=False)
    found = decide(unsure, holding(B, (1, 5)))
    assert found.source == "store-2"
    assert "store-1 has frame 6" in found.doubts[0]
    assert decide(unsure).source == "store-1"


def test_g2_older_frames_are_taken_from_who_has_the_chain_that_leads_to_the_newer_ones() -> None:
    late = holding(A, (2, 11), base=11, committed=4)
    whole = holding(B, (1, 10), committed=10, links=(10,))
    found = decide(late, whole)
    assert found.ranges == (Range(1, (B,)), Range(11, (A,)))
    assert found.holes == ()


def test_g2_members_with_bases_of_their_own_share_the_last_range_from_the_highest_on() -> None:
    found = decide(holding(A, (2, 12), committed=12), holding(B, (2, 12), base=8, committed=12), min_copies=2)
    assert found.ranges == (Range(1, (A,)), Range(8, (A, B)))


def test_g8_frames_that_nobody_has_are_a_range_that_names_nobody() -> None:
    late = holding(A, (2, 11), base=11)
    other = holding(B, (3, 9))  # no frame 10: it does not lead there
    found = decide(late, other)
    assert found.holes == ((1, 10),)
    assert found.ranges == (Range(1, (NONE,)), Range(11, (A,)))


def test_g8_a_chain_that_leads_elsewhere_is_not_taken_for_the_older_frames() -> None:
    late = holding(A, (2, 11), base=11)
    other = Holding(B, FenceAnswer(4, True, 1, [TailEntry(4, 1, crc(1, 4)), TailEntry(10, 3, 999)]), 0, {10: 999})
    assert decide(late, other).holes == ((1, 10),)


def test_g1_a_range_that_is_too_small_waits_for_somebody() -> None:
    found = decide(holding(A, (1, 5)), min_copies=2)
    assert found.ranges == (Range(1, (A, NONE)),)
    assert is_nobody(found.ranges[-1].members[1])
    assert decide(holding(A, (1, 5)), holding(B, (1, 5)), min_copies=2).ranges == (Range(1, (A, B)),)


def test_an_empty_partition_goes_on_empty() -> None:
    assert decide(holding(A), holding(B)).ranges == (Range(1, (A, B)),)
    assert len(decide(holding(A), holding(B), holding(C), copies=2).ranges[-1].members) == 2


def test_g8_the_least_ensemble_counts_no_place_that_nobody_has_taken() -> None:
    assert least_ensemble(3, []) == 3
    assert least_ensemble(3, [Range(1, (A, B))]) == 2
    assert least_ensemble(3, [Range(1, (A, NONE)), Range(1, (A, B, C))]) == 1


class ThinPeer:
    """A connection to a store that has thinned the frame that it is asked for."""

    def __init__(self, frame: bytes) -> None:
        self._frame = frame

    async def request(self, say: Say, *items: Any) -> list[bytes]:
        assert say == Say.FRAMES, items
        return [self._frame]


def test_a_thin_frame_tells_a_rescue_what_the_whole_one_would() -> None:
    payload = pack_records([(RUN, "s", "ann/" + "0" * 32, 1, 1, 5, [1], [bytes(500)])])
    whole, crc = encode_frame(log_id=7, partition=0, epoch=3, index=9, prev_crc=4, count=1, committed_upto=8, payload=payload)
    peer: Any = ThinPeer(thinned(whole, lambda _: True, 0))
    header = asyncio.run(Rescue(Wanted(("store-1",), 1, 1, 1), {"store-1": peer}, ())._header("store-1", 0, 9))
    assert header is not None
    assert (header.index, header.prev_crc, header.header_crc) == (9, 4, crc)
