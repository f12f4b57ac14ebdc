"""An export: whole files, each message once, only what is new the next time, and a comparison that notices what is wrong."""

from __future__ import annotations

import errno
import fcntl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import fs

from fake_session_actor import TOKEN, Cluster, FakeSessionActor, in_loop
from trilogue.actors.protocol.errors import DirectoryInUse, InvalidRange, NewerFormat, TrilogueError, UsageError, WrongCluster
from trilogue.actors.protocol.messages import RUN, Run
from trilogue.actors.protocol.vocabulary import Say
from trilogue.cluster.commands.find import Known
from trilogue.cluster.export import exporting, writing
from trilogue.cluster.export.comparing import _Comparison, compare
from trilogue.cluster.export.exporting import Chosen, _begin, export, read_manifest
from trilogue.cluster.export.manifest import MANIFEST, DataFile, Manifest, is_ours
from trilogue.cluster.export.ranges import RANGES, Exported, Ranges, coverage, rows_of
from trilogue.cluster.export.target import Target

EVERYTHING = Chosen([], None, 0)


class NoBars:
    def advance(self, part: str, done: int, total: int) -> None:
        pass


def silent(_: str) -> None:
    pass


@asynccontextmanager
async def system(sizes: dict[str, int]) -> AsyncIterator[tuple[Known, FakeSessionActor]]:
    """A system whose sessions have so many messages."""
    actor = FakeSessionActor(Cluster())
    for session, size in sizes.items():
        say_more(actor, session, size)
    address = await actor.start()
    try:
        yield Known([address], TOKEN, None), actor
    finally:
        await actor.server.close()


def say_more(actor: FakeSessionActor, session: str, count: int) -> None:
    said = actor.cluster.sessions.setdefault(session, [])
    said += [(f"ann/{'0' * 32}", n, b"%d" % n) for n in range(len(said) + 1, len(said) + count + 1)]


def trim(actor: FakeSessionActor, gone: dict[str, int]) -> None:
    """The messages of each session below that seq are gone."""
    whole = actor._request

    def without(connection: Any, say: int, items: list[Any]) -> Any:
        answer = whole(connection, say, items)
        if say == Say.SESSIONS:
            return [[[name, gone.get(name, 1), last] for name, _, last in answer[0]], answer[1]]
        if say == Say.RECORDS:
            for at, (session, after, last, _) in enumerate(items[2]):
                if after + 1 < gone.get(session, 1) and after < last:
                    before = whole(connection, say, [*items[:2], items[2][:at]])[0] if at else b""
                    return [before, [session, gone[session]]]
        return answer

    actor._request = without  # type: ignore[method-assign]


def rows(directory: Path) -> list[tuple[str, int, bytes]]:
    """What a stranger reads there."""
    if not list(directory.glob("partition=*/*.parquet")):
        return []
    return duckdb.sql(
        f"select session, seq, body from read_parquet('{directory}/**/*.parquet') order by session, seq"
    ).fetchall()


