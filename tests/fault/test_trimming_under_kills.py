"""Sessions are trimmed, a floor rises, files are written anew, processes are killed and a disk is lost (G2, G3, G5, G8).

Nothing is gone that was not trimmed; what was trimmed is answered by its number for ever; and the disk space really comes back.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Awaitable, Callable, Collection

import pytest

from history_checker import Kind, StoreContents, summary
from local_system.campaign import seed_of_this_run
from local_system.system import directory_on_disk
from local_system.trimming import KEEP_BYTES, TrimmedSystem

MIB = 1024 * 1024
RETRIES = 200
ON_DISK_BYTES_MAX = 4 * KEEP_BYTES
"""What is kept, the file that grows, the numbers of what is gone, and files of which too little is gone to write them anew."""

Story = Callable[[TrimmedSystem], Awaitable[None]]


def play(story: Story) -> None:
    """Play it on a system of its own, on a disk, and judge what is there afterwards."""
    seed = seed_of_this_run()

    async def whole() -> None:
        root = directory_on_disk("trilogue-trim-")
        try:
            async with TrimmedSystem(root, seed) as one:
                await story(one)
                await finish(one)
        finally:
            shutil.rmtree(root, ignore_errors=True)

    try:
        asyncio.run(whole())
    except BaseException as error:
        error.add_note(f"TRILOGUE_FAULT_SEED={seed}")
        raise


async def finish(one: TrimmedSystem) -> None:
    """Everything comes to rest; the judgement."""
    await one.rest()
    assert one.trims > 20
    assert one.written_bytes > 2 * ON_DISK_BYTES_MAX
    disk = await one.until_on_disk(ON_DISK_BYTES_MAX)
    assert await one.retried(RETRIES) == RETRIES
    await one.end()
    contents = one.contents()
    anomalies = one.anomalies(contents)
    assert not anomalies, summary(anomalies)
    thin = {store.name: sum(frame.thin for held in store.partitions.values() for frame in held.frames) for store in contents}
    assert min(thin[name] for name in disk) > 0, f"a store gave nothing up: {thin}"
    report = one.verify()
    assert report["ok"], report
    the_net_is_no_hole(one, contents, disk)
    figures = ", ".join(f"{name} {size / MIB:.1f} ({thin[name]} thin frames)" for name, size in disk.items())
    print(f"\nMiB written to each store: {one.written_bytes / MIB:.1f}; on disk in the end: {figures}; {one.trims} trims")


def the_net_is_no_hole(one: TrimmedSystem, contents: list[StoreContents], members: Collection[str]) -> None:
    """One message more that is gone, on one store of this very run, is found."""
    holding = next(store.partitions[0] for store in contents if store.name in members)
    at = max(k for k, frame in enumerate(holding.chain) if frame.records and frame.records[0][0] == 1)
    frame = holding.chain[at]
    run = frame.records[0]
    given_up = [7, *run[1:6], len(run[7]), []]
    holding.chain[at] = frame._replace(records=[given_up, *frame.records[1:]], thin=True)
    assert {anomaly.kind for anomaly in one.anomalies(contents)} == {Kind.NOT_TRIMMED}


def test_trims_and_kills_lose_nothing_that_was_not_trimmed_and_give_the_disk_back_g2_g3_g5_g8() -> None:
    async def story(one: TrimmedSystem) -> None:
        await one.until_written(2 * MIB)
        await one.kill_owner()
        await one.until_written(MIB)
        await one.kill_store()
        await one.lose_directory()
        await one.until_written(max(MIB // 2, 3 * ON_DISK_BYTES_MAX - one.written_bytes))

    play(story)


@pytest.mark.long
def test_a_minute_of_trims_and_kills_loses_nothing_that_was_not_trimmed_g2_g3_g5_g8() -> None:
    async def story(one: TrimmedSystem) -> None:
        faults: list[Callable[[], Awaitable[object]]] = [one.kill_owner, one.kill_store] * 8 + [one.lose_directory] * 3
        one.random.shuffle(faults)
        for fault in faults:
            await one.until_written(MIB // 2)
            await fault()

    play(story)
