"""`trilogue verify` of a system that is down, and `--repair`: what is said, what is changed, what is refused (G2, G8)."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trilogue.actors.journal import FenceRecord, Journal, Position, open_identity, try_lock
from trilogue.actors.protocol.errors import DirectoryInUse, Unavailable, UsageError
from trilogue.actors.protocol.frames import HEADER_BYTES, encode_frame
from trilogue.actors.protocol.ids import partition_of
from trilogue.actors.protocol.limits import DEFAULT_LIMITS
from trilogue.actors.protocol.messages import RUN, pack_records
from trilogue.cluster.commands.cli import run as cli
from trilogue.cluster.commands.repair import repair, verify_down
from trilogue.cluster.settings.config import ClusterRecord, write_record

LOG_ID, CLUSTER, PARTITIONS = 77, "c" * 32, 2
STORES = ("store-1", "store-2", "store-3")
ALICE = "alice/" + "a" * 32
SESSION = "room"
PARTITION = partition_of(SESSION, PARTITIONS)
FRAMES = 6


class Quiet:
    """Progress that nobody sees."""

    def advance(self, part: str, done: int, total: int) -> None:
        assert 0 < done <= total, part


class Data:
    """A data directory of a system that is down."""

    def __init__(self, path: Path) -> None:
        self.path = path
        record: dict[str, Any] = dict.fromkeys(ClusterRecord._fields, 0)
        record |= {"cluster": CLUSTER, "log_id": LOG_ID, "partitions": PARTITIONS, "copies": 3, "stores": 4}
        record |= {"first_stores": 4, "min_copies": 3, "spare_sessions": 1, "created": "today", "urls": ()}
        path.mkdir()
        write_record(path, ClusterRecord(**record))
        self.frames = _frames()
        self.places: dict[str, list[Position]] = {}
        for k, name in enumerate((*STORES, "store-4")):
            self.places[name] = self._store(path / name, f"{k:032x}", self.frames if name in STORES else [])

    def _store(self, directory: Path, uuid: str, frames: list[bytes]) -> list[Position]:
        directory.mkdir()
        identity = open_identity(directory, cluster=CLUSTER, log_id=LOG_ID, fresh_store=uuid)
        journal = Journal.open(directory, identity, DEFAULT_LIMITS, lambda _: None, file_bytes=16384)
        if frames:
            journal.append([FenceRecord(PARTITION, 1, "w", "127.0.0.1:1")])
        places = [journal.append([frame])[0] for frame in frames]
        journal.close()
        return places

    def journal(self, store: str) -> Path:
        return self.path / store / "journal-00000001.trl"

    def hit(self, store: str, index: int, at: int = HEADER_BYTES + 20) -> None:
        """Change one byte of frame `index` on the store."""
        path = self.journal(store)
        data = bytearray(path.read_bytes())
        data[self.places[store][index - 1].offset + at] ^= 0x41
        path.write_bytes(data)

    def verify(self) -> dict[str, Any]:
        return verify_down(self.path, Quiet())

    def repair(self, *, accept_loss: bool = False) -> dict[str, Any]:
        return repair(None, self.path, Quiet(), accept_loss=accept_loss)


def _frames() -> list[bytes]:
    frames: list[bytes] = []
    crc = 0
    for index in range(1, FRAMES + 1):
        payload = pack_records([[RUN, SESSION, ALICE, index, index, 1, [1], [b"body %d" % index]]])
        frame, crc = encode_frame(
            log_id=LOG_ID, partition=PARTITION, epoch=1, index=index, prev_crc=crc, count=1, committed_upto=index - 1,
            payload=payload,
        )  # fmt: skip
        frames.append(frame)
    return frames


@pytest.fixture
def data(tmp_path: Path) -> Data:
    return Data(tmp_path / "data")


def kinds(report: dict[str, Any]) -> set[str]:
    return {problem["kind"] for problem in report["problems"]}


def test_a_system_that_is_down_and_well_is_verified_from_its_directories(data: Data) -> None:
    report = data.verify()
    assert report["ok"], report
    assert report["offline"]
    assert report["counts"]["messages"] == FRAMES
    assert report["counts"]["frames"] == 3 * FRAMES
    assert report["stores"] == [*STORES, "store-4"]
    assert not report["repairs"]


def test_all_three_damaged_in_different_places_are_named_and_then_made_equal_g2(data: Data) -> None:
    for index, store in enumerate(STORES, 2):
        data.hit(store, index)
    spare = data.journal("store-4").read_bytes()
    before = data.verify()
    assert not before["ok"]
    assert before["mendable"]
    assert kinds(before) == {"damaged", "missing"}
    damaged = [problem["where"] for problem in before["problems"] if problem["kind"] == "damaged"]
    place = data.places["store-1"][1]
    assert damaged[0] == f"store-1 journal-00000001.trl bytes {place.offset}-{place.offset + place.size - 1}"
    assert "lacks frames 2; other stores" in str(before["problems"])

    after = data.repair()
    assert after["ok"], after
    assert [one["store"] for one in after["repairs"]] == list(STORES)
    assert [one["frames_from_others"] for one in after["repairs"]] == [1, 1, 1]
    assert all(Path(one["kept"]).is_dir() and one["kept_bytes"] > 0 for one in after["repairs"])
    assert after["counts"]["messages"] == FRAMES
    assert data.verify()["ok"]
    assert data.journal("store-4").read_bytes() == spare, "the spare was changed"
    again = data.repair()
    assert again["ok"]
    assert not again["repairs"]


def test_what_no_store_has_is_named_and_nothing_is_changed_until_that_is_accepted_g8(data: Data) -> None:
    for store in STORES:
        data.hit(store, 3)
    files = {store: data.journal(store).read_bytes() for store in STORES}
    refused = data.repair()
    assert not refused["ok"]
    lost = [problem for problem in refused["problems"] if problem["kind"] == "lost"]
    assert [problem["where"] for problem in lost] == [f"partition {PARTITION} frames 3"]
    assert f"frame {FRAMES - 1} and all before it are known to be committed" in lost[0]["text"]
    assert "3 whole frames follow" in lost[0]["text"]
    assert "--accept-loss" in str(refused["notes"])
    assert {store: data.journal(store).read_bytes() for store in STORES} == files
    assert not refused["repairs"]
    assert not refused["mendable"]

    accepted = data.repair(accept_loss=True)
    assert not accepted["ok"], "something is lost"
    assert kinds(accepted) == {"lost"}
    assert len(accepted["repairs"]) == 3
    assert data.verify()["ok"]
    assert data.verify()["counts"]["messages"] == 2


def test_loss_is_not_accepted_while_a_store_is_elsewhere(data: Data) -> None:
    (data.path / "store-3").rename(data.path.parent / "away")
    for store in STORES[:2]:
        data.hit(store, 3)
    refused = data.repair(accept_loss=True)
    assert not refused["repairs"]
    assert "store-3" in str(refused["notes"])


def test_a_store_without_its_identity_is_mended_from_what_its_journal_says(data: Data) -> None:
    identity = json.loads((data.path / "store-2" / "store.json").read_bytes())
    (data.path / "store-2" / "store.json").write_bytes(b"garbage")
    assert not data.verify()["ok"]
    assert data.repair()["ok"]
    now = json.loads((data.path / "store-2" / "store.json").read_bytes())
    assert now["store"] == identity["store"]
    assert now["incarnation"] > identity["incarnation"]


def test_a_store_of_which_nothing_is_known_is_left_alone_and_the_way_out_said(data: Data) -> None:
    (data.path / "store-2" / "store.json").write_bytes(b"garbage")
    data.journal("store-2").write_bytes(b"garbage" * 1000)
    report = data.repair()
    assert not report["ok"]
    assert "move it away" in str(report["notes"])
    assert data.journal("store-2").read_bytes().startswith(b"garbage")


def test_a_store_in_use_is_not_touched(data: Data) -> None:
    data.hit("store-1", 2)
    lock = try_lock(data.path / "store-1", allow_tmpfs=True)
    with pytest.raises(DirectoryInUse, match=r"store-1 is in use"):
        data.repair()
    lock.release()
    assert data.repair()["ok"]


def test_a_directory_without_data_and_an_address_are_refused(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="no data"):
        repair(None, tmp_path, Quiet(), accept_loss=False)
    with pytest.raises(UsageError, match="--data"):
        repair("127.0.0.1:1", None, Quiet(), accept_loss=False)


@pytest.fixture
def said(
    data: Data, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[int, str, str]]:
    """Runs the command line on the data; (exit code, standard output, standard error)."""
    for name in ("TRILOGUE_ADDRESS", "TRILOGUE_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(data.path.parent / "state"))

    def run(*arguments: str) -> tuple[int, str, str]:
        code = cli([*arguments, "--data", str(data.path)])
        return (code, *capsys.readouterr())

    return run


def test_the_command_says_what_is_damaged_mends_it_and_says_what_it_kept(
    data: Data, said: Callable[..., tuple[int, str, str]]
) -> None:
    data.hit("store-1", 2)
    data.hit("store-2", 4, at=3)
    code, out, _ = said("verify")
    assert code == 1
    assert "damaged: store-1 journal-00000001.trl bytes" in out
    assert "`trilogue verify --repair` makes the damaged stores whole" in out
    code, out, _ = said("verify", "--repair")
    assert code == 0, out
    assert "repaired store-1: 6 frames, 1 of them from other stores" in out
    assert "may be removed when `trilogue verify` is content" in out
    assert said("verify")[0] == 0
    assert json.loads(said("verify", "--json")[1])["offline"]
    assert said("verify", "--accept-loss")[0] == 2
