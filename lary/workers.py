"""Worker processes that answer questions within a time limit: what files that hang or crash a decoder need.

A `Pool` names a function that makes a worker's answers. Questions and answers are JSON, one per line, by way of the
process's stdin and stdout. A question that hangs or crashes its worker costs that process alone; the next question
starts a fresh one.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import queue
import select
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
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
SECONDS_PER_CHECK = 2.0
"""How often a worker checks whether the process that started it still runs."""
SECONDS_TO_STOP = 5.0
AHEAD = 4
"""Questions of `Pool.map` that wait for each worker."""


class NoAnswer(Exception):
    """The error for a worker that hung or died."""


class Hung(NoAnswer):
    """A worker that gave no answer in time."""


class Worker:
    """One process, started when first asked, and again after it was killed."""

    def __init__(self, command: Sequence[str], pass_fds: Sequence[int] = ()) -> None:
        self._command = command
        self._pass_fds = tuple(pass_fds)
        self._process: subprocess.Popen[bytes] | None = None
        self._buffer = b""

    def tell(self, questions: Iterable[Question]) -> None:
        """Hand over questions; `answer` gives the answers in the same order. Raises NoAnswer, LaryError."""
        if self._process is None:
            self._start()
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
        try:
            started = self._line(SECONDS_TO_START).strip() == READY.encode()
        except NoAnswer as error:
            self.stop()
            raise LaryError(f"The worker process '{' '.join(self._command[1:3])}' does not start: {error}.") from error
        if not started:
            self.stop()
            raise LaryError(
                f"The worker process '{' '.join(self._command[1:3])}' does not start: it writes something else."
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


Found = Answer | NoAnswer | LaryError
"""What became of a question; LaryError where no process starts at all."""


@dataclass(frozen=True)
class _Task:
    """Questions for one worker, and who is given each answer with its position among them."""

    questions: Sequence[Question]
    seconds: float
    finish: Callable[[int, Found], None]


class Pool:
    """Worker processes, each looked after by a thread. They start when there is work for them, and stay.

    Args:
        setup: ``module:function``; the function is called in each process with `arguments` and returns what answers
            one question.
    """

    def __init__(
        self, setup: str, processes: int = 0, *, arguments: Sequence[str] = (), pass_fds: Sequence[int] = ()
    ) -> None:
        self._command = (sys.executable, "-m", __name__, setup, *arguments)
        self._pass_fds = pass_fds
        self._tasks: queue.SimpleQueue[_Task | None] = queue.SimpleQueue()
        self._workers: list[Worker] = []
        self._threads: list[threading.Thread] = []
        self._dropping = False
        self._at_work = 0
        self._changed = threading.Condition()
        self.grow(processes)

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def grow(self, processes: int) -> None:
        """Have at least so many processes."""
        while len(self._workers) < processes:
            worker = Worker(self._command, self._pass_fds)
            self._workers.append(worker)
            self._threads.append(threading.Thread(target=self._look_after, args=(worker,), daemon=True))
            self._threads[-1].start()

    def map(self, questions: Iterable[Question], seconds: float) -> Iterator[tuple[int, Answer | NoAnswer]]:
        """Position and answer of every question, in order of completion; questions are taken as workers are free.

        Raises:
            LaryError: no process can be started.
        """
        found: queue.SimpleQueue[tuple[int, Found]] = queue.SimpleQueue()
        waiting, at_work = enumerate(questions), 0
        try:
            while True:
                for position, question in islice(waiting, AHEAD * len(self._workers) - at_work):
                    self.submit([question], seconds, partial(_put, found, position))
                    at_work += 1
                if not at_work:
                    return
                position, answer = found.get()
                at_work -= 1
                if isinstance(answer, LaryError):
                    raise answer
                yield position, answer
        finally:
            self.settle()

    def submit(self, questions: Sequence[Question], seconds: float, finish: Callable[[int, Found], None]) -> None:
        """Hand questions to whichever worker is free first.

        Args:
            seconds: for each of them.
            finish: called by the worker's thread with the position of each question and what became of it.
        """
        with self._changed:
            self._at_work += 1
        self._tasks.put(_Task(questions, seconds, finish))

    def settle(self) -> None:
        """Drop the questions that nobody waits for any more; busy workers are killed. The pool stays usable."""
        with self._changed:
            if self._at_work:
                self._dropping = True
                for worker in self._workers:
                    worker.kill()
                self._changed.wait_for(lambda: not self._at_work, SECONDS_TO_STOP)
                self._dropping = False

    def close(self) -> None:
        """End all processes for good."""
        self._dropping = True
        for worker in self._workers:
            self._tasks.put(None)
            worker.kill()
        for thread in self._threads:
            thread.join(SECONDS_TO_STOP)

    def _look_after(self, worker: Worker) -> None:
        while (task := self._tasks.get()) is not None:
            try:
                self._ask(worker, task)
            finally:
                with self._changed:
                    self._at_work -= 1
                    self._changed.notify_all()
        worker.stop()

    def _ask(self, worker: Worker, task: _Task) -> None:
        todo, crashed = deque(range(len(task.questions))), -1
        while todo and not self._dropping:
            try:
                worker.tell(task.questions[index] for index in todo)
                while todo:
                    answer = worker.answer(task.seconds)
                    task.finish(todo.popleft(), answer)
            except LaryError as error:
                while todo:
                    task.finish(todo.popleft(), error)
            except NoAnswer as error:
                # A process may also be killed from outside, say for memory; one that hung would hang again.
                if self._dropping or (crashed != todo[0] and not isinstance(error, Hung)):
                    crashed = todo[0]
                else:
                    task.finish(todo.popleft(), error)


def _put(found: queue.SimpleQueue[tuple[int, Found]], position: int, _: int, answer: Found) -> None:
    found.put((position, answer))


def serve(answer: Callable[[Question], Answer]) -> None:
    """Answer the lines of stdin until it ends: what a worker's process runs.

    Stray output of C libraries goes to stderr, not between the answers. An interrupt from the keyboard is the
    starter's to deal with; a worker whose starter is gone ends, even where a decoder hangs.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    print(READY, file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), file=answers, flush=True)


def _end_with(starter: int) -> None:
    while os.getppid() == starter:
        time.sleep(SECONDS_PER_CHECK)
    os._exit(1)


def main() -> None:
    """Run one worker: ``python -m lary.workers MODULE:FUNCTION [ARGUMENT ...]``."""
    module, _, function = sys.argv[1].partition(":")
    serve(getattr(importlib.import_module(module), function)(*sys.argv[2:]))


if __name__ == "__main__":
    main()
