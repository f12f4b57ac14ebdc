"""What a store may say yes to, rule by rule (design §5, §6)."""

from __future__ import annotations

from typing import Any

import pytest

from trilogue.actors.protocol.errors import ProtocolError
from trilogue.actors.protocol.frames import decode_frame, encode_frame
from trilogue.actors.protocol.holdings import Fence
from trilogue.actors.protocol.invariants import InvariantBroken
from trilogue.actors.protocol.limits import DEFAULT_LIMITS
from trilogue.actors.protocol.messages import pack_records
from trilogue.actors.protocol.store import (
    AppendAsked,
    FenceAsked,
    FillAsked,
    JoinAsked,
    StoreState,
    SyncFirst,
    Tell,
    WriteFence,
    WriteFill,
    WriteFrame,
    WriteJoin,
)
from trilogue.actors.protocol.vocabulary import Code, FenceAnswer, Say, StoreView, TailEntry

LOG_ID, PARTITION = 7, 3


def frame(
    index: int, epoch: int, before: bytes | None = None, committed_upto: int = 0, body: bytes = b"", **other: Any
) -> bytes:
    """A frame that chains to `before`."""
    prev_crc = int.from_bytes(before[60:64], "little") if before is not None else 0
    fields = {"log_id": LOG_ID, "partition": PARTITION, "prev_crc": prev_crc, "count": 0, **other}
    payload = pack_records([]) + body
    return encode_frame(epoch=epoch, index=index, committed_upto=committed_upto, payload=payload, **fields)[0]


def crc(data: bytes) -> int:
    return int.from_bytes(data[60:64], "little")


F1 = frame(1, 1)
F2 = frame(2, 1, F1, 1)
F3 = frame(3, 1, F2, 1)


class Book:
    """A store, and what it decided."""

    def __init__(self) -> None:
        self.state = StoreState(LOG_ID, DEFAULT_LIMITS)

    def fence(self, epoch: int, writer: str = "w", partition: int = PARTITION) -> list[Any]:
        return self.state.handle(FenceAsked("source", 9, partition, epoch, writer, "host:1"))

    def append(self, *frames: bytes, epoch: int = 1, writer: str = "w", partition: int = PARTITION) -> list[Any]:
        """What is decided, but for the syncs between: frames here speak of each other freely."""
        effects = self.state.handle(AppendAsked("source", partition, epoch, writer, list(frames)))
        return [effect for effect in effects if not isinstance(effect, SyncFirst)]

    def answer(self, epoch: int, writer: str = "w") -> FenceAnswer:
        tell = self.fence(epoch, writer)[-1]
        assert tell.message[:3] == [Say.REPLY, 9, 0], tell
        return FenceAnswer(*tell.message[3])

    def join(
        self, number: int, first: int, prev_crc: int, *kept: tuple[int, int], epoch: int = 1, writer: str = "w"
    ) -> list[Any]:
        asked = JoinAsked("source", 9, PARTITION, epoch, writer, "host:1", number, first, prev_crc, list(kept))
        effects = self.state.handle(asked)
        self.state.synced()
        return effects

    def fill(self, *frames: bytes, epoch: int = 1, writer: str = "w") -> list[Any]:
        return self.state.handle(FillAsked("source", 9, PARTITION, epoch, writer, list(frames)))


@pytest.fixture
def store() -> Book:
    book = Book()
    book.fence(1)
    return book


def refusal(effects: list[Any]) -> Code:
    assert [type(effect) for effect in effects] == [Tell]
    message = effects[0].message
    return Code(message[2] if message[0] == Say.REPLY else message[3])


# ---------------------------------------------------------------------- fences


def test_fence_is_written_and_its_answer_waits_for_the_disk() -> None:
    write, tell = Book().fence(1)
    assert write == WriteFence(PARTITION, Fence(1, "w", "host:1"))
    assert tell == Tell("source", [Say.REPLY, 9, 0, [0, True, 1, []]], after_sync=True)


def test_fence_with_a_lower_or_equal_epoch_of_another_writer_is_refused_G9() -> None:
    store = Book()
    store.fence(5, "first")
    assert refusal(store.fence(4, "second")) == Code.DEPOSED
    assert refusal(store.fence(5, "second")) == Code.DEPOSED
    assert isinstance(store.fence(6, "second")[0], WriteFence)
    assert refusal(store.fence(5, "first")) == Code.DEPOSED


def test_identical_fence_again_is_accepted_and_written_again() -> None:
    store = Book()
    store.fence(5, "first")
    write, tell = store.fence(5, "first")
    assert write == WriteFence(PARTITION, Fence(5, "first", "host:1"))
    assert tell.after_sync


