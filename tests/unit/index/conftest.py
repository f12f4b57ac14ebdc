"""Small segments: what takes millions of messages in production, a test reaches with twenty."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from trilogue.actors.index import segments
from trilogue.actors.index.entries import ENTRY_BYTES


@pytest.fixture(autouse=True, scope="session")
def small_segments() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "SLICE_ROWS": 2,
            "MERGE_ROWS": 4,
            "PART_ENTRIES": 2,
            "_PART_BYTES": 2 * ENTRY_BYTES,
        }.items():
            patch.setattr(segments, name, value)
        yield
