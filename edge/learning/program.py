"""The process in which a drafter learns: it takes lessons and writes what it learnt.

    python -m haversack.edge.learning.program     messages on stdin and stdout, see `edge.pipe`

It has one thread of low priority, sleeps for most of the time, and ends with its parent, not with
Ctrl-C, which in a terminal reaches both: there it ends a reply.
"""

import os
import signal
import sys
import time

from haversack.devices.errors import HaversackError
from haversack.devices.memory import anonymous_bytes
from haversack.devices.units import format_bytes
from haversack.edge.learning.adapter_file import read_adapter, write_adapter
from haversack.edge.learning.decoder_file import read_decoder
from haversack.edge.learning.messages import WANTED, Progress, Task
from haversack.edge.pipe import Pipe

_MEASURE_EVERY = 4  # steps
_MOST_PAUSE_S = 60.0


def learn(task: Task, pipe: Pipe) -> None:
    """Learn until the pipe is closed. Raises HaversackError, OSError, RuntimeError."""
    import torch

    from haversack.edge.learning.decoder import AdaptedDecoder
    from haversack.edge.learning.trainer import Trainer

    torch.set_num_threads(1)
    decoder = read_decoder(task.path)
    trainer = Trainer(AdaptedDecoder(decoder))
    try:
        trainer.decoder.adopt(read_adapter(task.adapter, task.pair))
    except (OSError, ValueError):  # there is none yet, or none that can be used
        pass
    while True:
        pipe.send(WANTED)
        lesson = pipe.receive()
        began_s = time.monotonic()
        stepped = trainer.take(lesson)
        is_due = stepped and trainer.num_steps % _MEASURE_EVERY == 0 and trainer.can_measure
        before, after = trainer.right_before_and_after() if is_due else (-1.0, -1.0)
        is_new = after > before
        if is_new:
            changes = trainer.decoder.changes()
            write_adapter(task.adapter, decoder.architecture, task.pair, changes)
        pipe.send(Progress(trainer.num_steps, before, after, is_new))
        _refuse_too_much(task)
        spent_s = time.monotonic() - began_s
        time.sleep(min(_MOST_PAUSE_S, spent_s * (1 / task.share - 1)))


def _refuse_too_much(task: Task) -> None:
    taken_bytes = anonymous_bytes()
    if taken_bytes > task.most_bytes:
        raise HaversackError(
            f"learning took {format_bytes(taken_bytes)} where {format_bytes(task.most_bytes)} were"
            " planned"
        )


def main() -> int:
    """Learn what the parent asks for; the exit status."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    pipe = Pipe(sys.stdin.buffer, sys.stdout.buffer)
    try:
        task = pipe.receive()
        if hasattr(os, "nice"):
            os.nice(task.niceness)
        learn(task, pipe)
    except (EOFError, BrokenPipeError):  # the parent is gone
        return 0
    except Exception as error:  # whatever it is, it ends learning alone
        lines = str(error).strip().splitlines() or [type(error).__name__]
        pipe.send(lines[0])
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
