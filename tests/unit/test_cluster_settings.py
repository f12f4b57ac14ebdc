"""Settings and the data directory: bad ones are refused in one line, and what data was created with is kept."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import pytest

from trilogue.actors.config import SessionConfig
from trilogue.actors.protocol.errors import (
    DataError,
    DirectoryUnusable,
    InvalidSettings,
    NewerFormat,
    SettingsDiffer,
    TrilogueError,
)
from trilogue.cluster.settings.asked import Settings, as_asked, check_running, keep_record, open_data, settings_of
from trilogue.cluster.settings.config import (
    ClusterRecord,
    actor_names,
    read_record,
    session_names,
    split_listen,
    store_names,
)


def start(settings: Settings, nodes: int = 1) -> ClusterRecord:
    """What a start does with the data directory."""
    open_data(settings)
    kept = read_record(settings.data)
    assert kept is not None
    record = as_asked(settings, kept, nodes)
    keep_record(settings, record)
    return record


def config_of(record: ClusterRecord) -> SessionConfig:
    """What a SessionActor of the system is told."""
    stores = store_names(record)
    return SessionConfig(
        "session-0", record.partitions, record.cluster, record.log_id, stores, record.copies, record.min_copies, "", "",
        first_stores=stores[: record.first_stores],
    )  # fmt: skip


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"partitions": 0}, "--partitions 0"),
        ({"partitions": -3}, "--partitions -3"),
        ({"partitions": 1025}, "1 to 1024"),
        ({"partitions": "four"}, "--partitions four"),
        ({"copies": 0}, "--copies 0"),
        ({"copies": 10**9}, "--copies 1000000000"),
        ({"stores": 65}, "--stores 65"),
        ({"copies": 4, "stores": 3}, "--stores 4 at least"),
        ({"spare_sessions": -1}, "--spare-sessions -1: give a whole number from 0 to 64"),
        ({"min_copies": 0}, "--min-copies 0"),
        ({"listen": "127.0.0.1:http"}, "HOST:PORT"),
        ({"listen": "127.0.0.1:65536"}, "HOST:PORT"),
        ({"listen": ":80"}, "HOST:PORT"),
        ({"data": "a\0b"}, "is no path"),
        ({"data": ""}, "is no path"),
        ({"keep_for": "0"}, "--keep-for 0: write how long, as in 30d, 12h, 90m or 45s (1s to 36500d), or forever"),
        ({"keep_bytes": "0"}, "--keep-bytes 0: write how much, as in 50GiB, 500MB or 1000000, or all"),
    ],
)
def test_settings_that_make_no_sense_are_refused_in_one_line(tmp_path: Path, values: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidSettings) as refusal:
        settings_of(**{"data": tmp_path, **values})
    assert named in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_directory_whose_name_no_file_system_takes_is_unusable() -> None:
    with pytest.raises(TrilogueError):
        open_data(settings_of(data="/proc/self/" + "x" * 300))


@pytest.mark.parametrize(
    ("listen", "expected"),
    [
        ("127.0.0.1:0", ("127.0.0.1", 0)),
        ("localhost", ("localhost", 0)),
        ("[::1]:7000", ("::1", 7000)),
        ("[::1]", ("::1", 0)),
        ("0.0.0.0:65535", ("0.0.0.0", 65535)),
    ],
)
def test_a_listen_address_is_a_host_and_perhaps_a_port(listen: str, expected: tuple[str, int]) -> None:
    assert split_listen(listen) == expected


def test_data_is_created_once_and_keeps_its_settings(tmp_path: Path) -> None:
    record, token = open_data(settings_of(data=tmp_path / "data", partitions=8))
    assert (record.partitions, record.copies, record.stores, record.min_copies, record.spare_sessions) == (8, 3, 4, 3, 1)
    assert 0 < record.log_id < 2**63
    assert open_data(settings_of(data=tmp_path / "data")) == (record, token)
    assert open_data(settings_of(data=tmp_path / "data", partitions=8, copies=3, stores=4)) == (record, token)


def test_two_data_directories_are_two_clusters(tmp_path: Path) -> None:
    one, other = (open_data(settings_of(data=tmp_path / name)) for name in ("one", "other"))
    assert one[0].cluster != other[0].cluster
    assert one[0].log_id != other[0].log_id
    assert one[1] != other[1]


def test_the_token_is_for_its_owner_alone(tmp_path: Path) -> None:
    open_data(settings_of(data=tmp_path / "data"))
    assert stat.S_IMODE((tmp_path / "data" / "token").stat().st_mode) == 0o600


@pytest.mark.parametrize("change", [{"partitions": 5}, {"copies": 2}, {"stores": 3}])
def test_other_settings_than_the_data_was_created_with_are_refused(tmp_path: Path, change: dict[str, int]) -> None:
    start(settings_of(data=tmp_path))
    with pytest.raises(SettingsDiffer, match="does not exist yet"):
        open_data(settings_of(data=tmp_path, **change))


@pytest.mark.parametrize("min_copies", [1, 4])
def test_as_few_or_as_many_copies_as_make_no_sense_are_refused_and_nothing_is_created(tmp_path: Path, min_copies: int) -> None:
    """G1: what is on one store only is not called stored, unless all of it is on one from the start."""
    with pytest.raises(InvalidSettings, match=f"--min-copies {min_copies}: with 3 copies give a whole number from 2 to 3"):
        open_data(settings_of(data=tmp_path, min_copies=min_copies))
    assert not (tmp_path / "cluster.json").exists()
    record, _ = open_data(settings_of(data=tmp_path / "one", copies=1, min_copies=1))
    assert (record.stores, record.min_copies) == (2, 1)


def test_stores_become_more_at_a_start_and_never_fewer_and_partitions_stay_founded_where_they_were(tmp_path: Path) -> None:
    """G2: whoever founds a partition late still looks where its first writers have looked."""
    record = start(settings_of(data=tmp_path, stores=3))
    founded = [config_of(record).ensemble(partition) for partition in range(4)]
    grown = start(settings_of(data=tmp_path, stores=5))
    assert (grown.stores, grown.first_stores) == (5, 3)
    assert grown == record._replace(stores=5)
    assert [config_of(grown).ensemble(partition) for partition in range(4)] == founded
    assert open_data(settings_of(data=tmp_path))[0] == grown
    with pytest.raises(SettingsDiffer, match="use --stores 5 or more"):
        open_data(settings_of(data=tmp_path, stores=4))


def test_what_is_asked_for_otherwise_is_kept_only_when_a_start_was_found_possible(tmp_path: Path) -> None:
    start(settings_of(data=tmp_path))
    before = (tmp_path / "cluster.json").read_text()
    asked, _ = open_data(settings_of(data=tmp_path, stores=6, min_copies=2, spare_sessions=3))
    assert (asked.stores, asked.min_copies, asked.spare_sessions) == (6, 2, 3)
    assert (tmp_path / "cluster.json").read_text() == before
    start(settings_of(data=tmp_path, min_copies=2, spare_sessions=0))
    again = start(settings_of(data=tmp_path))
    assert (again.min_copies, again.spare_sessions) == (2, 0)
    assert start(settings_of(data=tmp_path, min_copies=3, spare_sessions=2)).min_copies == 3


def test_new_data_gets_one_store_a_node_on_a_cluster_and_a_spare_one_on_a_single_node(tmp_path: Path) -> None:
    assert start(settings_of(data=tmp_path / "one"), nodes=1).stores == 4
    assert start(settings_of(data=tmp_path / "two"), nodes=2).stores == 4
    assert start(settings_of(data=tmp_path / "five"), nodes=5).stores == 5
    assert start(settings_of(data=tmp_path / "five"), nodes=9).stores == 5, "more nodes add no store by themselves"
    assert start(settings_of(data=tmp_path / "asked", stores=6), nodes=9).stores == 6
    assert start(settings_of(data=tmp_path / "narrow", spread=False), nodes=9).stores == 4
    assert start(settings_of(data=tmp_path / "wide", spread=True), nodes=2).stores == 3


def test_what_is_kept_may_be_said_anew_at_each_start_and_stays_in_force_until_then(tmp_path: Path) -> None:
    first = start(settings_of(data=tmp_path))
    assert (first.keep_s, first.keep_bytes) == (0, 0), "everything"
    asked, _ = open_data(settings_of(data=tmp_path, keep_for="30d", keep_bytes="50GiB"))
    assert (asked.keep_s, asked.keep_bytes) == (30 * 86_400, 50 << 30)
    assert "2592000" not in (tmp_path / "cluster.json").read_text(), "kept when a start was found possible"
    start(settings_of(data=tmp_path, keep_for="30d", keep_bytes="50GiB"))
    assert start(settings_of(data=tmp_path))[9:11] == (30 * 86_400, 50 << 30)
    assert start(settings_of(data=tmp_path, keep_for="forever"))[9:11] == (0, 50 << 30)
    assert start(settings_of(data=tmp_path, keep_bytes="all"))[9:11] == (0, 0)


def test_data_of_before_there_was_a_choice_keeps_everything(tmp_path: Path) -> None:
    record = start(settings_of(data=tmp_path, keep_for="30d"))
    path = tmp_path / "cluster.json"
    written = json.loads(path.read_text())
    path.write_text(json.dumps({key: value for key, value in written.items() if not key.startswith("keep")}))
    assert start(settings_of(data=tmp_path)) == record._replace(keep_s=0)


def test_a_running_system_lets_go_what_it_was_told_to_and_says_how_to_change_that(tmp_path: Path) -> None:
    record = start(settings_of(data=tmp_path, keep_for="30d"))
    check_running(settings_of(data=tmp_path, keep_for="720h", keep_bytes="all"), record)
    with pytest.raises(SettingsDiffer, match="with --keep-for 30d, not forever: end it first, then start it so"):
        check_running(settings_of(data=tmp_path, keep_for="forever"), record)
    with pytest.raises(SettingsDiffer, match="with --keep-bytes all, not 500MB: end it first"):
        check_running(settings_of(data=tmp_path, keep_bytes="500MB"), record)


OLD = {
    "format": 1,
    "cluster": "c" * 32,
    "log_id": 9,
    "partitions": 4,
    "copies": 3,
    "stores": 3,
    "created": "2025-01-01T00:00:00Z",
}


def test_data_of_the_first_format_opens_as_it_is_and_has_no_spare_store_until_one_is_added(tmp_path: Path) -> None:
    path = tmp_path / "cluster.json"
    path.write_text(json.dumps(OLD))
    record, _ = open_data(settings_of(data=tmp_path))
    assert (record.partitions, record.copies, record.stores, record.first_stores) == (4, 3, 3, 3)
    assert (record.min_copies, record.spare_sessions, record.log_id) == (3, 1, 9)
    assert json.loads(path.read_text()) == OLD, "a look changes nothing"
    start(settings_of(data=tmp_path))
    assert json.loads(path.read_text())["format"] == 2, "once it has run, an older trilogue must not open it"
    grown = start(settings_of(data=tmp_path, stores=4))
    assert store_names(grown) == ("store-1", "store-2", "store-3", "store-4")
    assert config_of(grown).ensemble(2) == ("store-3", "store-1", "store-2")


@pytest.mark.parametrize("asked", [{"stores": 4}, {"min_copies": 2}, {"spare_sessions": 2}])
def test_a_running_system_is_not_changed_and_the_way_to_change_it_is_said(tmp_path: Path, asked: dict[str, int]) -> None:
    record = start(settings_of(data=tmp_path, stores=3))
    check_running(settings_of(data=tmp_path, stores=3, copies=3, min_copies=3, spare_sessions=1), record)
    with pytest.raises(SettingsDiffer, match="end it first, then start it so"):
        check_running(settings_of(data=tmp_path, **asked), record)
    with pytest.raises(SettingsDiffer, match="leave it out"):
        check_running(settings_of(data=tmp_path, copies=2), record)


@pytest.mark.parametrize(
    ("content", "error"),
    [
        ("", DirectoryUnusable),
        ("[]", DirectoryUnusable),
        ('{"format": 1}', DirectoryUnusable),
        ('{"format": 2}', DirectoryUnusable),
        ('{"format": 4, "anything": "else"}', NewerFormat),
        (json.dumps(OLD | {"partitions": 0}), DataError),
        (json.dumps(OLD | {"stores": 0}), DataError),
        (json.dumps(OLD | {"copies": 4}), DataError),
        (json.dumps(OLD | {"format": 2, "first_stores": 4, "min_copies": 3, "spare_sessions": 1}), DataError),
        (json.dumps(OLD | {"format": 2, "first_stores": 3, "min_copies": 4, "spare_sessions": 1}), DataError),
        (json.dumps(OLD | {"format": 2, "first_stores": 3, "min_copies": 3, "spare_sessions": -1}), DataError),
        (json.dumps(OLD | {"format": 2, "first_stores": 3, "min_copies": "3", "spare_sessions": 1}), DataError),
        (json.dumps(OLD | {"format": 2, "first_stores": 3, "min_copies": 3, "spare_sessions": 1, "keep_s": -1}), DataError),
        (json.dumps(OLD | {"format": 2, "first_stores": 3, "min_copies": 3, "spare_sessions": 1, "keep_s": "1d"}), DataError),
    ],
)
def test_a_cluster_file_that_cannot_be_used_is_left_as_it_is(tmp_path: Path, content: str, error: type[DataError]) -> None:
    path = tmp_path / "cluster.json"
    path.write_text(content)
    with pytest.raises(error, match=r"cluster\.json"):
        open_data(settings_of(data=tmp_path))
    assert path.read_text() == content


def test_stores_without_a_cluster_file_are_not_given_a_new_identity(tmp_path: Path) -> None:
    (tmp_path / "store-1").mkdir()
    (tmp_path / "store-1" / "store.json").write_text("{}")
    with pytest.raises(DirectoryUnusable, match="restore it"):
        open_data(settings_of(data=tmp_path))
    assert not (tmp_path / "cluster.json").exists()


def test_a_data_directory_under_a_file_is_unusable(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DirectoryUnusable, match="choose another directory"):
        open_data(settings_of(data=tmp_path / "file" / "data"))


def test_a_data_directory_that_takes_no_files_is_unusable() -> None:
    with pytest.raises(DirectoryUnusable):
        open_data(settings_of(data="/proc/self/fdinfo"))


def test_an_empty_token_file_is_never_taken_for_a_token(tmp_path: Path) -> None:
    open_data(settings_of(data=tmp_path))
    (tmp_path / "token").write_text("\n")
    with pytest.raises(DirectoryUnusable, match="is empty"):
        open_data(settings_of(data=tmp_path))


def test_each_partition_has_as_many_stores_as_copies_and_all_stores_share_the_load(tmp_path: Path) -> None:
    record, _ = open_data(settings_of(data=tmp_path, partitions=4, copies=3, stores=4))
    ensembles = [config_of(record).ensemble(partition) for partition in range(4)]
    assert all(len(set(ensemble)) == 3 for ensemble in ensembles)
    assert all(sum(store in ensemble for ensemble in ensembles) == 3 for store in ("store-1", "store-2", "store-3", "store-4"))
    assert len(actor_names(record)) == 4 + 4 + 1 + 1
    assert session_names(record)[-1] == "session-4", "the spare one"
