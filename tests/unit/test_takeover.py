"""How a writer takes a partition, rule by rule (design §6, the interim rule): G2, G9, G11."""

from __future__ import annotations

from typing import Any

import pytest

from trilogue.actors.protocol.errors import ProtocolError
from trilogue.actors.protocol.frames import decode_frame, encode_frame
from trilogue.actors.protocol.limits import DEFAULT_LIMITS
from trilogue.actors.protocol.log import Ended, MemberLost, NotStored, SendFrames, Stored
from trilogue.actors.protocol.messages import pack_records
from trilogue.actors.protocol.takeover import (
    AskFence,
    Fenced,
    FenceRefused,
    Fetch,
    Fetched,
    Inspect,
    Inspected,
    MemberUp,
    TakenOver,
    Takeover,
)
from trilogue.actors.protocol.vocabulary import Code, FenceAnswer, StoreView, TailEntry

STORES = ("store-1", "store-2", "store-3")
A, B, C = STORES
LOG_ID, PARTITION = 7, 3


def chain(*epochs: int, before: list[bytes] | None = None) -> list[bytes]:
    """Frames of these epochs, behind `before`; each has another body, so that chains of the same epochs differ."""
    frames = list(before or [])
    for epoch in epochs:
        prev_crc = int.from_bytes(frames[-1][60:64], "little") if frames else 0
        frame, _ = encode_frame(
            log_id=LOG_ID, partition=PARTITION, epoch=epoch, index=len(frames) + 1, prev_crc=prev_crc, count=0,
            committed_upto=0, payload=pack_records([]) + bytes([epoch]),
        )  # fmt: skip
        frames.append(frame)
    return frames


def answer(frames: list[bytes], committed_upto: int = 0, certain: bool = True) -> FenceAnswer:
    headers = [decode_frame(frame, 10_000) for frame in frames]
    tail = [TailEntry(h.index, h.epoch, h.header_crc) for h in headers if h.index >= max(1, committed_upto)]
    return FenceAnswer(committed_upto, certain, tail)


def identity(store: str, incarnation: int = 1) -> tuple[str, int]:
    return (f"uuid of {store}", incarnation)


class Attempt:
    """A takeover, and the three stores' frames as they come to be."""

    def __init__(self, **logs: list[bytes]) -> None:
        self.machine = Takeover(log_id=LOG_ID, partition=PARTITION, stores=STORES, limits=DEFAULT_LIMITS)
        self.logs = {A: list(logs["a"]), B: list(logs["b"]), C: list(logs["c"])} if logs else {name: [] for name in STORES}

    def up(self, *stores: str) -> list[Any]:
        return [effect for store in stores for effect in self.machine.handle(MemberUp(store, identity(store)))]

    def inspected(self, epochs: tuple[int, int, int] = (1, 1, 1)) -> list[Any]:
        effects: list[Any] = []
        for store, epoch in zip(STORES, epochs, strict=True):
            effects += self.machine.handle(Inspected(store, StoreView(epoch, 0)))
        return effects

    def fenced(self, committed: dict[str, int] | None = None, uncertain: tuple[str, ...] = ()) -> list[Any]:
        """All three answer; what follows is played until the machine has nothing more to ask."""
        self.up(*STORES)
        self.inspected()
        effects: list[Any] = []
        for store in STORES:
            known = answer(self.logs[store], (committed or {}).get(store, 0), store not in uncertain)
            effects += self.machine.handle(Fenced(store, known))
        return effects

    def play(self, effects: list[Any], page: int = 2) -> Any:
        """Carry out fetches and sends until the last effect; return it."""
        while True:
            (effect, *more) = effects
            effects = more
            match effect:
                case Fetch(store, first, last):
                    assert last == len(self.logs[store])
                    effects += self.machine.handle(Fetched(self.logs[store][first - 1 : first - 1 + page]))
                case SendFrames(stores, frames):
                    for store in stores:
                        for frame in frames:
                            effects += self._store(store, frame)
                case _:
                    assert not effects
                    return effect

    def _store(self, store: str, frame: bytes) -> list[Any]:
        """What a store does with a frame that chains; anything else fails the test."""
        header = decode_frame(frame, 10_000)
        log = self.logs[store]
        assert header.prev_crc == (decode_frame(log[header.index - 2], 10_000).header_crc if header.index > 1 else 0)
        if log[header.index - 1 : header.index] != [frame]:
            del log[header.index - 1 :]
            log.append(frame)
        return self.machine.handle(Stored(store, self.machine.epoch, header.index, header.header_crc))


# ---------------------------------------------------------------------- asking and fencing


