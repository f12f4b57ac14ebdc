"""The bounds fit each other, and a set of bounds that does not fit is never used."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from trilogue.actors.protocol.frames import HEADER_BYTES
from trilogue.actors.protocol.ids import OUTBOX_ID_HEX_DIGITS, SENDER_BYTES_MAX, SESSION_BYTES_MAX
from trilogue.actors.protocol.invariants import InvariantBroken
from trilogue.actors.protocol.limits import DEFAULT_LIMITS, KIB, MIB, Limits
from trilogue.actors.protocol.messages import RUN, pack_records


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Limits)])
@pytest.mark.parametrize("value", [0, -1])
def test_every_limit_must_be_positive(name: str, value: int) -> None:
    with pytest.raises(InvariantBroken, match="positive"):
        Limits(**{name: value})


@pytest.mark.parametrize(
    ("changed", "what"),
    [
        ({"body_bytes_max": 2 * MIB}, "one body and its run fit a submission"),
        ({"submit_bytes_max": 7 * MIB}, "a submission that one last body overfills"),
        ({"frame_bytes_target": 4 * MIB}, "a frame that one last run overfills"),
        ({"frame_bytes_max": 8 * MIB, "journal_file_bytes": 64 * MIB}, "a frame fits an append"),
        ({"journal_file_bytes": 6 * MIB}, "a frame fits an empty journal file"),
        ({"history_bytes_max": 6 * MIB}, "a page of history"),
        ({"in_flight_messages_max": 70_000}, "in flight"),
        ({"in_flight_bytes_max": 65 * MIB}, "in flight"),
        ({"frames_in_flight_max": 1}, "one frame may travel"),
    ],
)
def test_bounds_that_do_not_fit_each_other_are_refused(changed: dict[str, Any], what: str) -> None:
    with pytest.raises(InvariantBroken, match=what):
        Limits(**changed)


def test_limits_cannot_be_changed_afterwards() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        DEFAULT_LIMITS.body_bytes_max = 1  # type: ignore[misc]


def test_units_are_in_the_names() -> None:
    units = ("_bytes_max", "_bytes_high", "_messages_max", "_max", "_ms", "_bytes", "_bytes_target", "_bytes_per_s")
    assert [field.name for field in dataclasses.fields(Limits) if not field.name.endswith(units)] == []


def test_largest_frame_that_one_message_can_make_stays_within_its_bound() -> None:
    limits = DEFAULT_LIMITS
    session, sender_id = "s" * SESSION_BYTES_MAX, "a" * SENDER_BYTES_MAX + "/" + "0" * OUTBOX_ID_HEX_DIGITS
    run = (RUN, session, sender_id, 1, 1, 2**62, [2**62], [bytes(limits.body_bytes_max)])
    size = HEADER_BYTES + len(pack_records([run]))
    assert size + limits.frame_bytes_target <= limits.frame_bytes_max
    assert size + KIB <= limits.wire_bytes_max
