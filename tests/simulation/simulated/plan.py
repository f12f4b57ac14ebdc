"""What is going to happen in a story, drawn beforehand: so that a part of it can be left out and the rest stays what it was.

Owns the steps and their own small dice. It must not know how a step is carried out (``story``, ``faults``).
"""

from __future__ import annotations

import random
from typing import NamedTuple

FAULTS_END_MS = 1_500

PROFILES: dict[str, dict[str, int]] = {
    "mixed": {
        "cut_a_link": 4, "crash_a_store": 2, "damage_a_store": 2, "empty_a_store": 1, "crash_an_owner": 3, "pause_an_owner": 2,
        "order_another_writer": 2, "cut_off_a_store": 2, "slow_a_disk": 1, "crash_everything": 1, "crash_a_busy_store": 2,
        "crash_a_busy_owner": 2, "fail_a_sync": 1, "fill_a_disk": 1, "half_open_link": 2, "stall_a_link": 2,
        "crash_a_client": 2, "slow_network": 1, "pause_a_store": 1, "stall_the_register": 1, "jump_a_clock": 1,
        "crash_the_supervisor": 1,
    },
    "duels": {
        "pause_an_owner": 4, "order_another_writer": 4, "crash_all_stores": 2, "cut_a_link": 2, "cut_off_a_store": 1,
        "cut_off_the_register": 2, "two_of_one_name": 2, "crash_the_supervisor": 1,
    },
    "disks": {
        "damage_a_store": 3, "empty_a_store": 2, "crash_everything": 2, "crash_all_stores": 2, "crash_a_busy_owner": 2,
        "fail_a_sync": 2, "fill_a_disk": 2, "slow_a_disk": 1, "tear_all_stores": 1,
    },
    "zombies": {"zombie_dance": 3, "order_two_together": 2, "crash_a_busy_owner": 1, "cut_a_link": 1, "half_open_link": 1},
    "storms": {
        "crash_a_busy_store": 6, "crash_a_busy_owner": 3, "cut_a_link": 3, "slow_a_disk": 1, "order_another_writer": 1,
        "half_open_link": 2, "crash_a_client": 2,
    },
    "changes": {
        "take_out_a_store": 4, "change_min_copies": 1, "move_the_partition": 3, "damage_a_store": 2, "empty_a_store": 2,
        "crash_a_busy_owner": 3, "crash_a_busy_store": 2, "stall_the_register": 2, "cut_off_the_register": 2,
        "stall_a_link": 1, "half_open_joiner": 4, "pause_a_store": 1, "crash_an_owner": 2, "pause_a_changing_owner": 3,
    },
    "takeovers": {
        "order_rudely": 4, "crash_the_source": 4, "crash_a_busy_owner": 4, "crash_a_busy_store": 2, "cut_off_a_store": 2,
        "damage_a_store": 2, "pause_an_owner": 1, "half_open_link": 1, "half_open_joiner": 2, "pause_a_store": 2,
    },
    "joins": {
        "half_open_joiner": 6, "pause_a_filling_store": 4, "take_out_a_store": 4, "empty_a_store": 1, "slow_a_disk": 2,
        "crash_a_store": 2, "stall_a_link": 1, "pause_a_store": 2,
    },
    "refills": {
        "crash_a_busy_owner": 4, "crash_a_busy_store": 3, "order_rudely": 3, "cut_off_a_store": 2, "damage_what_superseded": 6,
        "empty_a_store": 2,
    },
    "weather": {
        "flap_a_client": 4, "silence_a_client": 4, "cut_a_link": 2, "half_open_link": 3, "stall_a_link": 3, "slow_network": 2,
        "crash_a_client": 4, "crash_an_owner": 2, "crash_everything": 1,
    },
    "keys": {
        "crash_an_owner": 4, "crash_a_busy_owner": 2, "order_another_writer": 2, "crash_a_client": 3, "cut_a_link": 3,
        "half_open_link": 2, "crash_everything": 2, "jump_a_clock": 2, "crash_a_store": 2, "stall_a_link": 1,
    },
    "trims": {
        "let_old_ones_go": 6, "crash_an_owner": 3, "crash_a_busy_owner": 2, "order_another_writer": 2, "crash_a_store": 3,
        "empty_a_store": 3, "damage_a_store": 2, "take_out_a_store": 2, "crash_everything": 2, "cut_a_link": 2,
        "crash_a_client": 3, "pause_a_store": 1,
    },
    "readers": {"cut_a_link": 4, "crash_a_client": 4, "order_another_writer": 1, "crash_an_owner": 2, "half_open_link": 2},
}  # fmt: skip
"""What a story is mostly about: how often each fault is chosen."""

FAULTS = sorted({fault for weights in PROFILES.values() for fault in weights})


class Step(NamedTuple):
    """At `when`, do `what`, with dice of its own. `who` is the client that does it; empty for a fault."""

    number: int
    when: int
    what: str
    who: str
    dice: int

    def __str__(self) -> str:
        return f"{self.number:3}  at {self.when:4} ms  {self.who or 'fault'}: {self.what}"


def make_plan(seed: int, profile: str, clients: list[str]) -> list[Step]:
    """All steps, in the order of their numbers: first what the clients do, then the faults."""
    rng = random.Random(f"plan {seed} {profile}")
    drawn: list[tuple[int, str, str]] = []
    for client in clients:
        for _ in range(rng.randrange(5, 20)):
            when = rng.randrange(0, FAULTS_END_MS)
            drawn += [(when, "hand_over", client)] * rng.choice((1, 1, 2, 8))
        for what in (
            "read_on",
            "retry_an_old_one",
            "skip_ahead",
            "take_messages",
            "take_messages",
            "ask_for_a_page",
            "ask_for_heads",
        ):
            drawn += [(rng.randrange(0, FAULTS_END_MS), what, client) for _ in range(rng.randrange(1, 5))]
    if profile == "weather":
        for client in clients:
            drawn += [(rng.randrange(0, FAULTS_END_MS), "cancel_one", client) for _ in range(rng.randrange(2, 8))]
            for _ in range(rng.randrange(3, 10)):
                when = rng.randrange(0, FAULTS_END_MS)
                drawn += [(when, "hand_over_with_a_deadline", client)] * rng.choice((1, 1, 2, 5))
    if profile == "keys":
        for client in clients:
            for _ in range(rng.randrange(8, 20)):
                when = rng.randrange(0, FAULTS_END_MS)
                drawn += [(when, "hand_over_with_a_key", client)] * rng.choice((1, 1, 2, 5))
    if profile == "trims":
        for client in clients:
            drawn += [(rng.randrange(0, FAULTS_END_MS), "trim_one", client) for _ in range(rng.randrange(2, 8))]
            drawn += [(rng.randrange(0, FAULTS_END_MS), "hand_over_with_a_key", client) for _ in range(rng.randrange(0, 8))]
            drawn += [(rng.randrange(0, FAULTS_END_MS), "retry_an_old_one", client) for _ in range(rng.randrange(2, 12))]
    weights = PROFILES[profile]
    faults = rng.choices(list(weights), list(weights.values()), k=rng.randrange(3, 14))
    drawn += [(rng.randrange(0, FAULTS_END_MS), fault, "") for fault in faults]
    return [Step(number, *one, rng.getrandbits(32)) for number, one in enumerate(drawn)]
