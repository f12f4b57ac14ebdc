"""Everything that can grow has a bound, and all bounds stand here with the relations between them.

Owns the numbers. It must not know who obeys them. Units are in the names. Invariant: the relations in
`Limits.check` hold for every `Limits` that a process uses; a limit that a test shrinks is checked in the same way.
"""

from __future__ import annotations

from dataclasses import dataclass

from trilogue.actors.protocol.invariants import require

KIB = 1024
MIB = 1024 * KIB


@dataclass(frozen=True, slots=True)
class Limits:
    """The bounds of one process. The defaults serve production; tests shrink them."""

    # messages
    body_bytes_max: int = 1 * MIB
    run_messages_max: int = 4096

    # the wire
    wire_bytes_max: int = 8 * MIB
    handshake_bytes_max: int = 4 * KIB
    handshake_timeout_ms: int = 5_000
    connections_max: int = 4096
    request_timeout_ms: int = 10_000

    # the client's submissions
    submit_bytes_max: int = 2 * MIB
    in_flight_messages_max: int = 16_384
    in_flight_bytes_max: int = 16 * MIB
    keyed_run_messages_max: int = 128
    outbox_messages_max: int = 65_536
    outbox_bytes_max: int = 64 * MIB
    outbox_commit_bytes_max: int = 4 * MIB
    lanes_max: int = 131_072

    # idempotency keys
    key_honoured_ms: int = 24 * 3600 * 1000  # of log time
    session_keys_hot_max: int = 1_024
    keys_hot_max: int = 131_072

    # the log of a partition
    frame_bytes_target: int = 1 * MIB
    frame_bytes_max: int = 6 * MIB
    frames_in_flight_max: int = 8
    waiting_bytes_max: int = 64 * MIB
    idle_commit_ms: int = 200

    # the sessions that a SessionActor has in memory
    sessions_hot_max: int = 65_536
    senders_hot_max: int = 262_144  # of all these sessions together
    session_senders_hot_max: int = 4_096
    loads_at_once_max: int = 8  # requests that wait for cold sessions
    states_names_max: int = 8_192  # of sessions and senders whose states are asked for at any time

    # a partition's writer and its stores
    tick_ms: int = 50
    writer_ping_ms: int = 200
    writer_silent_ms: int = 700
    fence_wait_ms: int = 100
    member_grace_ms: int = 3_000
    member_lag_ms: int = 1_000
    join_frames_max: int = 1_024
    copy_bytes_per_s: int = 64 * MIB
    hedge_ms: int = 500  # so long a store that is asked may say nothing before another one is asked, too

    # a store
    journal_file_bytes: int = 64 * MIB
    scrub_bytes_per_s: int = 4 * MIB
    scrub_round_ms: int = 60_000
    directory_lock_wait_ms: int = 10_000
    redis_timeout_ms: int = 5_000
    redis_page_bytes: int = 2 * MIB  # of a log that is read when the store opens
    index_recent_bytes_max: int = 48 * MIB
    index_resting_bytes_max: int = 1 * MIB
    index_merge_segments_max: int = 8  # segments of its catalogue
    senders_answered_max: int = 64

    # retention
    retention_look_ms: int = 10_000  # so often a writer looks for messages that are too old, or too many

    # the register
    register_round_ms: int = 1_000
    register_wait_ms: int = 10_000
    register_backoff_ms: int = 10
    register_backoff_longest_ms: int = 300
    register_data_bytes_max: int = 64 * KIB

    # the Supervisor
    supervisor_ping_ms: int = 200
    supervisor_silent_ms: int = 700

    # reading
    history_messages_max: int = 10_000
    history_bytes_max: int = 4 * MIB
    heads_sessions_max: int = 10_000
    records_pages_at_once_max: int = 8  # of one store
    records_sessions_max: int = 4_096  # in a page of records, or in one of sessions
    page_messages_max: int = 2_048
    page_bytes_max: int = 512 * KIB
    credit_messages_max: int = 65_536
    credit_bytes_max: int = 4 * MIB
    subscribe_sessions_max: int = 2_000
    subscriptions_per_connection_max: int = 65_536

    def __post_init__(self) -> None:
        self.check()

    def check(self) -> None:
        """Raise `InvariantBroken` unless the bounds fit each other."""
        require(all(getattr(self, name) > 0 for name in self.__slots__), "every limit is positive")
        require(self.body_bytes_max < self.submit_bytes_max, "one body and its run fit a submission")
        require(
            self.submit_bytes_max + self.body_bytes_max + 64 * KIB <= self.wire_bytes_max,
            "a submission that one last body overfills fits a wire frame",
        )
        require(
            self.frame_bytes_target + self.submit_bytes_max + self.body_bytes_max + 64 * KIB <= self.frame_bytes_max,
            "a frame that one last run overfills stays within its bound",
        )
        require(self.keyed_run_messages_max * 256 <= 32 * KIB, "the keys of a run fit what its bounds leave")
        require(2 * self.keyed_run_messages_max <= self.session_keys_hot_max, "a run's keys stay until it is numbered")
        require(self.session_keys_hot_max <= self.keys_hot_max, "a session's keys are some of all")
        require(self.frame_bytes_max + 64 * KIB <= self.wire_bytes_max, "a frame fits an append on the wire")
        require(self.frame_bytes_max + 64 * KIB <= self.journal_file_bytes, "a frame fits an empty journal file")
        require(
            self.history_bytes_max + self.submit_bytes_max + self.body_bytes_max + 64 * KIB <= self.wire_bytes_max,
            "a page of history that one last run overfills fits a wire frame",
        )
        require(2 * self.member_lag_ms <= self.redis_timeout_ms, "a slow server is first a slow member, then a lost one")
        require(self.records_sessions_max * 288 + 64 * KIB <= self.wire_bytes_max, "a page of sessions fits a wire frame")
        require(self.frame_bytes_max < 16 * MIB, "an entry of a store's index has 24 bits for a place inside a frame")
        require(self.index_merge_segments_max >= 2, "a merge makes fewer segments of them")
        require(self.index_resting_bytes_max <= self.index_recent_bytes_max, "what stays in memory is recent")
        require(self.page_messages_max <= self.history_messages_max, "a subscription's page is a page")
        require(self.page_bytes_max <= self.history_bytes_max, "a subscription's page is a page")
        require(
            self.credit_bytes_max <= self.history_bytes_max,
            "what goes out live at once is no larger than a page: it fits the wire",
        )
        require(2 * self.session_senders_hot_max <= self.senders_hot_max, "one session leaves room for the senders of others")
        require(
            self.loads_at_once_max * self.subscribe_sessions_max <= self.sessions_hot_max,
            "the sessions that readers wait for fit into memory",
        )
        require(self.states_names_max >= 2, "a session can be asked for with a sender")
        require(self.states_names_max * 264 + 64 * KIB <= self.wire_bytes_max, "names that are asked for fit a wire frame")
        require(
            self.history_bytes_max + self.states_names_max * 320 + 64 * KIB <= self.wire_bytes_max,
            "a page of states that one last session overfills fits a wire frame",
        )
        require(self.in_flight_messages_max <= self.outbox_messages_max, "what is in flight is in the outbox")
        require(self.in_flight_bytes_max <= self.outbox_bytes_max, "what is in flight is in the outbox")
        require(self.outbox_messages_max < self.lanes_max, "some lanes are idle and may be forgotten")
        require(self.submit_bytes_max <= self.in_flight_bytes_max, "one submission may be in flight")
        require(self.frames_in_flight_max >= 2, "one frame may travel while another one is being stored")
        require(self.handshake_bytes_max <= self.wire_bytes_max, "a handshake is a frame")
        require(3 * self.writer_ping_ms < self.writer_silent_ms, "a writer is not silent because two pings were late")
        require(2 * self.tick_ms <= self.fence_wait_ms, "a wait is longer than a tick")
        require(self.member_lag_ms >= 10 * self.tick_ms, "a member is not slow because of a few ticks")
        require(2 * self.hedge_ms <= self.member_lag_ms, "who asks a store waits no longer for it than its writer does")
        require(self.join_frames_max >= 2 * self.frames_in_flight_max, "a store that joins may be a window behind")
        require(2 * self.supervisor_ping_ms < self.supervisor_silent_ms, "one late answer to a ping is no silence")
        require(self.register_data_bytes_max + 4 * KIB <= self.wire_bytes_max, "a value of the register fits a wire frame")
        require(self.register_backoff_ms <= self.register_backoff_longest_ms, "the first back-off is the shortest")
        require(self.register_backoff_longest_ms <= self.register_round_ms, "no back-off is longer than a silent round")
        require(2 * self.register_round_ms <= self.register_wait_ms, "an operation outlives a silent round")


DEFAULT_LIMITS = Limits()

# a system: what one set of settings may ask for
COPIES_MAX = 7
STORES_MAX = 64
