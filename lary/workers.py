"""Worker processes that answer questions within a time limit.

Files can hang or crash a decoder, so processes of their own decode them.
Questions and answers are JSON, so that a process which read an untrusted file
returns only values. One that hangs or crashes costs its question alone.
"""

from __future__ import annotations

import importlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from itertools import islice
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import lary
from lary.types import JsonDict, LaryError

Question = JsonDict
Answer = JsonDict

SECONDS_TO_START = 120.0
SLICE = 1.0
"""Seconds of one wait for an answer."""
SECONDS_PER_CHECK = 2.0
"""Seconds between checks whether the starting process still runs."""
SECONDS_TO_STOP = 5.0
AHEAD = 4
"""Questions of `Pool.map` that wait for each worker."""


class NoAnswer(Exception):
    """The error for a worker that hung or died."""


class Hung(NoAnswer):
    """The error for a worker that gave no answer in time."""


Answers = list[Answer | NoAnswer]


class Worker:
    """One process, started with its first question, and anew after it was killed."""

    def __init__(self, arguments: Sequence[str], pass_fds: Sequence[int]) -> None:
        self._arguments = arguments
        self._pass_fds = tuple(pass_fds)
        self._process: subprocess.Popen[bytes] | None = None
        self._pipe: Connection[bytes, bytes]

    def tell(self, questions: Iterable[Question]) -> None:
        """Hand over questions; answers keep the order. Raises NoAnswer, LaryError."""
        if not self._process:
            self._start()
        try:
            for question in questions:
                self._pipe.send_bytes(json.dumps(question).encode())
        except OSError:
            raise self._crash() from None

    def answer(self, seconds: float) -> Any:
        """Return the next answer, or kill the process and raise NoAnswer."""
        # In slices, so that suspended machines or processes don't use it up.
        left = seconds
        try:
            while not self._pipe.poll(min(SLICE, left)):
                left -= SLICE
                if left <= 0:
                    self.stop()
                    raise Hung(f"no answer within {seconds:g} s")
            return json.loads(self._pipe.recv_bytes())
        except (EOFError, OSError, ValueError):
            raise self._crash() from None

    def kill(self) -> None:
        """Kill the process from another thread, whose waiting caller gets NoAnswer."""
        if process := self._process:
            process.kill()

    def stop(self) -> None:
        """Kill the process; one that can't be (a dead network file system) is left."""
        process, self._process = self._process, None
        if process:
            process.kill()
            with suppress(subprocess.TimeoutExpired):
                process.wait(2)
            self._pipe.close()

    def _start(self) -> None:
        package = str(Path(lary.__file__).parent.parent)
        paths = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
        self._pipe, theirs = Pipe()
        number = theirs.fileno()
        # Answers have their own pipe: libraries write to the standard streams.
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, str(number), *self._arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
            pass_fds=(number, *self._pass_fds),
        )
        theirs.close()
        try:
            self.answer(SECONDS_TO_START)
        except NoAnswer as error:
            raise LaryError(f"The worker process '{self._arguments[0]}' does not start: {error}.") from error

    def _crash(self) -> NoAnswer:
        """Clean up after a process that has died; returns how."""
        code = None
        if self._process:
            with suppress(subprocess.TimeoutExpired):
                code = self._process.wait(2)
        self.stop()
        by = f" (signal {-code})" if code and code < 0 else ""
        return NoAnswer(f"its process crashed{by}")


class Pool:
    """Worker processes, which start when there is work for them, and stay.

    Each calls `setup`, ``module:function``, with `arguments`; it returns the function
    that answers one question. They inherit the descriptors `pass_fds`.
    """

    def __init__(
        self, setup: str, processes: int, *, arguments: Sequence[str] = (), pass_fds: Sequence[int] = ()
    ) -> None:
        self.workers = [Worker((setup, *arguments), pass_fds) for _ in range(max(1, processes))]
        self._free: queue.SimpleQueue[Worker] = queue.SimpleQueue()
        for worker in self.workers:
            self._free.put(worker)
        self._threads = ThreadPoolExecutor(len(self.workers))
        self._asked: set[Future[Answers]] = set()
        self._dropping = False

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def map(self, questions: Iterable[Question], seconds: float) -> Iterator[tuple[int, Answer | NoAnswer]]:
        """Position and answer of every question, in order of completion.

        Each question has `seconds`, or gets NoAnswer. Raises LaryError where no
        process can be started.
        """
        waiting = enumerate(questions)
        running: dict[Future[Answers], int] = {}
        try:
            while True:
                for position, question in islice(waiting, AHEAD * len(self.workers) - len(running)):
                    running[self.submit([question], seconds)] = position
                if not running:
                    return
                for done in wait(running, return_when=FIRST_COMPLETED).done:
                    yield running.pop(done), done.result()[0]
        finally:
            self.settle()

    def submit(self, questions: Sequence[Question], seconds: float) -> Future[Answers]:
        """Hand questions to the worker that is free first; each has `seconds`.

        The future raises LaryError where no process can be started.
        """
        future = self._threads.submit(self._ask, questions, seconds)
        self._asked.add(future)
        future.add_done_callback(self._asked.discard)
        return future

    def settle(self) -> None:
        """Drop unanswered questions; the pool stays usable."""
        asked = list(self._asked)
        self._dropping = True
        for future in asked:
            future.cancel()
        ends = time.monotonic() + SECONDS_TO_STOP
        while wait(asked, 0).not_done and time.monotonic() < ends:
            for worker in self.workers:
                worker.kill()
            wait(asked, 0.5)  # then again: a process may have been about to start
        self._dropping = False

    def close(self) -> None:
        self.settle()
        self._threads.shutdown(wait=False, cancel_futures=True)
        for worker in self.workers:
            worker.stop()

    def _ask(self, questions: Sequence[Question], seconds: float) -> Answers:
        worker = self._free.get()
        found: Answers = []
        crashed = -1
        try:
            while len(found) < len(questions) and not self._dropping:
                try:
                    worker.tell(questions[len(found) :])
                    while len(found) < len(questions):
                        found.append(worker.answer(seconds))
                except NoAnswer as error:
                    # A process may also be killed from outside, say for
                    # memory: it has a second try, unlike one that hung.
                    if crashed == len(found) or isinstance(error, Hung):
                        found.append(error)
                    else:
                        crashed = len(found)
            return found
        finally:
            self._free.put(worker)


def end_with_starter() -> None:
    """Ignore Ctrl-C; end with the starting process, even if a decoder hangs."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    starter = os.getppid()

    def watch() -> None:
        while os.getppid() == starter:
            time.sleep(SECONDS_PER_CHECK)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def main() -> None:
    """Run a worker: ``python -m lary.workers PIPE MODULE:FUNCTION [ARGUMENT ...]``."""
    end_with_starter()
    pipe: Connection[bytes, bytes] = Connection(int(sys.argv[1]))
    module, _, function = sys.argv[2].partition(":")
    setup = getattr(importlib.import_module(module), function)
    answer: Callable[[Question], Answer] = setup(*sys.argv[3:])
    pipe.send_bytes(b'"ready"')
    with suppress(EOFError):
        while True:
            question = json.loads(pipe.recv_bytes())
            pipe.send_bytes(json.dumps(answer(question)).encode())


if __name__ == "__main__":
    main()
