"""Settings and the data directory: bad ones are refused in one line, and what data was created with is kept."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import pytest

from trilogue.actors.protocol.errors import (
    DataError,
    DirectoryUnusable,
    InvalidSettings,
    NewerFormat,
    SettingsDiffer,
    TrilogueError,
)
from trilogue.cluster.settings.asked import open_data, settings_of
from trilogue.cluster.settings.config import Desired, actor_names, split_listen


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
        ({"listen": "127.0.0.1:http"}, "HOST:PORT"),
        ({"listen": "127.0.0.1:65536"}, "HOST:PORT"),
        ({"listen": ":80"}, "HOST:PORT"),
        ({"data": "a\0b"}, "is no path"),
        ({"data": ""}, "is no path"),
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
    assert (record.partitions, record.copies, record.stores) == (8, 3, 3)
    assert 0 < record.log_id < 2**63
    assert open_data(settings_of(data=tmp_path / "data")) == (record, token)
    assert open_data(settings_of(data=tmp_path / "data", partitions=8, copies=3, stores=3)) == (record, token)


def test_two_data_directories_are_two_clusters(tmp_path: Path) -> None:
    one, other = (open_data(settings_of(data=tmp_path / name)) for name in ("one", "other"))
    assert one[0].cluster != other[0].cluster
    assert one[0].log_id != other[0].log_id
    assert one[1] != other[1]


def test_the_token_is_for_its_owner_alone(tmp_path: Path) -> None:
    open_data(settings_of(data=tmp_path / "data"))
    assert stat.S_IMODE((tmp_path / "data" / "token").stat().st_mode) == 0o600


@pytest.mark.parametrize("change", [{"partitions": 5}, {"copies": 2}, {"stores": 4}])
def test_other_settings_than_the_data_was_created_with_are_refused(tmp_path: Path, change: dict[str, int]) -> None:
    open_data(settings_of(data=tmp_path))
    with pytest.raises(SettingsDiffer, match="does not exist yet"):
        open_data(settings_of(data=tmp_path, **change))


@pytest.mark.parametrize(
    ("content", "error"),
    [
        ("", DirectoryUnusable),
        ("[]", DirectoryUnusable),
        ('{"format": 1}', DirectoryUnusable),
        ('{"format": 2, "anything": "else"}', NewerFormat),
        (
            json.dumps({"format": 1, "cluster": "c", "log_id": 1, "partitions": 0, "copies": 1, "stores": 1, "created": ""}),
            DataError,
        ),
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
    record, token = open_data(settings_of(data=tmp_path, partitions=4, copies=3, stores=4))
    desired = Desired(record, str(tmp_path), token, "127.0.0.1", {}, (), False, False, {}, {})
    ensembles = [desired.ensemble(partition) for partition in range(4)]
    assert all(len(set(ensemble)) == 3 for ensemble in ensembles)
    assert all(sum(store in ensemble for ensemble in ensembles) == 3 for store in ("store-1", "store-2", "store-3", "store-4"))
    assert len(actor_names(record)) == 4 + 4 + 1
