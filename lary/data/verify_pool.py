"""Worker processes with a time limit per file: a file that hangs or crashes its worker costs that worker only."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import select
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import lary
from lary.data.verify_worker import READY, verdict
from lary.types import LaryError

Question = dict[str, Any]
Answer = dict[str, Any]

WORKER = (sys.executable, "-m", "lary.data.verify_worker")
SECONDS_TO_START = 120.0
PATIENCE = 4
"""How much longer a file may take that failed to answer, when it is tried again with fewer others at work."""


class NoAnswer(Exception):
    """A worker hung or died; its text says which."""


class Worker:
    """One process, started when first asked, and again after it was killed."""

    def __init__(self, command: Sequence[str]) -> None:
        self._command = command
        self._process: subprocess.Popen[bytes] | None = None
        self._buffer = b""

    def ask(self, question: Question, seconds: float) -> Answer:
        """The answer to one question. Raises NoAnswer if there is none in time, LaryError if no worker starts."""
        if self._process is None:
            self._start()
        assert self._process is not None
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(question).encode() + b"\n")
            self._process.stdin.flush()
            answer: Answer = json.loads(self._line(seconds))
        except (NoAnswer, OSError, ValueError) as error:
            self.stop()
            raise error if isinstance(error, NoAnswer) else NoAnswer("the decoder crashed") from error
        return answer

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
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        try:
            started = self._line(SECONDS_TO_START).strip() == READY.encode()
        except NoAnswer as error:
            self.stop()
            raise LaryError(f"The checker's worker process does not start: {error}.") from error
        if not started:
            self.stop()
            raise LaryError("The checker's worker process does not start: it says something else than it should.")

    def _line(self, seconds: float) -> bytes:
        assert self._process is not None
        assert self._process.stdout is not None
        pipe, end = self._process.stdout.fileno(), time.monotonic() + seconds
        while b"\n" not in self._buffer:
            left = end - time.monotonic()
            if left <= 0 or not select.select([pipe], [], [], left)[0]:
                raise NoAnswer(f"no answer within {seconds:g} s")
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


def ask_all(
    question: Callable[[int], Question], count: int, workers: int, seconds: float, command: Sequence[str] = WORKER
) -> Iterator[tuple[int, Answer]]:
    """Position and answer of every question from 0 to `count` - 1, in order of completion.

    Files without an answer are asked about once more at the end by at most two workers and with more time, so that a
    crowded machine accuses no good file; without an answer then, they are corrupt.

    Raises:
        LaryError: no worker process can be started.
    """
    again = []
    for position, found in _ask(question, range(count), workers, seconds, command):
        if isinstance(found, NoAnswer):
            again.append(position)
        else:
            yield position, found
    for position, found in _ask(question, again, min(workers, 2), PATIENCE * seconds, command):
        yield position, verdict("corrupt", str(found)) if isinstance(found, NoAnswer) else found


def _ask(
    question: Callable[[int], Question], positions: Sequence[int], workers: int, seconds: float, command: Sequence[str]
) -> Iterator[tuple[int, Answer | NoAnswer]]:
    waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
    done: queue.SimpleQueue[tuple[int, Answer | NoAnswer | LaryError]] = queue.SimpleQueue()
    for position in positions:
        waiting.put(position)
    stopped = threading.Event()

    def serve() -> None:
        worker = Worker(command)
        try:
            while not stopped.is_set():
                try:
                    position = waiting.get_nowait()
                except queue.Empty:
                    return
                try:
                    done.put((position, worker.ask(question(position), seconds)))
                except (NoAnswer, LaryError) as error:
                    done.put((position, error))
        finally:
            worker.stop()

    threads = [threading.Thread(target=serve, daemon=True) for _ in range(min(workers, len(positions)))]
    for thread in threads:
        thread.start()
    try:
        for _ in positions:
            position, found = done.get()
            if isinstance(found, LaryError):
                raise found
            yield position, found
    finally:
        stopped.set()
        for thread in threads:
            thread.join(PATIENCE * seconds + 5)
