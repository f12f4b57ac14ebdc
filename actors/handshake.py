"""The challenge that opens every connection: each side proves to the other that it knows the token (design §12).

Owns the shapes of these messages and their order, on either side. It must not know sockets, framing or what is said later.
Rules:

1. The token never travels: a proof is an HMAC over both sides' nonces and the role of who proves.
2. The acceptor proves last: who does not know the token learns nothing from it.
3. Any other message than the one that is due ends the connection.

    acceptor    [b"TRLG", version, nonce]                 the challenge
    connector   [b"TRLG", version, nonce, proof]          the answer
    acceptor    [0, proof, info]  or  [1, text]           the verdict
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Callable
from typing import Any, Final

from trilogue.actors.protocol.errors import NotAuthorized, ProtocolError, Unavailable
from trilogue.actors.protocol.vocabulary import Say

VERSION: Final = 2
NONCE_BYTES: Final = 32


class Handshake:
    """One side of one handshake: the acceptor's if it has `info` to tell. `peer_info` is what the acceptor told."""

    def __init__(self, token: str, info: dict[str, Any] | None) -> None:
        self.peer_info: dict[str, Any] = {}
        self.accepting = info is not None
        self._token = token.encode()
        self._info = info
        self._nonce = secrets.token_bytes(NONCE_BYTES)
        self._peer_nonce = b""

    def challenge(self) -> list[Any]:
        """What the acceptor says first."""
        return [b"TRLG", VERSION, self._nonce]

    def take(self, message: list[Any], send: Callable[[list[Any]], None], peer: str) -> bool:
        """Take the next message of `peer` and send what follows from it. True: the peer knows the token.

        Raises `ProtocolError`, `NotAuthorized`, or `Unavailable` when the peer does not take this connection.
        """
        if self.accepting:
            self._on_answer(message, send)
            return True
        if self._peer_nonce:
            self._on_verdict(message, peer)
            return True
        self._on_challenge(message, send, peer)
        return False

    def _on_challenge(self, message: list[Any], send: Callable[[list[Any]], None], peer: str) -> None:
        """The connecting side: prove that we know the token, then see that the acceptor does."""
        match message:
            case [b"TRLG", int(), bytes(nonce)] if len(nonce) == NONCE_BYTES:
                self._peer_nonce = nonce
                send([b"TRLG", VERSION, self._nonce, self._proof(b"connector", nonce, self._nonce)])
            case [Say.GOODBYE, str(text)]:
                raise _not_taken(peer, text)
            case _:
                raise ProtocolError("the peer's first frame is not a trilogue challenge")

    def _on_answer(self, message: list[Any], send: Callable[[list[Any]], None]) -> None:
        """The accepting side: check the proof; only now are longer frames believed."""
        match message:
            case [b"TRLG", int(), bytes(nonce), bytes(proof)] if len(nonce) == NONCE_BYTES:
                if not hmac.compare_digest(proof, self._proof(b"connector", self._nonce, nonce)):
                    send([1, "the token is wrong: use the token file that `trilogue up` wrote"])
                    raise ProtocolError("a connection with a wrong token")
                send([0, self._proof(b"acceptor", self._nonce, nonce), self._info])
            case _:
                raise ProtocolError("the answer to the challenge has an unknown shape")

    def _on_verdict(self, message: list[Any], peer: str) -> None:
        match message:
            case [0, bytes(proof), dict(info)]:
                if not hmac.compare_digest(proof, self._proof(b"acceptor", self._peer_nonce, self._nonce)):
                    raise ProtocolError("the acceptor does not know the token: it is another system")
                self.peer_info = info
            case [1, str(text)]:
                raise NotAuthorized(text)
            case [Say.GOODBYE, str(text)]:
                raise _not_taken(peer, text)
            case _:
                raise ProtocolError("the verdict has an unknown shape")

    def _proof(self, role: bytes, acceptor_nonce: bytes, connector_nonce: bytes) -> bytes:
        return hmac.digest(self._token, b"trilogue 1 " + role + acceptor_nonce + connector_nonce, "sha256")


def _not_taken(peer: str, text: str) -> Unavailable:
    return Unavailable(f"{peer} does not take this connection: {text}")
