"""A result for people: the answer first, then what stands behind it; and the same as JSON.

Owns the words and the table. It must not know how a figure was come by. Invariants: a rate is never printed without
what the verification of the same run found; a run that found something says so first, and loudly.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from trilogue.actors.protocol.errors import UsageError, counted
from trilogue.bench.report.machine import machine_line
from trilogue.bench.report.schema import (
    CatchupResult,
    CpuUs,
    ExportResult,
    FailoverResult,
    ReadingResult,
    RecipeResult,
    Result,
    SessionsResult,
    TableResult,
)

ROLES = ("client", "session", "store")
VICTIMS = {"session": "the partition's SessionActor", "store": "a store of the partition", "supervisor": "the Supervisor"}
STALLS_SHOWN_MAX = 40


def write_json(result: Result, path: Path) -> None:
    """Write the result as one JSON object. Raises `UsageError` if the file cannot be written."""
    try:
        path.write_text(result.model_dump_json(indent=2) + "\n")
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}") from None


def show(result: Result, console: Console, examples: Sequence[str], notes: Sequence[str] = ()) -> None:
    """Print the result."""
    console.print(headline(result), soft_wrap=True)
    for example in examples:
        console.print(Text(f"  {example}", style="red"), soft_wrap=True)
    console.print()
    console.print(_rows(result) if result.rows else _table(result))
    for note in notes:
        console.print(note, soft_wrap=True, highlight=False)
    settings = " · ".join(f"{_in_words(name)} {value}" for name, value in result.settings.items())
    for line in (settings, machine_line(result.machine), f"commit {result.commit}"):
        console.print(Text(line, style="dim"), soft_wrap=True)


def headline(result: Result) -> Text:
    """The answer on one line."""
    verdict = f"lost {result.lost}, duplicated {result.duplicated}, reordered {result.reordered}"
    if isinstance(result, FailoverResult):
        verdict += f", stale acks {result.stale_acks}"
    if isinstance(result, RecipeResult) and result.unexplained:
        verdict += f", and {result.unexplained} that no crash explains"
    if result.failed:
        return Text(f"FAILED: {verdict} of {counted(result.messages, 'message')}. No figure of this run counts.", "bold red")
    answer = Text(_answer(result), "bold green")
    if isinstance(result, ReadingResult):
        answer.append(f" · {result.deliveries:,} deliveries checked: {verdict}", "default")
    elif isinstance(result, SessionsResult):
        read = f"{result.read_back_messages:,} messages of {result.read_back_sessions:,} sessions, and all heads,"
        answer.append(f" · {read} read back: {verdict}", "default")
    elif result.command != "floor":
        answer.append(f" · {_what_was_read(result)} read back: {verdict}", "default")
    return answer


def _what_was_read(result: Result) -> str:
    messages = counted(result.messages, "message")
    if result.command != "replay":
        return messages
    settings = result.settings
    return f"{messages} of {counted(settings['senders'], 'sender')} in {counted(settings['sessions'], 'session')}"


def cpu_growth(result: Result) -> float | None:
    """By how much the processor time a message grows from the first row to the last, as a fraction; None if unknown."""
    totals = [row.cpu_us_per_message.total for row in result.rows]
    if len(totals) < 2 or totals[0] is None or totals[-1] is None:
        return None
    return totals[-1] / totals[0] - 1


def _answer(result: Result) -> str:
    floor = result.floor
    if isinstance(result, FailoverResult):
        stall, victim = result.stall_ms, VICTIMS[result.settings["kill"]]
        what = f"a pause of {victim}" if result.settings["pause_s"] else f"kill -9 of {victim}"
        return f"{stall.p50:,.0f} ms stall (p50), {stall.max:,.0f} ms at most, after {what}, {counted(result.kills, 'time')}"
    if isinstance(result, CatchupResult):
        ratio = result.latency_ms.p99 / (result.writer_alone_ms.p99 or 1)
        caught = f"{result.deliveries_per_s:,.0f} messages/s to a reader {result.behind_messages_max:,} behind"
        return f"{caught}; the writer's p99 is {ratio:.2f} × what it is without"
    if isinstance(result, SessionsResult):
        more_s = result.restart_s.full - result.restart_s.empty
        grew = f"{result.session_grew_mib:+,.0f} MiB a SessionActor, {result.store_grew_mib:+,.0f} MiB a store"
        return f"{result.sessions:,} idle sessions: {grew}, {more_s:+.1f} s at a restart"
    if isinstance(result, ReadingResult):
        rate = f"{result.deliveries_per_s:,.0f} deliveries/s to {counted(result.readers, 'reader')}"
        return f"{rate}, {result.lag_ms.p50:.0f} ms behind (p50)"
    if isinstance(result, TableResult):
        slowest = f"{result.messages / result.tables / result.table_s.max:,.0f} in the slowest"
        return f"{result.messages_per_s:,.0f} messages/s into Arrow tables ({slowest} of {result.tables})"
    if isinstance(result, ExportResult):
        size = f"{result.grew_mib:,.0f} MiB above start"
        return f"{result.messages_per_s:,.0f} messages/s into {counted(result.files, 'Parquet file')}, {size}"
    match result.command:
        case "floor":
            return f"The floor: {floor.latency_ms_p50:.3f} ms (p50), {floor.messages_per_s:,.0f} messages/s"
        case "latency":
            ratio = result.latency_ms.p50 / floor.latency_ms_p50
            return f"{result.latency_ms.p50:.3f} ms (p50) from hand-over to three disks and back, {ratio:.2f} × the floor"
        case "scale":
            growth = cpu_growth(result)
            first, last = result.rows[0].partitions, result.rows[-1].partitions
            counts = f"{first} to {last} partitions" if first != last else counted(first, "partition")
            if growth is None:
                return f"{result.messages_per_s:,.0f} messages/s over {counts}"
            return f"{growth:+.1%} processor time a message from {counts}"
        case _:
            ratio = result.messages_per_s / floor.messages_per_s
            return f"{result.messages_per_s:,.0f} messages/s, {ratio:.2f} × the floor"


def _table(result: Result) -> Table:
    table = Table(show_header=False, box=None, pad_edge=False, padding=(0, 3, 0, 0))
    latency = result.latency_ms
    if isinstance(result, FailoverResult):
        _add_stalls(table, result)
    if isinstance(result, ReadingResult):
        _add_deliveries(table, result)
    if isinstance(result, SessionsResult):
        _add_sessions(table, result)
    if isinstance(result, RecipeResult):
        _add_recipe(table, result)
    span = "from the call to the table" if isinstance(result, TableResult) else "first hand-over to last ack"
    if isinstance(result, ExportResult):
        span = "from the call to the last file"
        table.add_row("memory", f"{result.grew_mib:+,.0f} MiB", "resident, at most, of the exporting process")
        table.add_row("files", f"{result.files:,}", f"{result.file_bytes / 1e6:,.0f} MB; every row read back by pyarrow alone")
    table.add_row(
        "rate", f"{result.messages_per_s:,.0f} messages/s", f"{result.messages:,} in {_seconds(result.seconds)}, {span}"
    )
    if latency.max:
        table.add_row(
            "latency",
            f"{latency.p50:.2f} ms p50",
            f"p99 {latency.p99:.2f}, p99.9 {latency.p999:.2f}, longest {latency.max:.2f}",
        )
    if result.command != "floor":
        table.add_row(
            "floor",
            f"{result.floor.messages_per_s:,.0f} messages/s",
            f"{result.floor.latency_ms_p50:.3f} ms p50, in this run",
        )
        cpu = result.cpu_us_per_message
        shares = _by_role(cpu)
        if isinstance(result, RecipeResult):
            shares = ", ".join(f"{who} {_us(used)}" for who, used in (("client", cpu.client), ("Redis", cpu.store)))
        table.add_row("processor", _us(cpu.total), shares)
    return table


def _add_stalls(table: Table, result: FailoverResult) -> None:
    stall, whole = result.stall_ms, result.whole_again_s
    table.add_row(
        "stall",
        f"{stall.p50:,.0f} ms p50",
        f"longest {stall.max:,.0f}; from the fault to the first ack of a message that was handed over afterwards",
    )
    each = " ".join(f"{one.stall_ms:,.0f}" for one in result.stalls[:STALLS_SHOWN_MAX])
    table.add_row("", counted(result.kills, "time"), each + (" …" if result.kills > STALLS_SHOWN_MAX else ""))
    table.add_row("longest gap", f"{result.longest_gap_ms:,.0f} ms", "between two acks of one partition, in the whole run")
    table.add_row("whole again", f"{whole.p50:.1f} s p50", f"longest {whole.max:.1f}; every actor and every copy is back")
    if result.settings["pause_s"] and result.settings["kill"] == "session":
        taken = sum(one.epoch > (one.victim_epoch or 0) for one in result.stalls)
        table.add_row("taken over", f"{taken} of {result.kills}", "pauses in which another writer stepped in")
    epochs = [f"{of_it[0]} to {of_it[-1]}" for of_it in result.epochs if of_it]
    shown = ", ".join(epochs[:8]) + (" …" if len(epochs) > 8 else "")
    table.add_row("epochs", f"{sum(map(len, result.epochs))} acked", f"{shown}; stale acks {result.stale_acks}")


def _add_sessions(table: Table, result: SessionsResult) -> None:
    for one in result.memory:
        parts = f"empty {one.empty_mib:.0f}, idle with all {one.full_mib:.0f}, restarted {one.restarted_mib:.0f}"
        table.add_row(one.name, f"{one.grew_mib:+,.0f} MiB", f"{parts}, read {one.read_mib:.0f}; of its own (USS)")
    restart = result.restart_s
    table.add_row(
        "restart",
        f"{restart.full:.1f} s",
        f"{restart.empty:.1f} with an empty log; `up` after kill -9 of all, to the first ack",
    )
    table.add_row("idle", f"after {result.idle_after_s:.0f} s", "the actors were busy for so long after the last ack")
    for name, latency in (("history", result.cold_history_ms), ("send", result.cold_send_ms)):
        what = f"p99 {latency.p99:.2f}, longest {latency.max:.2f}; the first of {result.asked_sessions:,} cold sessions"
        table.add_row(f"cold {name}", f"{latency.p50:.2f} ms p50", what)


def _add_recipe(table: Table, result: RecipeResult) -> None:
    lonely, crash, own = result.lonely_ms, result.crash, result.trilogue
    wait = result.settings["wait"]
    what = "one server" if not wait else f"a primary and {counted(wait, 'replica')}, WAIT {wait}"
    table.add_row("server", result.server, f"{what}; appendonly yes, appendfsync always")
    if crash is not None:
        at_random = crash.kills - crash.kills_between
        where = f"{crash.lost_between} by {crash.kills_between} kills between SET NX and XADD"
        rest = f"{crash.lost_for_good - crash.lost_between} by {at_random} at random"
        loss = Text(f"{crash.lost_for_good} lost for good", "bold red" if crash.lost_for_good else "green")
        table.add_row("crashes", loss, f"{where}, {rest}; of {counted(crash.messages, 'message')}, second run")
        table.add_row("", counted(crash.holes, "hole"), "in the numbering: INCR was done, and nothing added")
    table.add_row("one in flight", f"{lonely.p50:.2f} ms p50", f"p99 {lonely.p99:.2f}, p99.9 {lonely.p999:.2f}")
    if own is not None:
        table.add_row(
            "trilogue",
            f"{own.messages_per_s:,.0f} messages/s",
            f"the same load, three copies; one in flight {own.lonely_ms.p50:.2f} ms p50, p99 {own.lonely_ms.p99:.2f}",
        )


def _add_deliveries(table: Table, result: ReadingResult) -> None:
    lag, cpu = result.lag_ms, result.cpu_us_per_delivery
    table.add_row(
        "deliveries", f"{result.deliveries_per_s:,.0f} /s", f"{result.deliveries:,}; each reader's seqs and bodies checked"
    )
    if isinstance(result, CatchupResult):
        alone = result.writer_alone_ms
        table.add_row(
            "writer alone", f"{alone.p50:.2f} ms p50", f"p99 {alone.p99:.2f}, longest {alone.max:.2f}; latency below: meanwhile"
        )
    else:
        table.add_row(
            "lag", f"{lag.p50:.1f} ms p50", f"p99 {lag.p99:.1f}, longest {lag.max:.1f}; hand-over to the reader's code"
        )
        table.add_row(
            "behind", counted(result.behind_messages_max, "message"), "the slowest reader behind what was acked, at most"
        )
    roles = ("writer", cpu.writer), ("readers", cpu.readers), ("session", cpu.session), ("store", cpu.store)
    shares = ", ".join(f"{role} {'not known' if used is None else f'{_short(used)} µs'}" for role, used in roles)
    table.add_row("a delivery", "", shares)


def _rows(result: Result) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("partitions", "messages/s", "× floor", *ROLES, "sum µs", "lost/dup/reord"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in result.rows:
        cpu = row.cpu_us_per_message
        found = f"{row.lost}/{row.duplicated}/{row.reordered}"
        table.add_row(
            str(row.partitions),
            f"{row.messages_per_s:,.0f}",
            f"{row.messages_per_s / row.floor.messages_per_s:.2f}",
            *("–" if used is None else f"{used:.2f}" for used in (cpu.client, cpu.session, cpu.store, cpu.total)),
            Text(found, "green" if found == "0/0/0" else "bold red"),
        )
    return table


def _us(used: float | None) -> str:
    return "not known" if used is None else f"{_short(used)} µs a message"


def _by_role(cpu: CpuUs) -> str:
    parts = zip(ROLES, (cpu.client, cpu.session, cpu.store), strict=True)
    return ", ".join(f"{role} {'not known' if used is None else f'{_short(used)} µs'}" for role, used in parts)


def _in_words(setting: str) -> str:
    return setting.replace("_per_s", "/s").replace("_", " ")


def _seconds(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1000:.3g} ms"


def _short(used: float) -> str:
    return f"{used:.2f}" if used < 100 else f"{used:.0f}"
