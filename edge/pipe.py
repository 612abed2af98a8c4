"""Messages between a process and its child: pickled, over a pipe of bytes."""

import pickle
import threading
from typing import IO, Any

_LENGTH_BYTES = 8


class Pipe:
    """One end. Any thread may send; one thread at a time receives."""

    def __init__(self, incoming: IO[bytes], outgoing: IO[bytes]) -> None:
        self._incoming, self._outgoing = incoming, outgoing
        self._sending = threading.Lock()

    def send(self, message: object) -> None:
        """Raises OSError if the other end is gone."""
        data = pickle.dumps(message)
        with self._sending:
            self._outgoing.write(len(data).to_bytes(_LENGTH_BYTES, "little") + data)
            self._outgoing.flush()

    def receive(self) -> Any:
        """Return the next message. Raises EOFError if the other end is gone."""
        return pickle.loads(self._read(int.from_bytes(self._read(_LENGTH_BYTES), "little")))

    def _read(self, num_bytes: int) -> bytes:
        data = self._incoming.read(num_bytes)
        if len(data) < num_bytes:
            raise EOFError
        return data
