"""The stores' places by URL: refused in one line, kept without a password, and never moved."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from trilogue.actors.protocol.errors import DirectoryUnusable, InvalidSettings, ServerUnusable, SettingsDiffer
from trilogue.actors.redis_journal.place import RedisPlace, parse_place
from trilogue.actors.redis_journal.witness import Witness, write_witness
from trilogue.cluster.on_ray.placement import Node, Places, plan, protection, write_places
from trilogue.cluster.on_ray.starting import check_free
from trilogue.cluster.settings.asked import as_asked, check_running, keep_record, open_data, settings_of
from trilogue.cluster.settings.config import ClusterRecord, read_record
from trilogue.cluster.settings.store_urls import redis_credentials

REDIS = "redis://10.0.0.5:6379/2"
HERE = Node("n1", "127.0.0.1")


def started(data: Path) -> None:
    """Actors were made on it."""
    (data / "places.json").write_text("{}")


def start(data: Path, stores: int | list[str] | None = None, **values: int) -> ClusterRecord:
    """What a start does with the data directory."""
    settings = settings_of(data=data, stores=stores, **values)
    open_data(settings)
    kept = read_record(data)
    assert kept is not None
    record = as_asked(settings, kept)
    keep_record(settings, record)
    return record


def files(data: Path, *numbers: int) -> list[str]:
    return [f"file://{data / f'store-{number}'}" for number in numbers]


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("redis://h", RedisPlace("h", 6379)),
        ("redis://h:1/", RedisPlace("h", 1)),
        ("rediss://h:1/3?replicas=2", RedisPlace("h", 1, 3, True, 2)),
        ("redis://[::1]:7/0", RedisPlace("::1", 7)),
        ("rediss://h/0?ca_file=/etc/ca.pem", RedisPlace("h", 6379, 0, True, 0, "/etc/ca.pem")),
        ("rediss://h/0?ca_file=/etc/c%2B%2B/ca.pem", RedisPlace("h", 6379, 0, True, 0, "/etc/c++/ca.pem")),
        ("rediss://h/0?ca_file=/etc/c++/ca.pem", RedisPlace("h", 6379, 0, True, 0, "/etc/c++/ca.pem")),
        ("rediss://h/0?ca_file=/a%20b.pem", RedisPlace("h", 6379, 0, True, 0, "/a b.pem")),
        ("rediss://h/0?ca_file=/a%2520b.pem&replicas=1", RedisPlace("h", 6379, 0, True, 1, "/a%20b.pem")),
        ("rediss://h/0?ca_file=/a%26b%23c%3F%40.pem", RedisPlace("h", 6379, 0, True, 0, "/a&b#c?@.pem")),
    ],
)
def test_a_redis_url_names_a_place_and_is_written_in_one_way(url: str, place: RedisPlace) -> None:
    assert parse_place(url) == place
    assert parse_place(place.url) == place


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("redis://user:hunter2@h/0", "leave the user and the password out of the URL"),
        ("redis://:hunter2@h:1/0", "TRILOGUE_REDIS_PASSWORD"),
        ("redis://h:port/0", "write redis://HOST:PORT/DB"),
        ("redis://h/zero", "the database is a whole number"),
        ("redis://h/0?replicas=many", "replicas is a whole number"),
        ("redis://h/0?color=red", "nothing is known of color"),
        ("redis://", "write redis://HOST:PORT/DB"),
        ("redis://h:6379/0?password=hunter2", "nothing is known of password"),
        ("redis://h:6379/0?hunter2", "--store redis://h:6379/0: nothing is known of one of its options"),
        ("redis://h:6379/0?hunter2=1", "--store redis://h:6379/0: nothing is known of one of its options"),
        ("redis://h:6379/0?replicas=hunter2", "replicas is a whole number"),
        ("redis://h/0?x=a@hunter2", "leave the user and the password out of the URL"),
        ("redis://user:a@hunter2@h/0", "leave the user and the password out of the URL"),
        ("redis://user:hunter2", "write redis://HOST:PORT/DB"),
        ("redis://user:hunter2/0", "write redis://HOST:PORT/DB"),
        ("redis://:hunter2", "write redis://HOST:PORT/DB"),
        ("redis://h/hunter2", "--store redis://h/…: the database is a whole number"),
        ("redis://h/0#hunter2", "write redis://HOST:PORT/DB"),
        ("redis://[hunter2/0", "write redis://HOST:PORT/DB"),
        ("valkey://:hunter2@h/0", "--store valkey://…: write file://DIR"),
        ("valkey://h/0?password=hunter2", "--store valkey://h/0: write file://DIR"),
        ("redis:/:hunter2@h", "write file://DIR"),
        ("redis:hunter2@h", "write file://DIR"),
        (":hunter2@h:6379/0", "write file://DIR"),
        ("hunter2@h", "write file://DIR"),
        ("http://h", "write file://DIR, redis://HOST:PORT/DB or rediss://HOST:PORT/DB"),
        ("/a/directory", "write file://DIR"),
        ("file://", "write file://DIR"),
    ],
)
def test_a_url_that_makes_no_sense_is_refused_in_one_line_without_a_password(tmp_path: Path, url: str, says: str) -> None:
    with pytest.raises(InvalidSettings) as caught:
        settings_of(data=tmp_path, stores=[url, *files(tmp_path, 2, 3)])
    assert says in str(caught.value)
    assert "hunter2" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_as_many_stores_as_are_named_and_no_place_twice(tmp_path: Path) -> None:
    with pytest.raises(InvalidSettings, match="named twice"):
        settings_of(data=tmp_path, stores=[REDIS, REDIS, *files(tmp_path, 3)])
    with pytest.raises(InvalidSettings, match="3 copies need as many stores: give --store 3 times at least"):
        settings_of(data=tmp_path, stores=[REDIS], copies=3)
    record = start(tmp_path, [*files(tmp_path, 1, 2), REDIS])
    assert (record.stores, record.copies, record.first_stores) == (3, 3, 3)
    assert [record.url_of(f"store-{k}") for k in (1, 2, 3)] == ["", "", REDIS]


def test_two_urls_are_two_copies(tmp_path: Path) -> None:
    assert start(tmp_path, [REDIS, "redis://10.0.0.6/0"]).copies == 2


def test_the_places_are_kept_and_stores_are_added_behind_them(tmp_path: Path) -> None:
    start(tmp_path, [REDIS, *files(tmp_path, 2, 3)])
    started(tmp_path)
    assert json.loads((tmp_path / "cluster.json").read_bytes())["format"] == 3
    assert start(tmp_path).urls == (REDIS, "", "")
    assert start(tmp_path, 4).url_of("store-4") == ""
    record = start(tmp_path, [REDIS, *files(tmp_path, 2, 3, 4), "redis://10.0.0.6/0"])
    assert (record.stores, record.first_stores) == (5, 3)
    assert record.url_of("store-5") == "redis://10.0.0.6:6379/0"


def test_a_redis_store_is_added_to_data_of_files_alone(tmp_path: Path) -> None:
    start(tmp_path, 4)
    started(tmp_path)
    assert json.loads((tmp_path / "cluster.json").read_bytes())["format"] == 2
    assert start(tmp_path, [*files(tmp_path, 1, 2, 3, 4), REDIS]).url_of("store-5") == REDIS


def test_a_store_is_never_moved_or_taken_away(tmp_path: Path) -> None:
    record = start(tmp_path, [REDIS, *files(tmp_path, 2, 3)])
    assert start(tmp_path, ["redis://10.0.0.6/0", *files(tmp_path, 2, 3)]).urls[0] == "redis://10.0.0.6:6379/0", "a first try"
    assert start(tmp_path, [REDIS, *files(tmp_path, 2, 3)]) == record
    started(tmp_path)
    with pytest.raises(SettingsDiffer, match=r"store-1 of .* is at redis://10.0.0.5:6379/2, not at redis://10.0.0.6:6379/0"):
        start(tmp_path, ["redis://10.0.0.6/0", *files(tmp_path, 2, 3)])
    with pytest.raises(SettingsDiffer, match="has 3 stores, not 2"):
        as_asked(settings_of(data=tmp_path, stores=[REDIS, *files(tmp_path, 2)]), record)
    with pytest.raises(SettingsDiffer, match="moving a store does not exist yet"):
        check_running(settings_of(data=tmp_path, stores=files(tmp_path, 1, 2, 3)), record)
    with pytest.raises(SettingsDiffer, match="the system runs with 3 stores, not 4"):
        check_running(settings_of(data=tmp_path, stores=[REDIS, *files(tmp_path, 2, 3, 4)]), record)
    check_running(settings_of(data=tmp_path, stores=[REDIS, *files(tmp_path, 2, 3)]), record)


@pytest.mark.parametrize("urls", ["redis", [1, 2, 3], ["", "", "", "", ""], [None, "", ""]])
def test_damaged_places_are_noticed(tmp_path: Path, urls: object) -> None:
    start(tmp_path, [REDIS, *files(tmp_path, 2, 3)])
    path = tmp_path / "cluster.json"
    path.write_text(json.dumps(json.loads(path.read_bytes()) | {"urls": urls}))
    with pytest.raises(DirectoryUnusable, match="is damaged"):
        read_record(tmp_path)


def test_directories_are_those_of_the_urls_and_a_redis_store_keeps_its_own(tmp_path: Path) -> None:
    record = start(tmp_path, ["file:///mnt/disk/one", REDIS, *files(tmp_path, 3)])
    wanted = {"store-1": "/mnt/disk/one", "store-2": str(tmp_path / "store-2"), "store-3": str(tmp_path / "store-3")}
    first = plan(record, tmp_path, [HERE], HERE, None, None)
    assert first.directories == wanted
    assert plan(record, tmp_path, [HERE], HERE, None, Places(False, first.hosts, {})).directories == wanted


def test_what_the_copies_protect_against_counts_the_servers_machine() -> None:
    hosts = dict.fromkeys(("store-1", "store-2", "store-3"), "127.0.0.1")
    assert "3 copies on 2 machines" in protection(hosts, False, 3, {"store-3": REDIS})
    assert protection(hosts, False, 3, {"store-3": REDIS}).endswith(f"store-3 is on {REDIS}")
    assert "3 copies on 1 machine" in protection(hosts, False, 3, {"store-3": "redis://127.0.0.1:6379/0"})
    both = {"store-2": REDIS, "store-3": "redis://10.0.0.5:6379/3"}
    assert protection(hosts, False, 3, both).endswith("they share a server, which is lost as one")


def test_credentials_come_from_the_environment_or_a_file_and_are_not_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert redis_credentials().password == ""
    monkeypatch.setenv("TRILOGUE_REDIS_USERNAME", "tri")
    with pytest.raises(InvalidSettings, match="set without a password"):
        redis_credentials()
    file = tmp_path / "secret"
    monkeypatch.setenv("TRILOGUE_REDIS_PASSWORD_FILE", str(file))
    with pytest.raises(InvalidSettings, match="cannot be read"):
        redis_credentials()
    file.write_text("\n")
    with pytest.raises(InvalidSettings, match="is empty"):
        redis_credentials()
    file.write_text("hunter2\n")
    found = redis_credentials()
    assert (found.username, found.password) == ("tri", "hunter2")
    assert "hunter2" not in f"{found!r}{found}"
    monkeypatch.setenv("TRILOGUE_REDIS_PASSWORD", "hunter3")
    with pytest.raises(InvalidSettings, match="are both set"):
        redis_credentials()


def test_a_new_stores_server_is_looked_at_first_and_one_that_has_data_is_waited_for(tmp_path: Path) -> None:
    """A system is not kept from starting by one server that is away: its store says so, and the others go on."""
    data = tmp_path / "data"
    settings = settings_of(data=data, stores=["redis://127.0.0.1:1/0", *files(data, 2, 3)], allow_tmpfs=True)
    with pytest.raises(ServerUnusable, match=r"redis://127.0.0.1:1/0 cannot be reached \(.*refused\): start it, or give"):
        check_free(settings)
    record = as_asked(settings, open_data(settings)[0])
    keep_record(settings, record)
    write_places(data, plan(record, data, [HERE], HERE, None, None), {})
    with pytest.raises(ServerUnusable):
        check_free(settings)
    (data / "store-1").mkdir()
    write_witness(data / "store-1", Witness("a" * 32, 1, ()), durably=True)
    check_free(settings)
