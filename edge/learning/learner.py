"""What the drafting process knows of its learner: it gives lessons and takes what was learnt."""

import contextlib
import subprocess
import threading
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

from haversack.devices.errors import HaversackError
from haversack.edge.child_program import child_command
from haversack.edge.learning.lessons import Lesson, Maker, Notes
from haversack.edge.learning.messages import NOTHING, WANTED, Progress, Task
from haversack.edge.pipe import Pipe
from haversack.edge.sequence import Logits

_MOST_WAITING = 16  # lessons; older ones are dropped
_PROGRAM = "haversack.edge.learning.program"


class Learner:
    """Has a process of its own learn, which is started with the first lesson. Its errors end
    learning, and `why_not` tells them."""

    def __init__(
        self, task: Task, maker: Maker, forget: Callable[[], object] = lambda: None
    ) -> None:
        """`forget` is called once nothing of it is used any more."""
        self._task, self._maker, self._forget = task, maker, forget
        self._process: subprocess.Popen[bytes] | None = None
        self._thread: threading.Thread | None = None
        self.changed = threading.Condition()  # guards what follows
        self._lessons = deque[Lesson](maxlen=_MOST_WAITING)
        self._is_closed = self._has_new = False
        self.why_not = ""  # empty while it learns
        self.progress = NOTHING

    def notes(self, text: Sequence[int]) -> "CallNotes":
        """Return what takes note of a text from here on."""
        return CallNotes(self, self._maker, Notes(text))

    def give(self, lesson: Lesson) -> None:
        """Have it learn from a lesson, as soon as it comes to that; of many the latest."""
        with self.changed:
            if self._is_closed or self.why_not:
                return
            self._lessons.append(lesson)
            self.changed.notify_all()
            if self._process is None:
                self._start()

    def take_adapter(self) -> Path | None:
        """Return the path of what was learnt if it is another than at the last call."""
        if not self._has_new:
            return None
        with self.changed:
            self._has_new = False
            return self._task.adapter

    def end(self, why: str) -> None:
        """Learn no more."""
        with self.changed:
            self.why_not = self.why_not or why
            self._lessons.clear()
            self.changed.notify_all()

    def _start(self) -> None:
        try:
            self._process = subprocess.Popen(
                child_command(_PROGRAM),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
        except OSError as error:
            self.end(f"the learner cannot be started: {error}")
            return
        arguments = (self._process,)
        self._thread = threading.Thread(target=self._serve, args=arguments, daemon=True)
        self._thread.start()

    def _serve(self, process: "subprocess.Popen[bytes]") -> None:
        assert process.stdin is not None and process.stdout is not None
        why = ""
        try:
            why = self._served(Pipe(process.stdout, process.stdin))
        except (EOFError, OSError):  # it is gone
            pass
        except Exception as error:  # what it sent is none of ours
            why = f"the learner answers nonsense: {error}"
        process.kill()
        status = process.wait()
        for stream in (process.stdin, process.stdout):
            with contextlib.suppress(OSError):  # what was not sent is lost
                stream.close()
        if not self._is_closed:
            self.end(why or f"the learner ended with status {status}")

    def _served(self, pipe: Pipe) -> str:
        """Give lessons until there are no more; return why it ended, if it said that."""
        pipe.send(self._task)
        while True:
            message = pipe.receive()
            if isinstance(message, Progress):
                self._note(message)
            elif message != WANTED:
                return str(message)
            elif (lesson := self._next_lesson()) is None:
                return ""
            else:
                pipe.send(lesson)

    def _next_lesson(self) -> Lesson | None:
        with self.changed:
            self.changed.wait_for(lambda: self._lessons or self._is_closed or self.why_not)
            return None if self._is_closed or self.why_not else self._lessons.popleft()

    def _note(self, told: Progress) -> None:
        with self.changed:
            known = self.progress if told.right_after < 0 else told
            right = known.right_before, known.right_after
            self.progress = Progress(told.num_steps, *right, told.is_new)
            self._has_new = self._has_new or told.is_new
            self.changed.notify_all()

    def close(self) -> None:
        """End it; may be called twice. What it had written stays."""
        with self.changed:
            self._is_closed = True
            self.changed.notify_all()
        if self._process is not None:
            self._process.kill()  # its file is whole at any time
        if self._thread is not None:
            self._thread.join()
        self._forget()


class CallNotes:
    """What is kept of a call's text for its learner."""

    def __init__(self, learner: Learner, maker: Maker, notes: Notes) -> None:
        self._learner, self._maker, self._notes = learner, maker, notes

    def note(self, logits: Logits, token: int) -> None:
        """Note that `token` was chosen by `logits`."""
        if not self._learner.why_not and self._notes.note(logits, token):
            self.close()

    def close(self) -> None:
        """Give the lesson of what was noted, if it is enough; more may be noted."""
        try:
            lesson = self._notes.taken(self._maker)
        except (HaversackError, ValueError, MemoryError) as error:  # the text does not need it
            self._learner.end(f"no lesson can be made of a text: {error}")
            return
        if lesson is not None:
            self._learner.give(lesson)
