"""Connections between watchers, and between a watcher and its rank. Imports only the standard library."""

import json
import selectors
import socket
from typing import Any

SEND_SECONDS = 1.0  # for one message, where the other end takes nothing any more
MAX_LINE = 1 << 18  # bytes


class Link:
    """One connection that carries lines of JSON; reading does not block, and writing not for long."""

    def __init__(self, connection: socket.socket):
        self.connection = connection
        connection.setblocking(False)
        self.rank: int | None = None  # whose watcher is at the other end, once it has said so
        self.limit = MAX_LINE
        self.selector: selectors.BaseSelector | None = None  # that waits for messages
        self._received, self.closed = b"", False

    def send(self, **message: Any) -> None:
        """Send a message; one that the other end does not take closes the link. One that has gone may have left a last
        word, and its end is read behind that."""
        if self.closed:
            return
        try:
            self.connection.settimeout(SEND_SECONDS)
            self.connection.sendall(json.dumps(message).encode() + b"\n")
            self.connection.setblocking(False)
        except (BrokenPipeError, ConnectionResetError):
            self.connection.setblocking(False)
        except OSError:
            self.close()

    def receive(self) -> list[dict[str, Any]]:
        """Return messages that have come; ``closed`` says afterwards whether more can come.

        It takes one piece, so that none who sends without end keeps this process from the others.
        """
        try:
            data = b"" if self.closed else self.connection.recv(1 << 16)
        except BlockingIOError:
            return []
        except OSError:
            data = b""
        if not data:
            self.close()
        *lines, self._received = (self._received + data).split(b"\n")
        if max(map(len, [*lines, self._received])) > self.limit:
            self.close()
            return []
        try:
            messages = [json.loads(line) for line in lines]
        except (ValueError, RecursionError):
            self.close()
            return []
        return [message for message in messages if isinstance(message, dict)]

    def close(self) -> None:
        """Close the connection."""
        if self.selector and not self.closed:
            self.selector.unregister(self.connection)
        self.closed = True
        self.connection.close()