def test_refused_fence_changes_nothing(store: Book) -> None:
    store.append(F1)
    assert refusal(store.fence(1, "other")) == Code.DEPOSED
    assert [type(effect) for effect in store.append(F2)] == [WriteFrame, Tell]


def test_epoch_of_a_frame_counts_like_that_of_a_fence() -> None:
    store = Book()
    store.fence(5)
    store.append(frame(1, 5), epoch=5)
    again = StoreState(LOG_ID, DEFAULT_LIMITS)
    again.replay_frame(decode_frame(frame(1, 5), 1000))
    assert again.view(PARTITION) == StoreView(5, 1)
    effects = again.handle(FenceAsked("source", 9, PARTITION, 5, "other", ""))
    assert refusal(list(effects)) == Code.DEPOSED


def test_answer_of_a_fence_covers_what_was_handed_over_and_starts_at_the_last_committed_frame(store: Book) -> None:
    store.append(F1, F2, F3)
    assert store.answer(2) == FenceAnswer(
        1, True, 1, [TailEntry(1, 1, crc(F1)), TailEntry(2, 1, crc(F2)), TailEntry(3, 1, crc(F3))]
    )
    store.append(frame(4, 2, F3, 3), epoch=2)
    assert [entry.frame_index for entry in store.answer(3).tail] == [3, 4]


def test_partitions_do_not_share_a_fence(store: Book) -> None:
    assert isinstance(store.fence(1, "other", partition=4)[0], WriteFence)
    assert dict(store.state.fences()) == {PARTITION: Fence(1, "w", "host:1"), 4: Fence(1, "other", "host:1")}


# ---------------------------------------------------------------------- appends


def test_append_is_written_and_its_yes_waits_for_the_disk_G1(store: Book) -> None:
    assert store.append(F1, F2) == [
        WriteFrame(PARTITION, 1, F1),
        WriteFrame(PARTITION, 2, F2),
        Tell("source", [Say.STORED, PARTITION, 1, 2, crc(F2)], after_sync=True),
    ]


@pytest.mark.parametrize(("epoch", "writer"), [(1, "other"), (2, "w"), (0, ""), (0, "w")])
def test_only_the_fenced_writer_is_obeyed_G9(store: Book, epoch: int, writer: str) -> None:
    assert refusal(store.append(frame(1, 0), epoch=epoch, writer=writer)) == Code.DEPOSED
    assert store.state.view(PARTITION).last_index == 0


def test_deposed_writer_is_refused_at_once_G9(store: Book) -> None:
    store.append(F1)
    store.fence(2, "next")
    tell = store.append(F2)[0]
    assert (refusal([tell]), tell.after_sync) == (Code.DEPOSED, False)
    assert "epoch 2 does" in tell.message[4]


def test_store_that_was_never_fenced_obeys_nobody() -> None:
    assert refusal(Book().append(frame(1, 0), epoch=0, writer="")) == Code.DEPOSED


def test_same_frame_again_is_a_yes_and_is_not_written_again(store: Book) -> None:
    store.append(F1, F2)
    assert store.append(F1) == [Tell("source", [Say.STORED, PARTITION, 1, 1, crc(F1)], after_sync=True)]
    assert store.append(F2, F3)[0] == WriteFrame(PARTITION, 3, F3)


@pytest.mark.parametrize("frames", [[F2], [F3], [frame(1, 1), F3], [frame(2, 1, F3)]])
def test_frame_that_does_not_chain_is_refused_and_not_taken(store: Book, frames: list[bytes]) -> None:
    tell = store.append(*frames)[-1]
    assert tell.message[:4] == [Say.NOT_STORED, PARTITION, 1, Code.NOT_CHAINED]
    assert not tell.after_sync
    assert store.state.view(PARTITION).last_index <= 1


def test_frame_at_a_held_index_that_does_not_chain_is_refused(store: Book) -> None:
    store.append(F1, F2)
    store.fence(2)
    assert refusal(store.append(frame(2, 2, F2), epoch=2)) == Code.NOT_CHAINED


def test_frame_of_a_later_epoch_supersedes_its_index_and_all_after_it(store: Book) -> None:
    store.append(F1, F2, F3)
    store.fence(2)
    other = frame(2, 2, F1)
    assert store.append(other, epoch=2)[0] == WriteFrame(PARTITION, 2, other)
    assert store.state.view(PARTITION) == StoreView(2, 2)
    assert store.answer(3).tail == [TailEntry(1, 1, crc(F1)), TailEntry(2, 2, crc(other))]


