"""What the trainings of all probes share: state, epochs, trackers."""

import functools
import importlib
import json
import math
import time
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, is_dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from lary import __version__
from lary.arrays import Ints
from lary.configs import TrackerName
from lary.files import atomic_write, digest, remove_torn
from lary.probes.outcome import SelectionName
from lary.probes.sources import read_batches
from lary.probes.team import SINGLE, Team
from lary.runtime import log, set_arithmetic, timed
from lary.types import BenchmarkProtocol, JsonDict, LatentSource, Progress, UsageError

PROJECT = "lary"  # to which the runs of Weights & Biases and Trackio belong
STATE_FILE = "training_state.pt"
STATE_FORMAT = 5
WAITING = "waiting for latents"
Method = TypeVar("Method", bound=Callable[..., Any])
# Share of the time that saving states may take: short epochs are skipped.
STATE_SHARE = 0.05


@dataclass(frozen=True, kw_only=True)
class Session:
    """Surroundings of a training: protocol, seed, device, folder and so on.

    `identity` names latents and options; without one no state is kept.
    `tracker` is what `tracking` yields. `spent` collects seconds by stage:
    those of `staged` methods, and of each wait for latents.
    """

    protocol: BenchmarkProtocol
    seed: int
    preset: str = ""
    device: str = "cpu"
    folder: Path | None = None
    progress: Progress | None = None
    identity: str = ""
    tracker: Any = None
    team: Team = SINGLE
    precision: str | None = None
    spent: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))


def staged(stage: str) -> Callable[[Method], Method]:
    """Note the seconds of a method of a training as those of a stage."""

    def decorate(method: Any) -> Any:
        @functools.wraps(method)
        def measured(self: Any, *given: Any, **named: Any) -> Any:
            begun = time.perf_counter()
            found = method(self, *given, **named)
            self.session.spent[stage].append(time.perf_counter() - begun)
            return found

        return measured

    return decorate


