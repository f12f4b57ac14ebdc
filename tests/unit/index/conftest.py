"""Small segments: what takes millions of messages in production, a test reaches with twenty."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from trilogue.actors.index import segments


@pytest.fixture(autouse=True, scope="session")
def small_segments() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "SLICE_ROWS": 2,
            "MERGE_ROWS": 4,
            "PART_ENTRIES": 2,
        }.items():
            patch.setattr(segments, name, value)
        yield
