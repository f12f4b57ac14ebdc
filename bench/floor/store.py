"""One of the floor's three receivers: read a frame, write it, fdatasync, answer one byte.

Owns the other end of ``floor``. It imports nothing but the standard library's fastest parts and does nothing that a store
could leave out: no framing, no checksum, no event loop. Invariants: the file's blocks are allocated and written
before the first frame, and each answer follows its fdatasync.

Run as ``python -m trilogue.bench.floor.store SOCKET_FD FILE FILE_BYTES FRAME_BYTES…``: one phase a frame size; a frame that
starts with `END` ends its phase.
"""

from __future__ import annotations

import os
import socket
import sys

END = 0xFF
ANSWER = b"\x01"
FILL = bytes(1 << 20)


def preallocate(path: str, size: int) -> int:
    """A file descriptor on a new file of `size` zero bytes that are on disk: later writes change no metadata."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    written = 0
    while written < size:
        written += os.write(fd, FILL[: size - written])
    os.fsync(fd)
    return fd


def serve(connection: socket.socket, fd: int, file_bytes: int, frame_bytes: int) -> None:
    """Store frames of `frame_bytes` one by one, from the file's start and round again, until one says `END`."""
    frame = memoryview(bytearray(frame_bytes))
    offset = 0
    receive, store, sync, answer = connection.recv_into, os.pwrite, os.fdatasync, connection.send
    while True:
        got = 0
        while got < frame_bytes:
            n = receive(frame[got:])
            if n == 0:
                return
            got += n
        if frame[0] == END:
            answer(ANSWER)
            return
        if offset + frame_bytes > file_bytes:
            offset = 0
        store(fd, frame, offset)
        sync(fd)
        answer(ANSWER)
        offset += frame_bytes


def main() -> None:
    """Serve the phases that the arguments name."""
    socket_fd, path, file_bytes = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    connection = socket.socket(fileno=socket_fd)
    fd = preallocate(path, file_bytes)
    connection.send(ANSWER)
    for frame_bytes in sys.argv[4:]:
        serve(connection, fd, file_bytes, int(frame_bytes))
    os.close(fd)
    connection.close()


if __name__ == "__main__":
    main()
