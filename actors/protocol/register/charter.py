"""Who keeps the register: the charter (design §7).

Owns who the acceptors are, what makes a majority, and how one charter follows another. It must not know rounds. Rules:

1. A charter names its acceptors by the ids that they made together with their files: an emptied directory under an old name is
   another acceptor, takes no part, and is no vote.
2. A majority of *one* charter decides; votes are never counted over two charters.
3. Charter 1 is founded by agreement of all founders. Charter v + 1 is what the key `CHARTER_KEY` holds under charter v, set
   once, from absent. Nobody is told of a charter before that is decided.
4. What is known of a number is never replaced.
5. Numbers go by eras. Within one, each charter was decided under the one before it. The first of a later era was founded by an
   operator who stated that the majority of the one before is gone for good (`rescued`): nothing was decided under any charter
   that leads to it. Whoever knows a charter of a later era gives no vote under an earlier one any more: should the dead come
   back, they find no majority.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgpack

from trilogue.actors.protocol.errors import ProtocolError
from trilogue.actors.protocol.invariants import require
from trilogue.actors.protocol.register.votes import NUMBER_MAX

CHARTER_KEY = "charter"
"""The key that holds the next charter. It belongs to its charter, and is never moved."""
FOUNDERS = 3
ACCEPTORS_MAX = 9
ERA = 1 << 20
"""How many numbers an era has: far more than a charter is ever moved in one."""


class Charter(NamedTuple):
    """Number `number` (from 1 on), and each acceptor's id by the name of its store."""

    number: int
    acceptors: dict[str, str]

    @property
    def majority(self) -> int:
        """How many acceptors decide."""
        return len(self.acceptors) // 2 + 1


class Charters:
    """The charters that a process knows, by number."""

    def __init__(self) -> None:
        self._known: dict[int, Charter] = {}

    @property
    def newest(self) -> Charter | None:
        """The one with the highest number."""
        return self._known[max(self._known)] if self._known else None

    def get(self, number: int) -> Charter | None:
        """The charter of this number, if it is known."""
        return self._known.get(number)

    def learn(self, charter: Charter) -> bool:
        """Remember a charter that was decided. False: another one of this number is known, and stays (rule 4)."""
        return self._known.setdefault(charter.number, charter) == charter


def founders_of(stores: Sequence[str]) -> tuple[str, ...]:
    """The stores that found the register: the first three, or all when there are fewer."""
    return tuple(stores[:FOUNDERS])


def takes_part(charter: Charter | None, acceptor: str) -> bool:
    """Whether the acceptor of this id votes under the charter as its store knows it (rule 1)."""
    return charter is not None and acceptor in charter.acceptors.values()


def is_first(number: int) -> bool:
    """Whether no charter comes before this one: nothing can be looked up under an earlier one (rule 5)."""
    return number == 1 or number % ERA == 0


def is_given_up(number: int, newest: Charter | None) -> bool:
    """Whether the charter of this number belongs to an earlier era than `newest` (rule 5)."""
    return newest is not None and number // ERA < newest.number // ERA


def rescued(number: int, acceptors: Mapping[str, str]) -> Charter:
    """The first charter of the era after that of `number`, kept by these (rule 5)."""
    return following(Charter((number // ERA + 1) * ERA - 1, {}), acceptors)


def following(charter: Charter, acceptors: Mapping[str, str]) -> Charter:
    """The charter after `charter`, kept by these."""
    require(0 < len(acceptors) <= ACCEPTORS_MAX, "a charter has 1 to {} acceptors", ACCEPTORS_MAX)
    require(len(set(acceptors.values())) == len(acceptors), "two stores of a charter share one acceptor's id")
    return Charter(charter.number + 1, dict(acceptors))


def encode_charter(charter: Charter) -> bytes:
    """The charter's bytes."""
    data: bytes = msgpack.packb([charter.number, dict(sorted(charter.acceptors.items()))], use_bin_type=True)
    return data


def decode_charter(data: bytes) -> Charter:
    """The inverse of `encode_charter`. Raises `ProtocolError`."""
    try:
        fields = msgpack.unpackb(data, use_list=True, raw=False)
    except (ValueError, TypeError, msgpack.exceptions.UnpackException) as error:
        raise ProtocolError(f"a charter is not msgpack: {type(error).__name__}") from None
    match fields:
        case [number, acceptors]:
            return charter_from(number, acceptors)
    raise ProtocolError("a charter of unknown shape")


def check_number(number: Any) -> int:
    """Return `number` if a charter may have it (0: asks for the newest); raise `ProtocolError` otherwise."""
    if type(number) is int and 0 <= number < NUMBER_MAX:
        return number
    raise ProtocolError("a charter's number of unknown shape")


def charter_from(number: Any, acceptors: Any) -> Charter:
    """A charter as it came. Raises `ProtocolError`."""
    if type(number) is int and 0 < number < NUMBER_MAX and type(acceptors) is dict and 0 < len(acceptors) <= ACCEPTORS_MAX:
        texts = [*acceptors, *acceptors.values()]
        if all(isinstance(text, str) and text for text in texts) and len(set(acceptors.values())) == len(acceptors):
            return Charter(number, dict(acceptors))
    raise ProtocolError("a charter of unknown shape")
