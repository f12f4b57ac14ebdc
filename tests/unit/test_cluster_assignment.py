"""The Supervisor's decisions: a partition comes back (G11) with one writer (G9), whatever becomes of the actors and itself."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trilogue.actors.protocol.limits import DEFAULT_LIMITS
from trilogue.cluster.on_ray.assignment import (
    AGAIN_MS,
    GRACE_MS,
    NO_PARTITION,
    TAKE_MS,
    Answered,
    AskStores,
    Assignment,
    Begun,
    Effect,
    Event,
    Heard,
    Lost,
    Order,
    Refused,
    Tick,
)

STEP_MS = DEFAULT_LIMITS.supervisor_ping_ms // 2
SILENT_MS = DEFAULT_LIMITS.supervisor_silent_ms
STORES = ("store-1", "store-2")


class Story:
    """A Supervisor's machine, `partitions` and their spares, and a clock that ticks as the Supervisor's does."""

    def __init__(self, partitions: int = 2, spares: int = 1) -> None:
        self.now_ms = 1_000
        self.partitions = partitions
        self.sessions = [f"session-{k}" for k in range(partitions + spares)]
        self.machine = Assignment(self.sessions, STORES, partitions, DEFAULT_LIMITS, self.now_ms)
        self.pinging: dict[str, tuple[int, int, str]] = {}

    def orders(self, event: Event) -> list[Order]:
        return [effect for effect in self.machine.handle(event) if isinstance(effect, Order)]

    def says(self, name: str, partition: int = NO_PARTITION, epoch: int = 0, state: str = "") -> list[Order]:
        """The actor answers now, and says the same in every ping from now on."""
        self.pinging[name] = (partition, epoch, state or ("open" if epoch else "spare"))
        return self.orders(Answered(name, *self.pinging[name], self.now_ms))

    def lost(self, name: str) -> list[Order]:
        self.pinging.pop(name, None)
        return self.orders(Lost(name, self.now_ms))

    def heard(self, store: str, epochs: dict[int, int]) -> list[Order]:
        return self.orders(Heard(store, epochs, self.now_ms))

    def begins(self, order: Order) -> list[Order]:
        return self.orders(Begun(order.name, order.partition, self.now_ms))

    def refuses(self, order: Order) -> list[Effect]:
        return self.machine.handle(Refused(order.name, order.partition, "no", self.now_ms))

    def passes(self, ms: int) -> list[Order]:
        """Time passes; who answers goes on answering."""
        given: list[Order] = []
        for _ in range(0, ms, STEP_MS):
            self.now_ms += STEP_MS
            for name, said in self.pinging.items():
                given += self.orders(Answered(name, *said, self.now_ms))
            given += self.orders(Tick(self.now_ms))
        return given

    def all_spare(self, names: Iterable[str] | None = None) -> list[Order]:
        """A cold start: every store and every actor is there, and nobody owns anything."""
        given: list[Order] = []
        for store in STORES:
            given += self.heard(store, {})
        for name in names if names is not None else self.sessions:
            given += self.says(name)
        return given

    def started(self) -> Story:
        """Every partition is served by the actor of its number, in epoch 1."""
        for order in self.all_spare():
            self.says(order.name, order.partition, 1)
        assert [one.owner for one in self.machine.serving()] == self.sessions[: self.partitions]
        return self


# ---------------------------------------------------------------------- starting


def test_on_a_cold_start_each_partition_goes_to_the_actor_of_its_number_as_soon_as_all_were_heard() -> None:
    """G11."""
    story = Story(3)
    assert story.all_spare(story.sessions[:-1]) == []
    assert story.says("session-3") == [Order(f"session-{k}", k, 0) for k in range(3)]
    assert story.machine.spares() == ["session-3"]
    assert story.passes(TAKE_MS // 2) == []


def test_an_actor_that_is_missing_is_waited_for_a_short_while_only_and_a_spare_serves_instead() -> None:
    """G11."""
    story = Story(3)
    assert story.all_spare(["session-0", "session-2", "session-3"]) == []
    orders = story.passes(GRACE_MS)
    assert set(orders) == {Order("session-0", 0, 0), Order("session-3", 1, 0), Order("session-2", 2, 0)}
    assert story.says("session-1") == []
    assert story.machine.spares() == ["session-1"]


def test_nobody_is_ordered_while_not_even_one_actor_was_heard() -> None:
    story = Story()
    assert story.passes(3 * GRACE_MS) == []


def test_a_supervisor_that_has_just_restarted_learns_who_owns_what_before_it_orders_anything() -> None:
    """G9: the owner that answers last keeps its partition."""
    story = Story(2)
    for store in STORES:
        assert story.heard(store, {0: 4, 1: 5}) == []
    assert story.says("session-2", 0, 4) == []
    assert story.says("session-0") == []
    assert story.says("session-1", 1, 5) == []
    assert story.passes(3 * GRACE_MS) == []
    assert [(one.owner, one.epoch, one.failovers) for one in story.machine.serving()] == [
        ("session-2", 4, 0),
        ("session-1", 5, 0),
    ]


def test_an_owner_that_died_while_the_supervisor_was_away_is_replaced_in_the_epoch_that_the_stores_know() -> None:
    """G11."""
    story = Story(1)
    story.heard("store-1", {0: 6})
    story.heard("store-2", {0: 7})
    assert story.says("session-1") == []
    assert story.passes(GRACE_MS) == [Order("session-1", 0, 7)]


def test_an_actor_that_a_former_supervisor_has_ordered_is_left_to_its_work() -> None:
    story = Story(1)
    story.all_spare([])
    assert story.says("session-1", 0, 0, "waiting: it asks the stores") == []
    assert story.says("session-0") == []
    assert story.machine.serving()[0].state == "waiting: it asks the stores"
    assert story.says("session-1", 0, 1) == []
    assert story.machine.serving()[0].owner == "session-1"


# ---------------------------------------------------------------------- replacing


def test_a_lost_owner_is_replaced_at_once_by_the_spare_which_is_told_whom_it_replaces() -> None:
    """G11: in the same step, without waiting for a tick."""
    story = Story(2).started()
    story.passes(5_000)
    assert story.lost("session-1") == [Order("session-2", 1, 1)]
    story.says("session-2", 1, 2)
    serving = story.machine.serving()[1]
    assert (serving.owner, serving.epoch, serving.failovers, serving.since_ms) == ("session-2", 2, 1, story.now_ms)
    assert story.says("session-1") == []
    assert story.machine.spares() == ["session-1"]


def test_an_owner_that_falls_silent_is_replaced_within_the_stated_bound() -> None:
    """G11: a paused process keeps its connections."""
    story = Story(1).started()
    del story.pinging["session-0"]
    assert story.passes(SILENT_MS - STEP_MS) == []
    assert story.passes(STEP_MS) == [Order("session-1", 0, 1)]


def test_a_paused_owner_that_goes_on_before_it_was_replaced_keeps_its_partition_and_its_time() -> None:
    story = Story(1).started()
    since_ms = story.machine.serving()[0].since_ms
    del story.pinging["session-0"]
    order = story.passes(SILENT_MS)[0]
    assert story.machine.serving()[0].owner == ""
    story.says("session-0", 0, 1)
    assert story.refuses(order) == [AskStores()]
    assert story.passes(2 * TAKE_MS) == []
    serving = story.machine.serving()[0]
    assert (serving.owner, serving.since_ms, serving.failovers) == ("session-0", since_ms, 0)


def test_of_two_owners_the_higher_epoch_counts_and_the_lower_one_never_comes_back() -> None:
    """G9."""
    story = Story(1, spares=2).started()
    del story.pinging["session-0"]
    order = story.passes(SILENT_MS)[0]
    story.says(order.name, 0, 2)
    assert story.says("session-0", 0, 1) == []
    assert story.machine.serving()[0].owner == order.name
    assert story.lost(order.name) == [Order("session-2", 0, 2)]
    assert story.machine.serving()[0].owner == ""


def test_a_spare_that_is_lost_or_silent_is_ordered_nothing_until_it_is_back() -> None:
    story = Story(1, spares=2).started()
    story.lost("session-1")
    del story.pinging["session-2"]
    assert story.passes(SILENT_MS) == []
    assert story.lost("session-0") == []
    assert "no spare SessionActor is there" in story.machine.serving()[0].state
    assert story.says("session-1") == [Order("session-1", 0, 1)]


def test_without_a_spare_the_killed_actor_itself_takes_its_partition_back_when_it_is_restarted() -> None:
    """G11."""
    story = Story(2, spares=0).started()
    assert story.lost("session-1") == []
    assert story.passes(2_000) == []
    assert story.says("session-1") == [Order("session-1", 1, 1)]


def test_two_owners_lost_at_once_get_two_spares_and_the_third_waits_for_the_next_one() -> None:
    story = Story(3, spares=2).started()
    orders = story.lost("session-0") + story.lost("session-1") + story.lost("session-2")
    assert orders == [Order("session-3", 0, 1), Order("session-4", 1, 1)]
    assert story.says("session-1") == [Order("session-1", 2, 1)]


def test_the_silence_that_a_supervisor_slept_through_is_nobodys() -> None:
    """A stopped Supervisor that goes on replaces nobody: it has only not listened."""
    story = Story(2).started()
    story.now_ms += 60_000
    assert story.orders(Tick(story.now_ms)) == []
    assert story.passes(2 * SILENT_MS) == []
    story.now_ms += 60_000
    assert story.says("session-0", 0, 1) == []
    assert story.passes(2 * SILENT_MS) == []


# ---------------------------------------------------------------------- orders that come to nothing


def test_a_refused_order_goes_to_another_spare_at_once_and_the_stores_are_asked() -> None:
    """G11."""
    story = Story(1, spares=2).started()
    (order,) = story.lost("session-0")
    assert story.refuses(order) == [AskStores(), Order("session-2", 0, 1)]


def test_an_only_spare_that_refuses_is_ordered_again_after_a_while() -> None:
    """G11: the stores may still have heard the old writer a moment ago."""
    story = Story(1).started()
    (order,) = story.lost("session-0")
    assert story.refuses(order) == [AskStores()]
    assert "cannot take it over: no" in story.machine.serving()[0].state
    assert story.passes(AGAIN_MS - STEP_MS) == []
    assert story.passes(STEP_MS) == [order]


def test_a_spare_that_begins_and_gives_up_between_two_pings_is_ordered_again_soon() -> None:
    """G11: the stores still hear the old writer; a moment later they do not."""
    story = Story(1).started()
    (order,) = story.lost("session-0")
    assert story.begins(order) == []
    assert story.passes(2 * STEP_MS + AGAIN_MS) == [order]


def test_what_a_store_knows_raises_the_epoch_to_replace() -> None:
    story = Story(1).started()
    story.heard("store-1", {0: 9, 7: 1})
    assert story.passes(STEP_MS) == []
    assert story.machine.serving()[0].epoch == 9
    assert story.lost("session-0") == []  # already replaced: its claim was void
    story.passes(TAKE_MS)
    assert story.machine.serving()[0].epoch == 9


def test_a_spare_that_does_not_become_the_owner_in_time_is_not_trusted_with_it() -> None:
    """G11: whether it keeps silent about it or only says that it tries."""
    story = Story(1, spares=2).started()
    assert story.lost("session-0") == [Order("session-1", 0, 1)]
    assert story.passes(TAKE_MS - STEP_MS) == []
    assert story.passes(STEP_MS) == [Order("session-2", 0, 1)]
    story.says("session-2", 0, 0, "waiting: the register does not answer")
    assert story.passes(TAKE_MS) == [Order("session-1", 0, 1)]
    story.says("session-2", 0, 2)
    assert story.machine.serving()[0].owner == "session-2"


def test_a_spare_that_is_lost_or_silent_or_gives_up_while_it_takes_over_is_followed_by_another() -> None:
    """G11."""
    story = Story(1, spares=4).started()
    assert story.lost("session-0") == [Order("session-1", 0, 1)]
    assert story.lost("session-1") == [Order("session-2", 0, 1)]
    story.says("session-2", 0, 0, "waiting: it asks the stores")
    assert story.says("session-2") == [Order("session-3", 0, 1)]
    del story.pinging["session-3"]
    assert story.passes(SILENT_MS) == [Order("session-4", 0, 1)]


def test_an_answer_that_crossed_the_order_does_not_end_it() -> None:
    story = Story(1, spares=2).started()
    assert story.lost("session-0") == [Order("session-1", 0, 1)]
    assert story.says("session-1") == []
    assert story.machine.spares() == ["session-2"]


def test_a_partition_waits_with_what_its_owner_says() -> None:
    story = Story(1).started()
    story.says("session-0", 0, 1, "waiting: store-2 is lost, and no spare store is there")
    assert story.machine.serving()[0].state == "waiting: store-2 is lost, and no spare store is there"


@pytest.mark.parametrize(
    "event",
    [
        Answered("session-9", 0, 1, "open", 1_100),
        Answered("session-0", 99, 1, "open", 1_100),
        Answered("session-0", -7, 1, "open", 1_100),
        Lost("session-9", 1_100),
        Refused("session-9", 99, "no", 1_100),
        Refused("session-1", -1, "no", 1_100),
        Begun("session-9", 0, 1_100),
        Begun("session-1", 99, 1_100),
        Heard("store-9", {99: 5, -1: 7}, 1_100),
    ],
)
def test_what_makes_no_sense_changes_nothing(event: Event) -> None:
    story = Story(1).started()
    before = story.machine.serving()
    assert [effect for effect in story.machine.handle(event) if isinstance(effect, Order)] == []
    assert story.machine.serving() == before


# ---------------------------------------------------------------------- any course of events

ACTORS = 5
steps = st.one_of(
    st.tuples(st.just("kill"), st.integers(0, ACTORS - 1)),
    st.tuples(st.just("pause"), st.integers(0, ACTORS - 1)),
    st.tuples(st.just("back"), st.integers(0, ACTORS - 1)),
    st.tuples(st.just("wait"), st.integers(1, 20)),
    st.tuples(st.just("refuse"), st.integers(0, 2)),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(steps, max_size=40))
def test_whatever_happens_no_spare_gets_two_partitions_and_all_are_served_in_the_end(course: list[tuple[str, int]]) -> None:
    """G11, with actors that obey as soon as they are asked, die, pause, and come back as spares."""
    story = Story(3, spares=2)
    epochs = [0, 0, 0]
    refusals = 0
    paused: dict[str, tuple[int, int, str]] = {}

    def obey(orders: list[Order]) -> None:
        nonlocal refusals
        while orders:
            order = orders.pop(0)
            if order.name not in story.pinging:
                continue  # it has just been paused: it does not answer
            assert story.pinging[order.name][0] == NO_PARTITION, "an actor that owns a partition was ordered another"
            if refusals:
                refusals -= 1
                orders += [effect for effect in story.refuses(order) if isinstance(effect, Order)]
                continue
            epochs[order.partition] += 1
            orders += story.says(order.name, order.partition, epochs[order.partition])

    def run(ms: int) -> None:
        for _ in range(0, ms, STEP_MS):
            obey(story.passes(STEP_MS))

    obey(story.all_spare())
    for what, number in course:
        name = f"session-{number}"
        if what == "kill":
            paused.pop(name, None)
            obey(story.lost(name))
        elif what == "pause" and name in story.pinging:
            paused[name] = story.pinging.pop(name)
        elif what == "back":
            partition, epoch, _ = paused.pop(name, (NO_PARTITION, 0, ""))
            if partition != NO_PARTITION and epoch < epochs[partition]:
                obey(story.lost(name))  # it finds out that it was replaced, and ends
                partition, epoch = NO_PARTITION, 0
            if name not in story.pinging:
                obey(story.says(name, partition, epoch))
        elif what == "wait":
            run(number * STEP_MS)
        elif what == "refuse":
            refusals += number
    refusals = 0
    for number in range(ACTORS):
        name = f"session-{number}"
        if name not in story.pinging:
            paused.pop(name, None)
            obey(story.lost(name))
            obey(story.says(name))
    run(TAKE_MS + SILENT_MS + 10 * AGAIN_MS)
    assert all(one.owner and one.epoch == epoch for one, epoch in zip(story.machine.serving(), epochs, strict=True))
    assert len({one.owner for one in story.machine.serving()}) == 3
