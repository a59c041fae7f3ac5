"""Worker processes that answer questions line by line, within a time limit: what files that hang or crash need.

A worker is ``python -m MODULE``. It says `READY` and then answers each line of stdin (a question as JSON) with a line
of stdout. Whoever hangs or crashes it costs that process only; the next question starts a fresh one.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import lary
from lary.types import LaryError

Question = dict[str, Any]
Answer = dict[str, Any]

READY = "ready"
SECONDS_TO_START = 120.0
SLICE = 1.0
"""Seconds of one wait for an answer."""
SECONDS_BETWEEN_LOOKS = 2.0
"""Of a worker for the process that started it."""


class NoAnswer(Exception):
    """A worker hung or died; its text says which."""


class Hung(NoAnswer):
    """A worker that gave no answer in time."""


class Worker:
    """One process, started when first asked, and again after it was killed.

    Attributes:
        starts: how often the process was started: what it was told before the last start, it doesn't know.
    """

    def __init__(self, command: Sequence[str], pass_fds: Sequence[int] = ()) -> None:
        self.starts = 0
        self._command = command
        self._pass_fds = tuple(pass_fds)
        self._process: subprocess.Popen[bytes] | None = None
        self._buffer = b""

    def ask(self, question: Question, seconds: float) -> Answer:
        """The answer to one question. Raises NoAnswer if there is none in time, LaryError if no worker starts."""
        self.tell([question])
        return self.answer(seconds)

    def start(self) -> None:
        """Start the process if it doesn't run. Raises LaryError."""
        if self._process is None:
            self._start()

    def tell(self, questions: Iterable[Question]) -> None:
        """Hand over questions; `answer` gives the answers in the same order. Raises NoAnswer, LaryError."""
        self.start()
        assert self._process is not None
        assert self._process.stdin is not None
        try:
            self._process.stdin.write("".join(json.dumps(question) + "\n" for question in questions).encode())
            self._process.stdin.flush()
        except OSError as error:
            self.stop()
            raise NoAnswer("the decoder crashed") from error

    def answer(self, seconds: float) -> Answer:
        """The next answer. Raises NoAnswer if there is none in time; the process is killed then."""
        try:
            answer: Answer = json.loads(self._line(seconds))
        except (NoAnswer, OSError, ValueError) as error:
            self.stop()
            raise error if isinstance(error, NoAnswer) else NoAnswer("the decoder crashed") from error
        return answer

    def kill(self) -> None:
        """Kill the process from another thread: who waits for its answer gets none."""
        process = self._process
        if process is not None:
            process.kill()

    def stop(self) -> None:
        """Kill the process; one that can't even be killed (a dead network file system) is left behind."""
        process, self._process, self._buffer = self._process, None, b""
        if process is None:
            return
        process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(2)
        for pipe in (process.stdin, process.stdout):
            with contextlib.suppress(OSError):
                assert pipe is not None
                pipe.close()

    def _start(self) -> None:
        package = str(Path(lary.__file__).parent.parent)
        path = os.pathsep.join(part for part in (package, os.environ.get("PYTHONPATH")) if part)
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0,
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}, pass_fds=self._pass_fds,
        )  # fmt: skip
        self.starts += 1
        try:
            started = self._line(SECONDS_TO_START).strip() == READY.encode()
        except NoAnswer as error:
            self.stop()
            raise LaryError(f"The worker process '{' '.join(self._command[1:3])}' does not start: {error}.") from error
        if not started:
            self.stop()
            raise LaryError(
                f"The worker process '{' '.join(self._command[1:3])}' does not start: it says something else."
            )

    def _line(self, seconds: float) -> bytes:
        assert self._process is not None
        assert self._process.stdout is not None
        pipe, left = self._process.stdout.fileno(), seconds
        while b"\n" not in self._buffer:
            # Counted in slices: the time in which this process is stopped, or its machine sleeps, is no waiting.
            part, started = min(SLICE, left), time.monotonic()
            if not select.select([pipe], [], [], part)[0]:
                left -= part
                if left <= 0:
                    raise Hung(f"no answer within {seconds:g} s")
                continue
            left -= min(part, time.monotonic() - started)
            block = os.read(pipe, 65536)
            if not block:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._process.wait(2)
                raise NoAnswer(f"the decoder crashed{_signal(self._process.returncode)}")
            self._buffer += block
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line


def _signal(code: int | None) -> str:
    return f" (signal {-code})" if code is not None and code < 0 else ""


def serve(answer: Callable[[Question], Answer | None]) -> None:
    """What a worker's module runs: answer until stdin ends; a question that gets None has no answer.

    Stray output of C libraries goes to stderr, not between the answers. An interrupt from the keyboard is the
    starter's to deal with; a worker whose starter is gone ends, even where a decoder hangs.
    """
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    print(READY, file=answers, flush=True)
    for line in sys.stdin:
        found = answer(json.loads(line))
        if found is not None:
            print(json.dumps(found), file=answers, flush=True)


def _end_with(starter: int) -> None:
    while os.getppid() == starter:
        time.sleep(SECONDS_BETWEEN_LOOKS)
    os._exit(1)