def expected(actor: FakeSessionActor) -> list[tuple[str, int, bytes]]:
    return [(name, n, body) for name, said in sorted(actor.cluster.sessions.items()) for _, n, body in said]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Row groups of about 20 rows, files of about 40."""
    monkeypatch.setattr(writing, "GROUP_ROWS", 20)
    monkeypatch.setattr(writing, "FILE_ROWS", 40)


@in_loop
async def test_export_has_each_message_once_sorted_with_statistics_and_a_second_run_adds_what_is_new(tmp_path: Path) -> None:
    async with system({"b": 70, "a": 30, "ü": 5}) as (known, actor):
        actor.page_messages = 25
        report = await export(known, str(tmp_path), EVERYTHING, silent)
        assert (report["messages"], report["sessions"], report["files"]) == (105, 3, 1)
        assert rows(tmp_path) == expected(actor)
        assert (await export(known, str(tmp_path), EVERYTHING, silent))["messages"] == 0
        say_more(actor, "a", 3)
        say_more(actor, "c", 2)
        report = await export(known, str(tmp_path), EVERYTHING, silent)
        assert (report["messages"], report["files"], report["messages_in_all"]) == (5, 1, 110)
        assert rows(tmp_path) == expected(actor)
        assert (await compare(known, str(tmp_path), NoBars()))["ok"]
    first, _ = sorted(tmp_path.glob("partition=00000/*.parquet"))
    parquet = pq.ParquetFile(first)
    names = parquet.read().select(["session", "seq"]).to_pylist()
    assert names == sorted(names, key=lambda row: (row["session"], row["seq"]))
    columns = {column.path_in_schema: column for k in range(8) if (column := parquet.metadata.row_group(0).column(k))}
    assert (columns["session"].statistics.min, columns["session"].statistics.max) == ("a", "ü")
    assert (columns["seq"].statistics.min, columns["seq"].statistics.max) == (1, 70)
    assert not columns["body"].is_stats_set
    assert [one.column_index for one in parquet.metadata.row_group(0).sorting_columns] == [0, 1]


@in_loop
async def test_export_that_is_cut_short_anywhere_leaves_whole_files_only_and_goes_on(tmp_path: Path, small: None) -> None:
    async with system({f"s{k}": 30 for k in range(6)}) as (known, actor):
        actor.page_messages = 10
        for cut in range(1, 6):
            said: list[str] = []

            def stop(what: str, said: list[str] = said, cut: int = cut) -> None:
                said.append(what)
                if len(said) > 1 and cut < 5:
                    raise KeyboardInterrupt

            try:
                await export(known, str(tmp_path), EVERYTHING, stop)
            except KeyboardInterrupt:
                assert cut < 5
            whole = rows(tmp_path)
            assert len(whole) == len(set(whole))
            assert set(whole) <= set(expected(actor))
            assert not list(tmp_path.glob("**/*.writing"))
        assert rows(tmp_path) == expected(actor)
        assert (await compare(known, str(tmp_path), NoBars()))["ok"]


@in_loop
async def test_rest_of_an_export_that_was_killed_is_removed_and_exported_again(tmp_path: Path, small: None) -> None:
    async with system({"s": 90}) as (known, actor):
        actor.page_messages = 10
        await export(known, str(tmp_path), EVERYTHING, silent)
        manifest = read_manifest(Target.open(str(tmp_path)))
        assert manifest is not None
        assert len(manifest.files) > 1
        fewer = Manifest(manifest.cluster, manifest.partitions, manifest.run, manifest.files[:-1])
        (tmp_path / MANIFEST).write_bytes(fewer.as_json())  # killed before it named its last file
        (tmp_path / "_trilogue/partition=00000-part.parquet.writing").write_bytes(b"half")
        report = await compare(known, str(tmp_path), NoBars())
        assert [(problem["kind"], problem["where"]) for problem in report["problems"]] == [("unnamed", manifest.files[-1].path)]
        assert "the next export removes it" in report["problems"][0]["text"]
        assert any("2 files of an export that was cut short" in note for note in report["notes"])
        await export(known, str(tmp_path), EVERYTHING, silent)
        assert rows(tmp_path) == expected(actor)
        assert not list(tmp_path.glob("**/*.writing"))


@in_loop
async def test_chosen_sessions_and_partitions_alone_are_exported(tmp_path: Path) -> None:
    async with system({"a": 9, "b": 9, "c": 9}) as (known, actor):
        report = await export(known, str(tmp_path), Chosen(["b", "none", "b"], None, 4), silent)
        assert (report["messages"], report["sessions"]) == (5, 1)
        assert rows(tmp_path) == [row for row in expected(actor) if row[0] == "b" and row[1] > 4]
        assert "partition 0: 18 messages of 2 sessions are not" in (await compare(known, str(tmp_path), NoBars()))["notes"][0]
        await export(known, str(tmp_path), Chosen([], 0, 0), silent)
        assert rows(tmp_path) == [row for row in expected(actor) if row[0] != "b" or row[1] > 4]
        with pytest.raises(UsageError, match="there is no partition 1"):
            await export(known, str(tmp_path), Chosen([], 1, 0), silent)
        with pytest.raises(InvalidRange):
            await export(known, str(tmp_path), Chosen([], None, -1), silent)


@in_loop
async def test_what_is_trimmed_is_passed_over_and_no_damage_afterwards(tmp_path: Path) -> None:
    async with system({"a": 20, "b": 20, "c": 20}) as (known, actor):
        trim(actor, {"b": 8, "c": 21})
        await export(known, str(tmp_path), EVERYTHING, silent)
        there = [row for row in expected(actor) if row[0] == "a" or (row[0] == "b" and row[1] >= 8)]
        assert rows(tmp_path) == there
        trim(actor, {"a": 15, "b": 11, "c": 21})
        report = await compare(known, str(tmp_path), NoBars())
        assert (report["ok"], report["messages"], report["trimmed"], report["newer"]) == (True, 6 + 10, 14 + 3, 0)
        assert any("17 messages of it were trimmed" in note for note in report["notes"])


def change(path: Path, how: Any) -> None:
    table = pq.ParquetFile(path).read()
    pq.write_table(how(table), path)


def with_body(table: pa.Table, at: int, body: bytes) -> pa.Table:
    bodies = table["body"].to_pylist()
    bodies[at] = body
    return table.set_column(table.schema.get_field_index("body"), table.schema.field("body"), [pa.array(bodies, pa.binary())])


DAMAGES = {
    "another body": (lambda path, actor: change(path, lambda t: with_body(t, 7, b"x")), "differs", "'s', seq 8: another body"),
    "a row too few": (lambda path, actor: change(path, lambda t: t.slice(1)), "damaged", "it has 19 rows"),
    "a row twice": (
        lambda path, actor: change(path, lambda t: pa.concat_tables([t.slice(0, 5), t.slice(4, 1), t.slice(6)])),
        "differs", "another seq",
    ),
    "a file gone": (lambda path, actor: path.unlink(), "missing", "the file is gone, and 20 messages"),
    "a file cut": (lambda path, actor: path.write_bytes(path.read_bytes()[:-7]), "damaged", "parquet"),
    "a stranger's file": (lambda path, actor: pq.write_table(pa.table({"x": range(20)}), path), "differs", "columns are x"),
    "no ranges": (lambda path, actor: next(path.parents[1].glob("_trilogue/*.ranges")).unlink(), "damaged", "ranges"),
    "the stores lost some": (lambda path, actor: actor.cluster.sessions["s"].pop(), "ahead", "ends at 19 in the stores"),
    "the stores lost all": (lambda path, actor: actor.cluster.sessions.clear(), "ahead", "ends at 0 in the stores"),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_comparison_notices(damage: str, tmp_path: Path) -> None:
    harm, kind, text = DAMAGES[damage]

    @in_loop
    async def noticed() -> None:
        async with system({"s": 20}) as (known, actor):
            await export(known, str(tmp_path), EVERYTHING, silent)
            assert (await compare(known, str(tmp_path), NoBars()))["ok"]
            harm(next(tmp_path.glob("partition=00000/*.parquet")), actor)
            report = await compare(known, str(tmp_path), NoBars())
            assert not report["ok"]
            assert report["problems"][0]["kind"] == kind
            assert text.lower() in (report["problems"][0]["text"] + report["problems"][0]["where"]).lower()

    noticed()


@in_loop
async def test_messages_that_two_files_have_are_noticed(tmp_path: Path) -> None:
    async with system({"s": 20}) as (known, _):
        target = Target.open(str(tmp_path))
        await export(known, str(tmp_path), EVERYTHING, silent)
        manifest = read_manifest(target)
        assert manifest is not None
        target.write(MANIFEST, manifest.with_file(manifest.files[0]).as_json())
        [problem] = (await compare(known, str(tmp_path), NoBars()))["problems"]
        assert problem["kind"] == "twice"
        assert "seq 1 is in more than one file" in problem["text"]


@in_loop
async def test_place_of_another_system_or_of_something_else_is_refused_and_not_changed(tmp_path: Path) -> None:
    async with system({"s": 2}) as (known, _):
        other, foreign, strange = tmp_path / "other", tmp_path / "foreign", tmp_path / "strange"
        Target.open(str(other)).write(MANIFEST, Manifest("another", 1, 1).as_json())
        for refused in (export(known, str(other), EVERYTHING, silent), compare(known, str(other), NoBars())):
            with pytest.raises(WrongCluster):
                await refused
        (foreign / "partition=00000").mkdir(parents=True)
        (foreign / "partition=00000/part-000001-00000.parquet").write_bytes(b"somebody's")
        (strange / "_trilogue").mkdir(parents=True)
        (strange / MANIFEST).write_bytes(b"[]")
        for place in (foreign, strange):
            with pytest.raises(UsageError, match="another directory"):
                await export(known, str(place), EVERYTHING, silent)
        assert (foreign / "partition=00000/part-000001-00000.parquet").read_bytes() == b"somebody's"
        for nowhere in ("", "nothing://there"):
            with pytest.raises(UsageError):
                await export(known, nowhere, EVERYTHING, silent)
        with pytest.raises(UsageError, match="it is no export"):
            await compare(known, str(tmp_path / "empty"), NoBars())


@in_loop
async def test_second_export_at_the_same_time_ends_the_first_and_spoils_nothing(tmp_path: Path, small: None) -> None:
    async with system({"s": 90}) as (known, actor):
        target = Target.open(str(tmp_path))

        def meddle(what: str) -> None:
            manifest = read_manifest(target)
            assert manifest is not None
            target.write(MANIFEST, manifest.next_run("00000000").as_json())

        with pytest.raises(TrilogueError, match="another export writes to"):
            await export(known, str(tmp_path), EVERYTHING, meddle)
        await export(known, str(tmp_path), EVERYTHING, silent)
        assert rows(tmp_path) == expected(actor)


def test_file_that_is_not_finished_is_never_under_its_name_wherever_it_is_written(tmp_path: Path) -> None:
    (tmp_path / "bucket").mkdir()
    bucket = fs.SubTreeFileSystem(str(tmp_path / "bucket"), fs.LocalFileSystem())
    for target in (Target.open(str(tmp_path / "directory")), Target(bucket, "export", "a bucket")):
        path = "partition=00007/part-000001-00000.parquet"

        def cut_short(target: Target = target, path: str = path) -> None:
            with target.writing(path) as stream:
                stream.write(b"half")
                assert target.read(path) is None
                raise KeyError

        with pytest.raises(KeyError):
            cut_short()
        assert target.files() == set()
        target.write(path, b"whole")
        assert target.files() == {path}
        target.write(path, b"another")
        assert target.read(path) == b"another"
        target.remove("no file of ours")
        target.remove(path)
        assert target.files() == set()


RANGE_LISTS = st.lists(st.tuples(st.sampled_from("abcü"), st.integers(1, 9), st.integers(0, 5)), max_size=12)


@given(RANGE_LISTS, RANGE_LISTS)
def test_end_of_what_is_exported_is_the_highest_seq_of_all_ranges(
    former: list[tuple[str, int, int]], later: list[tuple[str, int, int]]
) -> None:
    runs = (former, later)
    tables = [
        pa.table([list(c) for c in zip(*((s, first, first + more) for s, first, more in one), strict=True)] or [[], [], []],
                 schema=RANGES)
        for one in runs
    ]  # fmt: skip
    exported = Exported(tables)
    ends = {s: max((first + more for one in runs for name, first, more in one if name == s), default=0) for s in "abcdü"}
    assert {s: exported.last_seq(s) for s in sorted("abcdü")} == ends
    seqs = [(s, seq) for one in runs for s, first, more in one for seq in range(first, first + more + 1)]
    twice = {s for s, seq in seqs if seqs.count((s, seq)) > 1}
    covered = {one.session: one for one in coverage(tables)}
    assert {s for s, one in covered.items() if one.twice} == twice
    for name, one in covered.items():
        holes = {seq for first, last in one.holes for seq in range(first, last + 1)}
        assert holes == set(range(1, ends[name] + 1)) - {seq for s, seq in seqs if s == name}
        assert one.last_seq == ends[name]


def runs() -> Iterator[Run]:
    for session, first, count in (("a", 1, 3), ("a", 4, 2), ("a", 9, 1), ("b", 1, 1), ("b", 2, 1)):
        yield Run(RUN, session, f"ann/{'0' * 32}", 1, first, 1, [1] * count, [b""] * count)


def test_ranges_follow_sessions_and_what_was_trimmed_between() -> None:
    ranges = Ranges()
    for run in runs():
        ranges.take([run])
    assert list(rows_of(ranges.table)) == [("a", 1, 5), ("a", 9, 9), ("b", 1, 2)]
    assert ranges.sessions == 2


def test_manifest_is_read_as_it_was_written_and_a_newer_one_is_refused() -> None:
    manifest = Manifest("c", 4, 7, (DataFile("p", "r", 3, 5, 9, 1, "a", "ü"),))
    assert Manifest.of_json(manifest.as_json(), "here") == manifest
    with pytest.raises(NewerFormat, match="upgrade"):
        Manifest.of_json(b'{"trilogue_export": 99}', "here")


def test_only_names_of_an_export_are_its_own() -> None:
    assert is_ours("partition=00001/part-000001-00000.parquet")
    assert is_ours("partition=00001/part-000001-0123abcd-00000.parquet")
    assert is_ours("_trilogue/partition-00001-000001-00000.ranges")
    for name in (
        MANIFEST,
        "a.parquet",
        "partition=00000/part-copy.parquet",
        "partition=00000/part-000001-00000 (1).parquet",
        "partition=x/part-1.parquet",
        "partition=1/other.parquet",
        "notes/part-1.parquet",
        "",
    ):
        assert not is_ours(name)


@in_loop
async def test_what_is_trimmed_while_it_is_compared_is_no_damage_and_what_differs_still_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with system({"a": 2000, "b": 20}) as (known, actor):
        actor.page_messages = 50
        await export(known, str(tmp_path), EVERYTHING, silent)
        once, gone = _Comparison._bounds, [300, 400, 400, 2001]

        async def trimmed_then(self: Any, *asked: Any) -> Any:
            bounds = await once(self, *asked)
            if gone:
                trim(actor, {"a": gone.pop(0)})
            return bounds

        monkeypatch.setattr(_Comparison, "_bounds", trimmed_then)
        report = await compare(known, str(tmp_path), NoBars())
        assert (report["ok"], gone) == (True, [400, 2001])
        assert report["trimmed"] + report["messages"] == 2020
        gone.clear()
        change(next(tmp_path.glob("partition=00000/*.parquet")), lambda t: with_body(t, 1999, b"x"))
        [problem] = (await compare(known, str(tmp_path), NoBars()))["problems"]
        assert "'a', seq 2000: another body" in problem["text"]


@in_loop
async def test_file_that_doubles_rows_for_who_reads_the_directory_is_a_problem(tmp_path: Path) -> None:
    async with system({"s": 20}) as (known, _):
        await export(known, str(tmp_path), EVERYTHING, silent)
        whole = next(tmp_path.glob("partition=00000/*.parquet"))
        names = ("part-copy.parquet", "copy.parquet", whole.name.replace("part-000001", "part-000002"), "../copy.parquet")
        for name in names:
            copy = whole.parent / name
            copy.write_bytes(whole.read_bytes())
            [problem] = (await compare(known, str(tmp_path), NoBars()))["problems"]
            assert problem["kind"] == "unnamed"
            assert copy.resolve() == tmp_path.resolve() / problem["where"]
            assert ("the next export removes it" if "000002" in name else "move it elsewhere") in problem["text"]
            await export(known, str(tmp_path), EVERYTHING, silent)
            assert copy.exists() != ("000002" in name)  # what no export has written is never removed
            copy.unlink(missing_ok=True)


def as_plain(table: pa.Table) -> pa.Table:
    """As other software writes it: names without dictionaries, large binaries, nothing that says what it was."""
    columns = {name: table[name] for name in table.schema.names}
    columns |= {name: table[name].cast(pa.string()) for name in ("session", "sender", "sender_id")}
    return pa.table(columns | {"body": table["body"].cast(pa.large_binary())})


@in_loop
async def test_file_that_other_software_wrote_anew_is_the_same_also_when_some_is_trimmed(tmp_path: Path) -> None:
    async with system({"s": 20, "t": 20}) as (known, actor):
        await export(known, str(tmp_path), EVERYTHING, silent)
        change(next(tmp_path.glob("partition=00000/*.parquet")), as_plain)
        report = await compare(known, str(tmp_path), NoBars())
        assert (report["ok"], report["messages"]) == (True, 40)
        trim(actor, {"s": 5})
        report = await compare(known, str(tmp_path), NoBars())
        assert (report["ok"], report["messages"], report["trimmed"]) == (True, 36, 4)


def retyped(name: str, kind: pa.DataType) -> Any:
    return lambda path, actor: change(path, lambda t: t.set_column(t.schema.get_field_index(name), name, t[name].cast(kind)))


def with_null(path: Path, actor: FakeSessionActor) -> None:
    change(path, lambda t: t.set_column(7, "body", pa.array([*t["body"].to_pylist()[:3], None, *t["body"].to_pylist()[4:]])))


ODD = {
    "a number as text": (retyped("seq", pa.string()), "its column seq is of type string"),
    "a time without a zone": (retyped("sent_at", pa.timestamp("us")), "its column sent_at is of type timestamp[us]"),
    "no session": (lambda path, actor: change(path, lambda t: t.drop_columns("session")), "its columns are seq, sender"),
    "no body": (with_null, "'s', seq 4: another body"),
}


@pytest.mark.parametrize("trimmed", [1, 3])
@pytest.mark.parametrize("damage", ODD)
def test_comparison_says_what_is_odd_about_columns(damage: str, trimmed: int, tmp_path: Path) -> None:
    harm, text = ODD[damage]

    @in_loop
    async def noticed() -> None:
        async with system({"s": 20}) as (known, actor):
            await export(known, str(tmp_path), EVERYTHING, silent)
            harm(next(tmp_path.glob("partition=00000/*.parquet")), actor)
            trim(actor, {"s": trimmed})
            [problem] = (await compare(known, str(tmp_path), NoBars()))["problems"]
            assert problem["kind"] == "differs"
            assert text in problem["text"]

    noticed()


@in_loop
async def test_comparison_never_breaks_off_whichever_byte_of_a_file_is_another_one(tmp_path: Path) -> None:
    async with system({"s": 20}) as (known, _):
        await export(known, str(tmp_path), EVERYTHING, silent)
        for path in (*tmp_path.glob("partition=00000/*.parquet"), *tmp_path.glob("_trilogue/*.ranges")):
            whole, noticed = path.read_bytes(), 0
            places = range(0, len(whole), 23)
            for at in places:
                path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x21]) + whole[at + 1 :])
                noticed += not (await compare(known, str(tmp_path), NoBars()))["ok"]
            path.write_bytes(whole)
            assert noticed > len(places) / 4  # the others lie where no reader looks, in statistics, or in padding


@in_loop
async def test_second_export_into_a_directory_is_refused_while_the_first_one_runs(tmp_path: Path) -> None:
    async with system({"s": 90}) as (known, _):
        with Target.open(str(tmp_path)).lock() as is_alone:
            assert is_alone
            with pytest.raises(DirectoryInUse, match="another export writes to"):
                await export(known, str(tmp_path), EVERYTHING, silent)
            with pytest.raises(UsageError):  # it is no export yet: nothing was written
                await compare(known, str(tmp_path), NoBars())
        assert (await export(known, str(tmp_path), EVERYTHING, silent))["messages"] == 90


@in_loop
async def test_two_exports_where_no_lock_can_be_had_remove_nothing_of_each_other(
    tmp_path: Path, small: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    async with system({"s": 90}) as (known, actor):
        once, reads = exporting.read_manifest, 0

        def between(target: Target) -> Any:
            """Another export begins when the first one has looked whether it is alone, and will name its file at once."""
            nonlocal reads
            manifest, reads = once(target), reads + 1
            if reads == 3:
                _begin(Target.open(str(tmp_path)), "test", 1, is_alone=False)
            return manifest

        monkeypatch.setattr(exporting, "read_manifest", between)
        await export(known, str(tmp_path), EVERYTHING, silent)
        await export(known, str(tmp_path), EVERYTHING, silent)
        assert rows(tmp_path) == expected(actor)
        assert (await compare(known, str(tmp_path), NoBars()))["ok"]
        left = tmp_path / "partition=00000/part-000001-0123abcd-00000.parquet"
        left.write_bytes(next(tmp_path.glob("partition=00000/*.parquet")).read_bytes())
        await export(known, str(tmp_path), EVERYTHING, silent)
        assert left.exists()


@in_loop
async def test_files_of_two_runs_that_began_with_the_same_manifest_have_different_names(tmp_path: Path) -> None:
    async with system({"s": 2}) as (known, _):
        names = set()
        for place in ("a", "b"):
            await export(known, str(tmp_path / place), EVERYTHING, silent)
            names |= {path.name for path in (tmp_path / place).glob("*/*") if path.suffix in (".parquet", ".ranges")}
        assert len(names) == 4


@in_loop
async def test_first_export_that_was_killed_while_it_wrote_its_manifest_is_made_again(tmp_path: Path) -> None:
    (tmp_path / "_trilogue").mkdir()
    half = tmp_path / "_trilogue/_trilogue-manifest.json.writing"
    half.write_bytes(b"{")
    async with system({"s": 2}) as (known, actor):
        await export(known, str(tmp_path), EVERYTHING, silent)
        assert rows(tmp_path) == expected(actor)
        assert not half.exists()


def test_only_the_folders_of_an_export_are_looked_into(tmp_path: Path) -> None:
    for folder in ("lost+found", "partition=00000", "other"):
        (tmp_path / folder / "partition=00000").mkdir(parents=True)
        (tmp_path / folder / "part-000001-00000.parquet").touch()
        (tmp_path / folder / "partition=00000/part-000001-00000.parquet").touch()
    found = Target.open(str(tmp_path)).files()
    assert found == {f"partition=00000/{name}part-000001-00000.parquet" for name in ("", "partition=00000/")}


def test_places_and_manifests_that_make_no_sense_are_refused_in_a_line(tmp_path: Path) -> None:
    for nowhere in ("/", "file:///", "s3://", "gs://", "nothing://there", "\udcff", str(tmp_path / "\udcff"), "file:///\udcff"):
        with pytest.raises(UsageError) as error:
            Target.open(nowhere)
        str(error.value).encode()
    good = Manifest("c", 1, 1, (DataFile("p", "r", 0, 5, 9, 1, "a", "ü"),)).as_json()
    for wrong in (b'"run": "x"', b'"run": null', b'"run": []'):
        with pytest.raises(UsageError, match=r"run: Input should be a valid integer.*; name another directory"):
            Manifest.of_json(good.replace(b'"run": 1', wrong), "here")
    with pytest.raises(UsageError, match=r"files\.0\.path: Input should be a valid string"):
        Manifest.of_json(good.replace(b'"path": "p"', b'"path": 1'), "here")
    for wrong in (b"\xff\xfe", b"[]", b"1", b"null", b"{}", b'{"trilogue_export": 1}'):
        with pytest.raises(UsageError, match="that is no manifest"):
            Manifest.of_json(wrong, "here")


@in_loop
async def test_what_after_left_out_is_a_note_and_what_is_missing_between_files_is_a_problem(tmp_path: Path) -> None:
    async with system({"a": 30, "b": 5}) as (known, actor):
        await export(known, str(tmp_path), Chosen([], None, 20), silent)
        await export(known, str(tmp_path), EVERYTHING, silent)
        report = await compare(known, str(tmp_path), NoBars())
        assert report["ok"]
        assert any("20 messages were left out by --after 20" in note for note in report["notes"])
        target = Target.open(str(tmp_path))
        manifest = read_manifest(target)
        assert manifest is not None
        target.write(MANIFEST, replace(manifest, after=15).as_json())
        report = await compare(known, str(tmp_path), NoBars())
        [problem] = report["problems"]
        assert (problem["kind"], problem["where"]) == ("hole", "session 'a'")
        assert "5 messages from seq 16 on are in no file" in problem["text"]
        assert any("15 messages were left out" in note for note in report["notes"])
        trim(actor, {"a": 21})
        report = await compare(known, str(tmp_path), NoBars())
        assert report["ok"]
        assert not any("left out" in note for note in report["notes"])