class Training(ABC):
    """A training in progress, with its history and the epochs picked so far.

    The state, ``training_state.pt``, is rewritten at ends of epochs, after the `unsaved`
    weights. One of another session, settings or inputs is removed before its weights are.
    """

    checkpoint: ClassVar[str]  # the file of the weights, without which a state is useless
    choice: ClassVar[str]  # how ``corrected`` selects what it reports

    def __init__(self, inputs: Any, settings: Any, session: Session) -> None:
        self.inputs, self.settings, self.session = inputs, settings, session
        self.team, self.device = session.team, session.device
        self.rows = np.arange(len(inputs.train), dtype=np.int64)
        self.corrected = session.protocol == "corrected"
        self.folder = session.folder if self.team.leads else None  # one process alone writes
        self.per_epoch = math.ceil(len(self.rows) / settings.batch_size)
        self.total, self.step = self.per_epoch * settings.epochs, 0  # updates: all, and so far
        self.history: list[JsonDict] = []
        # By name of the selection: rank, epoch, predictions as tensors.
        self.picks: dict[SelectionName, JsonDict] = {}
        deciding = [
            type(self).__name__,
            STATE_FORMAT,
            __version__,
            torch.__version__,
            session.identity,
            session.protocol,
            session.seed,
            self.device.partition(":")[0],
            settings,
            inputs,
        ]
        self._identity = digest(json.dumps(deciding, default=_plain))
        self._state = session.folder / STATE_FILE if session.folder and session.identity else None
        self._written, self._cost = time.monotonic(), 0.0
        self.unsaved: Mapping[str, Any] | None = None

    @abstractmethod
    def build(self) -> Sequence[Any]:
        """Make all that has a state dict: networks, optimizers. Raises UsageError."""

    @abstractmethod
    def run_epoch(self, epoch: int) -> JsonDict:
        """Train and score an epoch; returns its history entry. Raises LaryError."""

    @abstractmethod
    def close_epoch(self, epoch: int) -> None:
        """Write files, after the history has its entry."""

    def run(self) -> None:
        set_arithmetic(self.device, self.session.precision or "fp32")
        state, last = self._load(), self.settings.epochs
        torch.manual_seed(self.session.seed)
        if state is not None:
            self.step, self.history, self.picks = state["step"], state["history"], state["picks"]
            if self.session.progress:
                self.session.progress.skip(len(self.history) * len(self.rows))
            if len(self.history) == last:  # nothing is left to train
                return
        built = self.build()
        if state is not None:
            for each, before in zip(built, state["built"], strict=True):
                each.load_state_dict(before)
            torch.set_rng_state(state["random"])  # last, since `build` draws weights
        for epoch in range(len(self.history) + 1, last + 1):
            self.history.append(self.run_epoch(epoch))
            self.log(self.history[-1])
            self.close_epoch(epoch)
            # The last state has no networks: only its picks are read.
            self.keep([] if epoch == last else built, last=epoch == last)

    def _load(self) -> JsonDict | None:
        """Load the state of this very training; None if there is none to use."""
        path, found = self._state, None
        if path is None:
            return None
        if self.team.leads:
            remove_torn(path.parent)
        if path.exists():
            try:
                found = torch.load(path, weights_only=True, map_location="cpu")
                if found["identity"] != self._identity:
                    raise LookupError("it belongs to another training")
                if found["beside"] and not (path.parent / self.checkpoint).exists():
                    raise LookupError(f"{self.checkpoint} is gone")
                log.info("%s: resuming after epoch %d", path, len(found["history"]))
            except Exception as error:  # torch raises many kinds for other files
                reason = str(error).partition("\n")[0]
                log.warning("%s can't be taken up (%s): starting over", path, reason)
                found = None
        if self.team.size > 1:
            torch.distributed.barrier()  # removed after all have read it
        if found is None and self.team.leads:
            path.unlink(missing_ok=True)
        return found

    @staged("saving")
    def keep(self, built: Sequence[Any], *, last: bool) -> None:
        """Save weights and state, if they are the `last` or enough time has passed."""
        started = time.monotonic()
        due = self._state and self._cost <= STATE_SHARE * (started - self._written)
        if not self.team.leads or not (due or last):
            return
        if self.folder and self.unsaved is not None:
            save_checkpoint(self.folder / self.checkpoint, self.unsaved)
            self.unsaved = None
        if self._state is None:
            return
        state = {
            "identity": self._identity,
            "step": self.step,
            "history": self.history,
            "picks": self.picks,
            "built": [each.state_dict() for each in built],
            "random": torch.get_rng_state(),
            "beside": (self._state.parent / self.checkpoint).exists(),
        }
        save_checkpoint(self._state, state)
        self._written = time.monotonic()
        self._cost = self._written - started

    def offer(self, name: SelectionName, rank: list[float], **pick: Any) -> bool:
        """Replace a pick if `rank` is strictly larger; returns whether it was."""
        if name in self.picks and rank <= self.picks[name]["rank"]:
            return False
        self.picks[name] = {"rank": rank, **pick}
        return True

    def advance(self, count: int) -> None:
        if self.session.progress and count:
            self.session.progress.advance(count)

    def log(self, values: Mapping[str, Any]) -> None:
        """Log finite numbers to the tracker, those of lists as ``name/0``."""
        if self.session.tracker is None or not self.team.leads:
            return
        numbers: dict[str, float] = {}
        for name, value in values.items():
            many = {f"{name}/{at}": each for at, each in enumerate(value)} if isinstance(value, list) else {name: value}
            numbers |= {key: float(each) for key, each in many.items() if each is not None and math.isfinite(each)}
        self.session.tracker.log(numbers, step=self.step)

    def batches(self, source: LatentSource, order: Ints) -> Iterator[tuple[Ints, Tensor, int]]:
        size, share = self.settings.batch_size, self.team.share
        found = read_batches(source, order, size, self.device, share)
        for rows, tokens, count in timed(found, self.session.spent[WAITING]):
            self.step += 1
            yield rows, tokens, count
            self.advance(count)

    def autocast(self, *, scoring: bool = False) -> torch.autocast:
        """The context of forward passes; scoring in bfloat16 is for CUDA and ``corrected``."""
        kind, half = self.device.partition(":")[0], self.session.precision == "bf16"
        if scoring:
            half = half and kind == "cuda" and self.corrected
        return torch.autocast(kind, torch.bfloat16, half)

    @torch.no_grad()
    def predict(self, network: Callable[[Tensor], Tensor], source: LatentSource, rows: Ints) -> Tensor:
        """Outputs (n, ...) of `network` for `rows`, as float32 on the CPU."""
        size = self.settings.batch_size
        own = self.team.dealt(len(rows), size)
        batches = timed(read_batches(source, rows[own], size, self.device), self.session.spent[WAITING])
        parts = [network(tokens).float().cpu() for _, tokens, _ in batches]
        values = torch.cat(parts) if parts else torch.empty(0)
        return self.team.collect(own, values, len(rows))

    def stated(self) -> JsonDict:
        names = "preset", "protocol", "seed", "device", "precision"
        own = {name: getattr(self.session, name) for name in names}
        own |= {"choice": self.choice} if self.corrected else {}
        sizes = {"fit_samples": len(self.rows), "tokens": list(self.inputs.train.shape)}
        return {**asdict(self.settings), **own, **sizes}


