"""Ray's directory of named actors, as the actors ask it.

Owns the look-up from an actor's name to its address. It must not know what the actors do. Invariants: nothing here
blocks the event loop (Ray's own look-up is a blocking call, so it runs in a thread); every answer comes, or fails,
within `LOOKUP_S`; what Ray says is a hint: who answers at the address proves by the token that it belongs to us.
"""

from __future__ import annotations

import asyncio
from typing import Any

from trilogue.actors.protocol.errors import DataError, Unavailable
from trilogue.cluster.settings.config import NAMESPACE

LOOKUP_S = 5.0


class RayAddressBook:
    """Finds actors by name in the namespace `trilogue`. Can be pickled; keeps handles, which outlive restarts."""

    def __init__(self) -> None:
        self._handles: dict[str, Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"_handles": {}}

    async def address_of(self, name: str) -> str:
        """The actor's "host:port". Raises `Unavailable` when it is not known now."""
        import ray

        try:
            async with asyncio.timeout(LOOKUP_S):
                handle: Any = self._handles.get(name)
                if handle is None:
                    handle = await asyncio.to_thread(ray.get_actor, name, namespace=NAMESPACE)
                    self._handles[name] = handle
                address: str = await handle.ready.remote()
                return address
        except TimeoutError:
            raise Unavailable(f"{name} does not answer yet") from None
        except ValueError:
            raise Unavailable(f"{name} is not there yet") from None
        except ray.exceptions.RayTaskError as error:
            raise Unavailable(f"{name} cannot serve: {error.cause}") from None
        except DataError as error:
            raise Unavailable(f"{name} cannot serve: {error}") from None
        except ray.exceptions.RayError as error:
            # A dead actor's handle stays dead, even when another one has taken its name.
            self._handles.pop(name, None)
            raise Unavailable(f"{name} is restarting ({type(error).__name__})") from None
