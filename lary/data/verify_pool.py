"""Worker processes with a time limit per file: a file that hangs or crashes its worker costs that worker only."""

from __future__ import annotations

import queue
import sys
import threading
from collections.abc import Callable, Iterator, Sequence

from lary.data.verify_worker import verdict
from lary.types import LaryError
from lary.workers import Answer, NoAnswer, Question, Worker

WORKER = (sys.executable, "-m", "lary.data.verify_worker")
PATIENCE = 4
"""How much longer a file may take that failed to answer, when it is tried again with fewer others at work."""


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
