"""The command line: `trilogue`, and `python -m trilogue.cluster`.

Owns the commands' names and options, their exit codes (0 fine, 1 the answer is no, 2 wrong usage) and the rule that
an error is one line. It must not know how a command works: what is heavy is imported when it runs. Other packages
add commands through the entry-point group `trilogue.commands`; a command of our own never waits for them to be
imported.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from trilogue.actors.protocol.errors import TrilogueError, UsageError, counted
from trilogue.cluster.commands.output import json_text, prepare_streams, silence

if TYPE_CHECKING:
    from trilogue.cluster.commands.find import Known

PLUGINS = "trilogue.commands"
FINE, NO, WRONG_USAGE, INTERRUPTED = 0, 1, 2, 130

app = typer.Typer(
    name="trilogue",
    help="A conversation kept by three: every message on three disks before its sender hears `stored`.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def named_path(text: str) -> Path:
    """The parser of every option that names a file or a directory: an empty name would be the working directory."""
    if not text:
        raise typer.BadParameter("it is empty: name a file or a directory")
    return Path(text)


Address = Annotated[
    str | None,
    typer.Option("--address", metavar="HOST:PORT", help="Any actor of the system; the token comes from TRILOGUE_TOKEN_FILE."),
]
Data = Annotated[Path | None, typer.Option("--data", metavar="DIR", parser=named_path, help="The system's data directory.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object, whose keys stay what they are.")]


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False,
) -> None:
    if version:
        from importlib.metadata import version as version_of

        typer.echo(f"trilogue {version_of('trilogue')}")
        raise typer.Exit(FINE)
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit(WRONG_USAGE)


@app.command()
def up(
    partitions: Annotated[int | None, typer.Option(metavar="N", help="Partitions of new data (4); fixed from then on.")] = None,
    copies: Annotated[int | None, typer.Option(metavar="N", help="Stores that hold each message (3).")] = None,
    stores: Annotated[
        int | None, typer.Option(metavar="N", help="Stores in all (one more than copies; one a node on a cluster); may grow.")
    ] = None,
    store: Annotated[
        list[str] | None,
        typer.Option(
            metavar="URL",
            help="Where a store is: file://DIR, redis://HOST:PORT/DB or rediss://…; once for each, instead of --stores.",
        ),
    ] = None,
    spare_sessions: Annotated[
        int | None, typer.Option(metavar="N", help="SessionActors that wait to take a partition over (1).")
    ] = None,
    min_copies: Annotated[
        int | None, typer.Option(metavar="N", help="Go on with so many copies while stores are missing (as many as copies).")
    ] = None,
    keep_for: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="Let messages go that are older: 30d, 12h, 90m or 45s; `forever` keeps them again. Stays in force until it is "
            "said otherwise.",
        ),
    ] = None,
    keep_bytes: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Let a partition's oldest messages go when it has more: 50GiB or 500MB; `all` keeps them again. With both "
            "options, whichever lets go first.",
        ),
    ] = None,
    data: Data = None,
    listen: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            help="Where actors listen (127.0.0.1:0): PORT is the first one, 0 any; 0.0.0.0 opens it to the network.",
        ),
    ] = None,
    ray_address: Annotated[
        str | None, typer.Option(metavar="ADDR", help="Join this Ray (HOST:PORT of its head) instead of starting one.")
    ] = None,
    spread: Annotated[
        bool | None,
        typer.Option("--spread/--no-spread", help="One store a Ray node; without it, where there are enough nodes."),
    ] = None,
    allow_tmpfs: Annotated[bool, typer.Option("--allow-tmpfs", help="Take a data directory that a power cut empties.")] = False,
    timeout: Annotated[float, typer.Option(metavar="S", min=1, help="How long starting may take.")] = 90.0,
) -> None:
    """Start the system, and leave it running."""
    from trilogue.cluster.commands import show
    from trilogue.cluster.commands.up_down import up as start
    from trilogue.cluster.settings.asked import settings_of

    if store and stores not in (None, len(store)):
        raise UsageError(f"--stores {stores} and {counted(len(store), 'place')} with --store: leave --stores out")
    settings = settings_of(
        partitions=partitions, copies=copies, stores=store or stores, spare_sessions=spare_sessions, min_copies=min_copies,
        keep_for=keep_for, keep_bytes=keep_bytes, data=data, listen=listen, spread=spread, allow_tmpfs=allow_tmpfs,
    )  # fmt: skip
    with show.progress() as progress:
        outcome = start(settings, ray_address, timeout, progress)
    show.started(outcome)


@app.command()
def down(address: Address = None, data: Data = None) -> None:
    """End what `up` started. The data stays."""
    from trilogue.cluster.commands import show
    from trilogue.cluster.commands.up_down import down as end

    with show.progress() as progress:
        ended = end(address, data, progress)
    if ended is None:
        typer.echo("nothing was running")
    else:
        typer.echo(f"ended; the data is kept in {ended.data}")


@app.command()
def status(address: Address = None, data: Data = None, json: Json = False) -> None:
    """Show where everything is and how it is. Exit code 1 unless every partition is open."""
    from trilogue.cluster.commands.find import locate
    from trilogue.cluster.commands.status import gather, healthy, render

    found = asyncio.run(gather(locate(address, data)))
    if json:
        _print_json(found)
    else:
        render(found)
    raise typer.Exit(FINE if healthy(found) else NO)


@app.command()
def send(
    session: Annotated[str, typer.Argument(metavar="SESSION", help="The session's id.")],
    text: Annotated[str, typer.Argument(metavar="TEXT", help="What to say.")],
    sender: Annotated[str | None, typer.Option(metavar="NAME", help="Who says it (you).")] = None,
    outbox: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", parser=named_path, help="Keep it here until it is acked: the next send with this file sends it."
        ),
    ] = None,
    timeout: Annotated[float, typer.Option(metavar="S", help="How long to wait for the ack.")] = 10.0,
    address: Address = None,
    data: Data = None,
) -> None:
    """Send one message, and wait until it is on every store. Exit code 1: it may have been stored."""
    from trilogue.cluster.commands import talk
    from trilogue.cluster.commands.find import locate

    ack = asyncio.run(talk.send(locate(address, data), session, text, sender, outbox, timeout))
    typer.echo(f"{ack.session} {ack.seq}: stored on {counted(ack.copies, 'store')}")


@app.command()
def tail(
    session: Annotated[str, typer.Argument(metavar="SESSION", help="The session's id.")],
    after: Annotated[
        int | None, typer.Option(metavar="SEQ", help="Only what follows this seq (without it: the newest that are there).")
    ] = None,
    limit: Annotated[int | None, typer.Option(metavar="N", min=1, help="At most so many (10 of the newest).")] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what comes.")] = False,
    json: Annotated[bool, typer.Option("--json", help="One JSON object a message.")] = False,
    address: Address = None,
    data: Data = None,
) -> None:
    """Print a session's messages: seq, time, sender, text."""
    from trilogue.cluster.commands import talk
    from trilogue.cluster.commands.find import locate

    asyncio.run(talk.tail(locate(address, data), session, after, limit, follow=follow, as_json=json))


