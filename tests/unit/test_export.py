"""An export: whole files, each message once, only what is new the next time, and a comparison that notices what is wrong."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
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
from trilogue.actors.protocol.errors import InvalidRange, NewerFormat, TrilogueError, UsageError, WrongCluster
from trilogue.actors.protocol.messages import RUN, Run
from trilogue.actors.protocol.vocabulary import Say
from trilogue.cluster.commands.find import Known
from trilogue.cluster.export import writing
from trilogue.cluster.export.comparing import compare, overlaps
from trilogue.cluster.export.exporting import Chosen, export, read_manifest
from trilogue.cluster.export.manifest import MANIFEST, RANGES, DataFile, Exported, Manifest, Ranges, is_ours, rows_of
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
        assert report["ok"]
        assert any("3 files of an export that was cut short" in note for note in report["notes"])
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
            target.write(MANIFEST, manifest.next_run().as_json())

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
    assert {s for s, _ in overlaps(tables)} == twice


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
    assert is_ours("_trilogue/partition-00001-000001-00000.ranges")
    for name in (MANIFEST, "a.parquet", "partition=x/part-1.parquet", "partition=1/other.parquet", "notes/part-1.parquet", ""):
        assert not is_ours(name)