def test_two_frames_of_one_epoch_at_one_index_break_an_invariant(store: Book) -> None:
    store.append(F1)
    with pytest.raises(InvariantBroken, match="frame 1 of epoch 1 supersedes another one"):
        store.append(frame(1, 1, body=b"other"))


def test_committed_frame_is_never_replaced_G2(store: Book) -> None:
    store.append(F1, F2)
    store.fence(2)
    with pytest.raises(InvariantBroken, match="replace a committed one"):
        store.append(frame(1, 2), epoch=2)


def test_epoch_of_frames_never_goes_back(store: Book) -> None:
    store.fence(5)
    first = frame(1, 5)
    store.append(first, epoch=5)
    with pytest.raises(InvariantBroken, match="epoch goes back"):
        store.append(frame(2, 4, first), epoch=5)


def test_frames_of_earlier_epochs_are_taken_from_a_later_writer(store: Book) -> None:
    store.fence(9, "later")
    effects = store.append(F1, F2, epoch=9, writer="later")
    assert [type(effect) for effect in effects] == [WriteFrame, WriteFrame, Tell]
    assert effects[-1].message == [Say.STORED, PARTITION, 9, 2, crc(F2)]


# ---------------------------------------------------------------------- malformed frames


@pytest.mark.parametrize(
    "bad",
    [
        b"",
        F2[:-1],
        F2 + bytes(8),
        F2[:70] + b"\xff" + F2[71:],
        frame(2, 1, F1, log_id=8),
        frame(2, 1, F1, partition=4),
        frame(2, 1, F1, flags=1),
        frame(2, 2, F1),
        frame(2, 1, F1, committed_upto=2),
        frame(0, 1),
    ],
    ids=["empty", "cut", "longer", "payload", "log", "partition", "flags", "later epoch", "vouches for itself", "index 0"],
)
def test_malformed_frame_raises_and_changes_nothing(store: Book, bad: bytes) -> None:
    store.append(F1)
    before = store.answer(1)
    with pytest.raises(ProtocolError):
        store.append(F2, bad)
    assert store.answer(1) == before
    assert store.append(F2)[0] == WriteFrame(PARTITION, 2, F2)


# ---------------------------------------------------------------------- cannot tell


def replayed(*entries: bytes | Fence | None) -> Book:
    """A store that was rebuilt from its journal; None is the mark of a damaged tail."""
    book = Book()
    for entry in entries:
        if entry is None:
            book.state.replay_incarnation()
        elif isinstance(entry, Fence):
            book.state.replay_fence(PARTITION, entry)
        else:
            book.state.replay_frame(decode_frame(entry, 10_000))
    return book


def test_rebuilt_store_holds_and_refuses_what_it_did_before() -> None:
    store = replayed(Fence(1, "w", "a"), F1, F2, Fence(4, "x", "b"))
    assert refusal(store.append(F3)) == Code.DEPOSED
    assert refusal(store.fence(4, "w")) == Code.DEPOSED
    assert store.answer(4, "x") == FenceAnswer(1, True, 1, [TailEntry(1, 1, crc(F1)), TailEntry(2, 1, crc(F2))])


def test_after_a_damaged_tail_the_store_cannot_tell_until_it_is_joined_anew() -> None:
    store = replayed(Fence(2, "w", ""), F1, F2, None)
    assert not store.answer(3).certain
    store.append(F3, frame(4, 3, F3), epoch=3)
    assert not store.answer(3).certain, "frames prove nothing of what was lost"
    effects = store.join(1, 5, crc(frame(4, 3, F3)), epoch=3)
    assert effects[1].message[3][1] is True
    assert store.answer(4).certain


def test_partition_that_was_lost_as_a_whole_cannot_be_told_of_either() -> None:
    store = replayed(None)
    assert not store.answer(1).certain
    store.join(1, 1, 0)
    assert store.answer(1).certain


def test_superseding_is_replayed_like_it_was_decided() -> None:
    other = frame(2, 2, F1)
    store = replayed(F1, F2, F3, Fence(2, "v", ""), other)
    assert store.state.view(PARTITION) == StoreView(2, 2)


def test_journal_whose_fences_go_back_is_a_broken_invariant() -> None:
    with pytest.raises(InvariantBroken, match="goes back"):
        replayed(Fence(2, "w", ""), Fence(1, "v", ""))


# ---------------------------------------------------------------------- joins and fills