@app.command()
def trim(
    session: Annotated[str, typer.Argument(metavar="SESSION", help="The session's id.")],
    before: Annotated[
        int, typer.Option(metavar="SEQ", help="All messages below this seq; the last seq + 1 for all there are.")
    ],
    json: Json = False,
    address: Address = None,
    data: Data = None,
) -> None:
    """Let a session's older messages go, for good. Numbers go on where they were. Exit code 1: it may have been done."""
    from trilogue.cluster.commands import talk
    from trilogue.cluster.commands.find import locate

    first = asyncio.run(talk.trim(locate(address, data), session, before))
    if json:
        _print_json({"session": session, "before": before, "first_available": first})
    else:
        typer.echo(talk.trimmed(session, first))


@app.command()
def export(
    to: Annotated[str, typer.Option("--to", metavar="DIR_OR_URL", help="A directory, or s3://…, gs://…: new files are added.")],
    session: Annotated[list[str] | None, typer.Option(metavar="S", help="Only this session; said again: these.")] = None,
    partition: Annotated[int | None, typer.Option(metavar="P", help="Only this partition.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Everything; so it is without --session and --partition.")] = False,
    after: Annotated[int, typer.Option(metavar="SEQ", help="Of each session only what follows this seq.")] = 0,
    address: Address = None,
    data: Data = None,
    json: Json = False,
) -> None:
    """Write histories as Parquet files, sorted by session and seq. A second run adds what is new since the first."""
    from trilogue.cluster.commands import show
    from trilogue.cluster.commands.find import locate
    from trilogue.cluster.export.exporting import Chosen
    from trilogue.cluster.export.exporting import export as write

    if (session is not None) + (partition is not None) + everything > 1:
        raise UsageError("say one of --session, --partition and --all")
    with show.progress() as progress:
        report = asyncio.run(write(locate(address, data), to, Chosen(session or [], partition, after), progress))
    if json:
        _print_json(report)
    else:
        show.exported(report)


@app.command()
def verify(
    address: Address = None,
    data: Data = None,
    json: Json = False,
    export: Annotated[
        str | None, typer.Option("--export", metavar="DIR_OR_URL", help="Compare an export with the stores instead.")
    ] = None,
    repair: Annotated[
        bool, typer.Option("--repair", help="Of a system that is down: make its damaged stores whole from the others.")
    ] = False,
    accept_loss: Annotated[
        bool, typer.Option("--accept-loss", help="With --repair: go on without what no store has any more.")
    ] = False,
) -> None:
    """Re-read every frame on every store, and check that nothing is damaged, lost, doubled or out of order.

    When the system is down, the stores' directories of this machine are read.
    """
    from trilogue.cluster.commands import show
    from trilogue.cluster.commands.find import locate
    from trilogue.cluster.commands.repair import repair as mend
    from trilogue.cluster.commands.repair import verify_up_or_down

    if accept_loss and not repair:
        raise UsageError("--accept-loss is said with --repair")
    if export is not None and repair:
        raise UsageError("--export compares, and --repair mends stores: say one of them")
    if export is not None:
        _verify_export(locate(address, data), export, json)
    with show.bars() as bars:
        report = mend(address, data, bars, accept_loss=accept_loss) if repair else verify_up_or_down(address, data, bars)
    if json:
        _print_json(report)
    else:
        show.verified(report)
    raise typer.Exit(FINE if report["ok"] else NO)