def _plain(value: Any) -> Any:
    """Part of an identity as JSON; latents, which the session names, by shape."""
    if isinstance(value, np.ndarray):
        return digest(value.tobytes())
    return vars(value) if is_dataclass(value) else list(value.shape)


def has_bfloat16(device: str) -> bool:
    """Whether a device has bfloat16 units; others emulate it, slower than float32."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_capability(device)[0] >= 8
    # Older torch has no such function.
    look: Any = getattr(torch.cpu, "get_capabilities", dict)
    found = look() if device == "cpu" else {}
    return bool(found.get("avx512_bf16") or found.get("amx_bf16"))


def chosen_precision(preset: bool, session: Session) -> str:
    """The session's precision, or else the fastest that costs no score; `preset`: it is for bfloat16."""
    if session.precision or (preset and has_bfloat16(session.device)):
        return session.precision or "bf16"
    fast = session.device.startswith("cuda") and session.protocol == "corrected"
    return "tf32" if fast else "fp32"


def adamw(network: nn.Module, lr: float, weight_decay: float) -> torch.optim.AdamW:
    """AdamW with torch's defaults; as published, biases and norms decay too."""
    return torch.optim.AdamW(network.parameters(), lr=lr, weight_decay=weight_decay, fused=True)


def save_checkpoint(path: Path, value: Mapping[str, Any]) -> None:
    """Save for ``torch.load(..., weights_only=True)`` on any machine. Raises LaryError."""
    if torch.cuda.is_initialized():
        from accelerate.utils import send_to_device

        value = send_to_device(value, "cpu")
    with atomic_write(path) as stream:
        torch.save(value, stream)


@contextmanager
def tracking(name: TrackerName, folder: Path, run: str, options: Mapping[str, Any]) -> Iterator[Any]:
    """A started tracker of accelerate, by its name; None for ``none``.

    TensorBoard writes to ``tensorboard/`` of the folder. Raises UsageError.
    """
    if name == "none":
        yield None
        return
    from accelerate import PartialState
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    PartialState()  # accelerate's trackers refuse to log without it
    kind = LOGGER_TYPE_TO_CLASS[name]
    try:
        importlib.import_module(name)
        if kind.requires_logging_directory:
            tracker = kind(name, folder)
        else:
            known = {option: value for option, value in options.items() if value is not None}
            where = {"dir": str(folder)} if name == "wandb" else {}
            tracker = kind(PROJECT, name=run, config=known, **where)
        tracker.start()
    except ImportError:
        raise UsageError(
            f"--tracker {name}: '{name}' is not installed. Run \"pip install 'lary[{name}]'\", or leave it out."
        ) from None
    try:
        yield tracker
    finally:
        tracker.finish()
