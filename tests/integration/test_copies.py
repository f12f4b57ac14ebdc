"""How many stores hold a message while stores come and go: real processes, without Ray (G1, G2, G3, G11).

Without a Supervisor and without Ray, nothing comes back before a test says so.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from local_system.bare import NEW, TOKEN, BareSystem
from trilogue.actors.protocol.frames import decode_frame
from trilogue.actors.protocol.limits import Limits
from trilogue.actors.protocol.messages import Ack
from trilogue.actors.protocol.vocabulary import Say
from trilogue.cluster.commands.find import Known
from trilogue.cluster.commands.status import gather

from .conftest import run

PATIENT = Limits(member_grace_ms=60_000)  # a store that starts slowly, on a machine that does much else


def say(system: BareSystem, *bodies: bytes) -> list[Ack]:
    """Send these; their acks."""

    async def send() -> list[Ack]:
        async with system.client("alice") as client:
            return await asyncio.gather(*(client.post("room", body) for body in bodies))

    acks: list[Ack] = run(send())
    return acks


def read(system: BareSystem) -> list[bytes]:
    """All that was said."""

    async def history() -> list[bytes]:
        async with system.client("bob") as client:
            return [message.body for message in await client.history("room", limit=1000)]

    bodies: list[bytes] = run(history())
    return bodies


def frames_of(system: BareSystem, store: str, last: int) -> list[tuple[int, int]]:
    """(index, CRC) of the partition's frames up to `last`, as the store serves them."""
    found: list[tuple[int, int]] = []
    while len(found) < last:
        page = system.ask(store, Say.FRAMES, 0, len(found) + 1, last)
        if not page:
            break
        found += [(header.index, header.header_crc) for header in (decode_frame(frame, 1 << 23) for frame in page)]
    return found


def test_with_min_copies_two_a_lost_store_is_said_in_every_ack_and_its_return_makes_three_again_g1_g2_g3(
    tmp_path: Path,
) -> None:
    with BareSystem(tmp_path, stores=3, record=NEW._replace(min_copies=2)) as system:
        system.start(*system.stores, "session-0")
        system.take("session-0")
        assert [(ack.seq, ack.copies) for ack in say(system, b"1", b"2")] == [(1, 3), (2, 3)]

        system.kill("store-2")
        assert [(ack.seq, ack.copies) for ack in say(system, b"3", b"4")] == [(3, 2), (4, 2)]
        shown: dict[str, Any] = run(gather(Known(system.addresses, TOKEN, None)))
        (partition,) = shown["partitions"]
        assert (partition["state"], partition["copies"]) == ("open", 2)
        assert partition["stores"] == ["store-1", "store-3"]
        assert shown["cluster"] == NEW.cluster

        system.start("store-2")
        status = system.until("session-0", copies=3, ranges=lambda ranges: len(ranges) == 1)
        assert sorted(status["members"]) == ["store-1", "store-2", "store-3"]
        assert [(ack.seq, ack.copies) for ack in say(system, b"5")] == [(5, 3)]
        assert read(system) == [b"1", b"2", b"3", b"4", b"5"]
        committed = system.status("session-0")["committed"]
        whole = frames_of(system, "store-1", committed)
        assert len(whole) == committed
        assert frames_of(system, "store-2", committed) == whole


def test_without_a_spare_and_with_all_copies_wanted_a_lost_store_is_waited_for_g1_g8(tmp_path: Path) -> None:
    with BareSystem(tmp_path, stores=2, record=NEW._replace(copies=2, min_copies=2)) as system:
        system.start(*system.stores, "session-0")
        system.take("session-0")
        say(system, b"1")
        system.kill("store-1")
        system.until("session-0", state=lambda state: state.startswith("waiting: store-1 ("))
        system.start("store-1")
        assert [(ack.seq, ack.copies) for ack in say(system, b"2")] == [(2, 2)]
        assert system.until("session-0", state="open")["ranges"] == [[1, ["store-1", "store-2"]]]


def test_a_store_that_starts_slowly_is_waited_for_and_no_spare_takes_its_place_g2(tmp_path: Path) -> None:
    with BareSystem(tmp_path, stores=4, limits=PATIENT) as system:
        system.start(*system.stores, "session-0")
        system.take("session-0")
        say(system, b"1", b"2")
        before = system.status("session-0")
        system.kill(*system.stores, "session-0")

        present = [store for store in system.stores if store != "store-2"]
        system.start(*present, "session-0")
        system.take("session-0", epoch=before["epoch"])
        waiting = system.until("session-0", spares=["store-4"], state=lambda state: state.startswith("waiting: store-2 ("))
        assert waiting["epoch"] > before["epoch"]
        system.start("store-2")
        after = system.until("session-0", state="open")
        assert after["ranges"] == before["ranges"]
        assert read(system) == [b"1", b"2"]
        assert system.ask("store-4", Say.PARTITIONS) == []