def test_it_waits_until_all_three_stores_were_asked() -> None:
    attempt = Attempt()
    assert attempt.up(A, B) == [Inspect(A), Inspect(B)]
    assert attempt.machine.handle(Inspected(A, StoreView(4, 0))) == []
    assert attempt.machine.handle(Inspected(B, StoreView(2, 0))) == []
    assert attempt.machine.waiting_for == [C]
    assert attempt.machine.phase == "asking the stores"


def test_epoch_is_above_the_highest_that_any_store_has_seen_G9() -> None:
    attempt = Attempt()
    attempt.up(*STORES)
    assert attempt.inspected((4, 9, 2)) == [AskFence(store, 10) for store in STORES]


def test_nothing_is_decided_before_all_three_are_fenced() -> None:
    attempt = Attempt()
    attempt.up(*STORES)
    attempt.inspected()
    assert attempt.machine.handle(Fenced(A, answer([]))) == []
    assert attempt.machine.handle(Fenced(B, answer([]))) == []
    assert attempt.machine.waiting_for == [C]
    (taken,) = attempt.machine.handle(Fenced(C, answer([])))
    assert isinstance(taken, TakenOver)


def test_store_that_was_lost_is_asked_again_when_it_is_back() -> None:
    attempt = Attempt()
    attempt.up(A, B, C)
    assert attempt.machine.handle(MemberLost(B)) == []
    assert attempt.up(B) == [Inspect(B)]
    attempt.machine.handle(MemberLost(B))
    assert attempt.inspected() == [AskFence(A, 2), AskFence(C, 2)]
    assert attempt.up(B) == [AskFence(B, 2)]


def test_refused_fence_ends_the_attempt_G9() -> None:
    attempt = Attempt()
    attempt.up(*STORES)
    attempt.inspected()
    assert attempt.machine.handle(FenceRefused(B, "epoch 7 was seen here")) == [
        Ended("store-2 refuses the fence: epoch 7 was seen here")
    ]


def test_store_that_changes_its_identity_ends_the_attempt() -> None:
    attempt = Attempt()
    attempt.up(*STORES)
    (ended,) = attempt.machine.handle(MemberUp(B, identity(B, 2)))
    assert ended == Ended("store-2 changed its identity during the takeover")


def test_store_that_is_lost_right_after_its_fence_ends_the_attempt() -> None:
    attempt = Attempt()
    attempt.up(*STORES)
    attempt.inspected()
    attempt.machine.handle(Fenced(A, answer([])))
    attempt.machine.handle(MemberLost(A))
    attempt.machine.handle(Fenced(B, answer([])))
    (ended,) = attempt.machine.handle(Fenced(C, answer([])))
    assert ended == Ended("store-1 was lost right after the fence")


# ---------------------------------------------------------------------- the tail

BASE = chain(1, 1)
LONGER = chain(1, before=BASE)
LATER = chain(3, before=BASE)
OTHER = chain(2, 2, 2, before=BASE)


@pytest.mark.parametrize(
    ("logs", "tail"),
    [
        ({"a": BASE, "b": BASE, "c": BASE}, BASE),
        ({"a": BASE, "b": LONGER, "c": BASE}, LONGER),
        ({"a": LONGER, "b": BASE, "c": LATER}, LATER),
        ({"a": OTHER, "b": LATER, "c": BASE}, LATER),
        ({"a": [], "b": OTHER, "c": []}, OTHER),
        ({"a": [], "b": [], "c": []}, []),
        ({"a": BASE[:1], "b": chain(1, 1, 4, 4, 4, 5, before=BASE), "c": OTHER}, chain(1, 1, 4, 4, 4, 5, before=BASE)),
    ],
    ids=["equal", "longer", "later epoch wins", "later epoch beats longer", "two are empty", "all are empty", "long"],
)
@pytest.mark.parametrize("page", [1, 2, 100])
def test_all_stores_get_the_best_tail_and_the_log_goes_on_from_its_end_G2(
    logs: dict[str, list[bytes]], tail: list[bytes], page: int
) -> None:
    attempt = Attempt(**logs)
    taken = attempt.play(attempt.fenced(), page)
    assert isinstance(taken, TakenOver)
    assert [attempt.logs[store][: len(tail)] for store in STORES] == [tail] * 3
    assert (taken.log.last_index, taken.log.committed, taken.log.epoch) == (len(tail), len(tail), 2)
    assert taken.log.missing == list(STORES), "each is fenced once more before it gets frames"


@pytest.mark.parametrize("committed", [{A: 2}, {A: 1, B: 2, C: 2}, {B: 1}])
def test_what_stores_know_to_be_committed_is_not_sent_again(committed: dict[str, int]) -> None:
    attempt = Attempt(a=LONGER, b=BASE, c=LONGER)
    effects = attempt.fenced(committed)
    assert effects == [Fetch(A, 3, 3)]
    assert isinstance(attempt.play(effects), TakenOver)
    assert attempt.logs[B] == LONGER