def _verify_export(known: Known, export: str, json: bool) -> NoReturn:
    from trilogue.cluster.commands import show
    from trilogue.cluster.export.comparing import compare

    with show.bars() as bars:
        report = asyncio.run(compare(known, export, bars))
    if json:
        _print_json(report)
    else:
        show.compared(report)
    raise typer.Exit(FINE if report["ok"] else NO)


@app.command()
def rescue(
    lost: Annotated[
        list[str] | None,
        typer.Option(
            "--lost", metavar="STORE", help="This store is gone for good, or its directory is: once for each such one."
        ),
    ] = None,
    accept_loss: Annotated[
        bool, typer.Option("--accept-loss", help="Go on also when only the lost stores may have had some acked messages.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    address: Address = None,
    data: Data = None,
    json: Json = False,
) -> None:
    """Bring a running system back whose stores are gone for good in such a number that its register stands still.

    Nothing is done while a majority of the register's stores answers: lost stores are then replaced by themselves.
    """
    from trilogue.cluster.commands import show
    from trilogue.cluster.commands.find import locate
    from trilogue.cluster.commands.rescue import Facts
    from trilogue.cluster.commands.rescue import rescue as bring_back

    def confirm(facts: Facts) -> bool:
        show.rescue_asked(facts)
        if yes:
            return True
        if not sys.stdin.isatty():
            raise UsageError("nobody can be asked here: say --yes")
        return typer.confirm("Are the lost stores gone for good, and shall this be done?", default=False, err=True)

    with show.lines() as say:
        report = asyncio.run(bring_back(locate(address, data), lost or [], confirm, say, accept_loss=accept_loss))
    if report is None:
        typer.echo("nothing was changed")
        raise typer.Exit(NO)
    if json:
        _print_json(report)
    else:
        show.rescued(report)
    raise typer.Exit(FINE if report["ok"] else NO)


def main() -> None:
    """The `trilogue` script."""
    prepare_streams()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # `timeout` and service managers: end as after Ctrl-C
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run one command line; return its exit code. Errors are one line on standard error, never a traceback."""
    logging.getLogger("trilogue").addHandler(logging.NullHandler())  # else Python prints warnings beside the one line
    _add_plugins(arguments)
    try:
        code = app(arguments, prog_name="trilogue", standalone_mode=False)
        sys.stdout.flush()
        # The option parser turns Ctrl-C into this code, without a word.
        return _say("interrupted", INTERRUPTED) if code == INTERRUPTED else int(code or FINE)
    except UsageError as error:
        return _say(error, WRONG_USAGE)
    except TrilogueError as error:
        return _say(error, NO)
    except (KeyboardInterrupt, typer.Abort):
        return _say("interrupted", INTERRUPTED)
    except BrokenPipeError:
        # Whoever read our output has seen enough; what Python still holds for it must not be written at exit.
        silence(sys.stdout)
        return FINE
    except OSError as error:
        return _say(f"{error.filename or ''} {error.strerror or error}".strip(), NO)
    except Exception as error:
        return _say_usage(error)


def _add_plugins(arguments: list[str]) -> None:
    """Add the commands of other packages, unless the command is one of ours: theirs may be slow to import."""
    first = next((word for word in arguments if not word.startswith("-")), None)
    if first is not None and first in {command.callback.__name__ for command in app.registered_commands if command.callback}:
        return
    from importlib.metadata import entry_points

    present = {group.name for group in app.registered_groups}
    for point in entry_points(group=PLUGINS):
        if point.name not in present:
            try:
                app.add_typer(point.load(), name=point.name)
            except ImportError as error:
                _say(f"the command {point.name!r} cannot be loaded: {error}", NO)


def _say(what: object, code: int) -> int:
    line = " ".join(str(what).split()) or type(what).__name__
    print(f"trilogue: {line}", file=sys.stderr)
    return code


def _say_usage(error: Exception) -> int:
    """An error of the option parser, whichever module of typer or click it comes from; anything else is a bug, and
    raised.
    """
    message: Callable[[], str] | None = getattr(error, "format_message", None)
    if message is None:
        raise error
    if type(error).__name__ == "NoArgsIsHelpError":
        print(message())
        return WRONG_USAGE
    context: Any = getattr(error, "ctx", None)
    hint = f"; see `{context.command_path} --help`" if context is not None else ""
    return _say(f"{message().rstrip('.')}{hint}", int(getattr(error, "exit_code", WRONG_USAGE)))


def _print_json(value: dict[str, Any]) -> None:
    """The exit code follows, whether anybody reads this to its end or not."""
    try:
        typer.echo(json_text(value, indent=1))
    except BrokenPipeError:
        silence(sys.stdout)
