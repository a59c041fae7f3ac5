"""How a probe run runs: on which devices, followed by whom, and taken up where it was interrupted."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lary.configs import ClassifyConfig, RegressConfig
from lary.files import check_writable
from lary.latents.ref import SplitLatents
from lary.registry import load_plugin, loaded_plugins
from lary.runtime import log, pick_devices, progress
from lary.settings import Settings
from lary.types import Progress, UsageError

if TYPE_CHECKING:
    from lary.probes.parallel import Team
    from lary.probes.session import Session

Run = Callable[[Any, Settings], Any]

NOT_DECIDING = ("device", "overwrite", "resume", "tracker")
"""Options that leave the numbers of a run alone, and so are no part of its identity."""


def several_devices(config: ClassifyConfig | RegressConfig) -> list[str]:
    """The devices to start a process for each; none where one device is asked for, or in such a process."""
    from lary.probes.parallel import is_member

    if is_member():
        return []
    devices = pick_devices(config.gpus, config.device)
    return devices if len(devices) > 1 else []


def run_on(devices: list[str], work: Run, config: ClassifyConfig | RegressConfig, settings: Settings) -> None:
    """Do a run with one process per device; the first one writes the result."""
    from lary.probes.parallel import launch

    log.info("one process on each of %s", ", ".join(devices))
    launch(_work, (work, config, settings, loaded_plugins()), devices)


def _work(work: Run, config: ClassifyConfig | RegressConfig, settings: Settings, plugins: tuple[Path, ...]) -> None:
    """What each process of a run does."""
    for plugin in plugins:
        load_plugin(plugin)
    work(config, settings)


@dataclass(frozen=True)
class Place:
    """The process that a run happens in: its device, and the team that it belongs to."""

    device: str
    team: Team

    @classmethod
    def of(cls, config: ClassifyConfig | RegressConfig) -> Place:
        """This process's. Raises UsageError for devices that aren't there."""
        from lary.probes.parallel import ALONE, is_member, join

        if is_member():
            team, device = join()
            return cls(device, team)
        return cls(pick_devices(config.gpus, config.device)[0], ALONE)

    def progress(self, total: int, title: str) -> AbstractContextManager[Progress | None]:
        """A progress bar, in the leading process alone."""
        return progress(total, title) if self.team.leads else nullcontext()

    @contextmanager
    def session(
        self, config: ClassifyConfig | RegressConfig, identity: str, seed: int, folder: Path, title: str
    ) -> Iterator[Session]:
        """What surrounds the training of one seed, whose files go to `folder`; trackers show it as `title`.

        Raises:
            UsageError: the library of ``--tracker`` isn't installed.
            LaryError: the folder can't be written to.
        """
        from lary.probes.session import Session
        from lary.probes.tracker import Silent, open_tracker

        options = {name: value for name, value in asdict(config).items() if value is not None} | {"seed": seed}
        name = f"{config.dataset} {title} seed {seed}"
        if self.team.leads:
            check_writable(folder)
        tracker = open_tracker(config.tracker, folder, name, options) if self.team.leads else Silent()
        try:
            yield Session(identity, config.resume, tracker, self.team)
        finally:
            tracker.close()


def check_stores(dataset: str, splits: Mapping[str, SplitLatents]) -> None:
    """Refuse latents that were extracted from another data set than the table is of. Raises UsageError."""
    for split in splits.values():
        identity = split.store.get("identity", {})
        if (found := identity.get("dataset", dataset)) != dataset:
            raise UsageError(
                f"{split.table.path} names latents of '{found}', not of '{dataset}': run 'lary extract --model "
                f"{identity.get('model')} --dataset {dataset} --split {split.table.split}' again."
            )