def test_only_stores_that_lack_frames_get_them() -> None:
    attempt = Attempt(a=LONGER, b=LONGER, c=BASE)
    (fetch,) = attempt.fenced()
    assert attempt.machine.handle(Fetched(LONGER[fetch.first - 1 :])) == [SendFrames((C,), LONGER[2:])]


def test_store_that_cannot_tell_counts_with_what_it_has_since_all_were_asked_G2() -> None:
    """An empty store that is sure, because it is new, outweighs nobody: two others lost nothing but a torn end."""
    attempt = Attempt(a=[], b=LONGER, c=BASE)
    taken = attempt.play(attempt.fenced(uncertain=(B, C)))
    assert taken.log.last_index == 3
    assert attempt.logs[A] == LONGER


def test_store_that_was_cut_is_filled_again() -> None:
    attempt = Attempt(a=LATER, b=LATER, c=BASE[:1])
    attempt.play(attempt.fenced({A: 2}, uncertain=(C,)))
    assert attempt.logs[C] == LATER


def test_tail_that_ends_below_a_committed_frame_is_reported_as_proof_of_loss_G8() -> None:
    attempt = Attempt(a=BASE, b=BASE, c=BASE)
    attempt.up(*STORES)
    attempt.inspected()
    attempt.machine.handle(Fenced(A, answer(BASE)))
    attempt.machine.handle(Fenced(B, answer(BASE)))
    (ended,) = attempt.machine.handle(Fenced(C, FenceAnswer(5, True, answer(BASE).tail)))
    assert "proof of loss" in ended.text
    assert "trilogue verify" in ended.text


# ---------------------------------------------------------------------- making all equal


def test_new_messages_wait_until_every_store_holds_the_tail_G1() -> None:
    attempt = Attempt(a=LONGER, b=BASE, c=BASE)
    attempt.fenced()
    last = decode_frame(LONGER[2], 10_000)
    attempt.machine.handle(Fetched(LONGER[2:]))
    assert attempt.machine.handle(Stored(B, 2, 3, last.header_crc)) == []
    (taken,) = attempt.machine.handle(Stored(C, 2, 3, last.header_crc))
    assert isinstance(taken, TakenOver)


def test_yes_to_an_earlier_attempt_counts_for_nothing() -> None:
    attempt = Attempt(a=LONGER, b=BASE, c=LONGER)
    attempt.fenced()
    attempt.machine.handle(Fetched(LONGER[2:]))
    last = decode_frame(LONGER[2], 10_000)
    assert attempt.machine.handle(Stored(B, 1, 3, last.header_crc)) == []
    assert attempt.machine.waiting_for == []
    assert attempt.machine.phase == "making the stores equal"


def test_store_that_is_lost_while_stores_are_made_equal_ends_the_attempt() -> None:
    attempt = Attempt(a=LONGER, b=BASE, c=BASE)
    attempt.fenced()
    assert attempt.machine.handle(MemberLost(C)) == [Ended("store-3 was lost while the stores were made equal")]


def test_no_of_a_store_ends_the_attempt_and_a_no_to_another_epoch_does_not() -> None:
    attempt = Attempt(a=LONGER, b=BASE, c=BASE)
    attempt.fenced()
    assert attempt.machine.handle(NotStored(B, 1, Code.DEPOSED, "old")) == []
    assert attempt.machine.handle(NotStored(B, 2, Code.DEPOSED, "epoch 3 does")) == [
        Ended("store-2 cannot take its part: epoch 3 does")
    ]


def test_source_that_gives_nothing_ends_the_attempt() -> None:
    attempt = Attempt(a=LONGER, b=BASE, c=BASE)
    attempt.fenced()
    assert attempt.machine.handle(Fetched([])) == [Ended("store-1 gave no frames from 3 on")]


@pytest.mark.parametrize(
    "frames", [[LONGER[0]], [b"junk"], [LATER[2][:-1]], chain(1, 1, 1, 1, 1, 1)[3:4]], ids=["index", "junk", "cut", "hole"]
)
def test_frames_that_were_not_asked_for_are_refused(frames: list[bytes]) -> None:
    attempt = Attempt(a=LONGER, b=BASE, c=BASE)
    attempt.fenced()
    with pytest.raises(ProtocolError):
        attempt.machine.handle(Fetched(frames))


def test_frames_that_do_not_chain_are_refused() -> None:
    attempt = Attempt(a=OTHER, b=BASE, c=BASE)
    attempt.fenced()
    with pytest.raises(ProtocolError, match="does not chain"):
        attempt.machine.handle(Fetched([OTHER[2], chain(7, 7, 7, 7)[3]]))