def test_join_is_written_with_what_it_kept_and_followed_by_a_sync_G9() -> None:
    store = Book()
    write, tell, sync = store.join(1, 50, 7, (3, 4), epoch=2)
    fence = Fence(2, "w", "host:1")
    assert write == WriteJoin(PARTITION, fence, 1, 50, 7, [(3, 4)], kept=[], base=50)
    assert tell == Tell("source", [Say.REPLY, 9, 0, [0, True, 50, [TailEntry(49, 0, 7)]]], after_sync=True)
    assert sync == SyncFirst()
    assert refusal(store.fence(2, "another")) == Code.DEPOSED
    assert refusal(store.append(frame(1, 1), epoch=1)) == Code.DEPOSED


def test_join_of_a_deposed_writer_is_refused_and_changes_nothing_G9(store: Book) -> None:
    store.append(F1, F2)
    store.fence(5, "later")
    assert refusal(store.join(1, 50, 7, epoch=4)) == Code.DEPOSED
    assert refusal(store.join(1, 50, 7, epoch=5, writer="another")) == Code.DEPOSED
    assert store.answer(5, "later").base == 1


def test_join_again_is_answered_again_and_a_late_one_is_refused(store: Book) -> None:
    store.append(F1, F2)
    store.join(2, 3, crc(F2))
    store.append(F3)
    (tell,) = [effect for effect in store.join(2, 3, 99) if isinstance(effect, Tell)]
    assert (tell.message[2], tell.after_sync) == (0, True)
    assert refusal(store.join(1, 50, 7)) == Code.NOT_CHAINED
    assert store.answer(1).tail[-1].frame_index == 3, "nothing was cut"


def test_g2_joined_store_takes_frames_from_the_base_and_is_filled_below() -> None:
    store = Book()
    store.join(1, 3, crc(F2), epoch=2)
    assert refusal(store.append(F1, epoch=2)) == Code.NOT_CHAINED
    assert store.append(F3, epoch=2)[0] == WriteFrame(PARTITION, 3, F3)
    nothing = [Tell("source", [Say.REPLY, 9, 0, 3], after_sync=True)]
    assert store.fill(F3, F1, epoch=2) == nothing, "what does not lie right below the base is not taken"
    assert store.fill(frame(2, 1, F1, 0, b"superseded"), epoch=2) == nothing, "nor what does not chain to it"
    assert store.fill(F1, F2, epoch=2) == [
        WriteFill(PARTITION, 2, F2, base=2),
        WriteFill(PARTITION, 1, F1, base=1),
        Tell("source", [Say.REPLY, 9, 0, 1], after_sync=True),
    ]
    assert store.answer(3).base == 1


def test_only_the_fenced_writer_fills_in_G9() -> None:
    store = Book()
    store.join(1, 3, crc(F2), epoch=2)
    assert refusal(store.fill(F1, epoch=1)) == Code.DEPOSED
    assert refusal(store.fill(F1, epoch=2, writer="another")) == Code.DEPOSED


@pytest.mark.parametrize(
    "bad", [F2[:-1], frame(2, 1, F1, partition=4), frame(2, 3, F1)], ids=["cut", "partition", "later epoch"]
)
def test_malformed_filled_frame_raises_and_changes_nothing(bad: bytes) -> None:
    store = Book()
    store.join(1, 3, crc(F2), epoch=2)
    with pytest.raises(ProtocolError):
        store.fill(F2, bad, epoch=2)
    assert store.fill(F2, epoch=2)[0] == WriteFill(PARTITION, 2, F2, base=2)


def test_g2_frame_that_speaks_of_one_not_yet_synced_waits_for_a_sync() -> None:
    store = Book()
    store.join(1, 1, 0)
    f3 = frame(3, 1, F2, 2)
    asked = AppendAsked("source", PARTITION, 1, "w", [F1, F2, f3])
    kinds = [type(effect).__name__ for effect in store.state.handle(asked)]
    assert kinds == ["WriteFrame", "SyncFirst", "WriteFrame", "SyncFirst", "WriteFrame", "Tell"]
    store.state.synced()
    kinds = [type(effect).__name__ for effect in store.state.handle(asked._replace(frames=[frame(4, 1, f3, 3)]))]
    assert kinds == ["WriteFrame", "Tell"], "a member, which had all that is committed, never waits"


def test_frames_in_flight_together_share_a_sync() -> None:
    store = Book()
    store.fence(1)
    frames: list[bytes] = []
    for index in range(1, 9):
        frames.append(frame(index, 1, frames[-1] if frames else None))
    effects = store.state.handle(AppendAsked("source", PARTITION, 1, "w", frames))
    assert [type(effect).__name__ for effect in effects] == ["WriteFrame"] * 8 + ["Tell"]
