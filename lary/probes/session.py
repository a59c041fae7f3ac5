"""What surrounds a training: where its state is kept, who follows it, and which processes share it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lary.probes.parallel import ALONE, Team
from lary.probes.state import StateFile, identity_of_training
from lary.probes.tracker import Silent, Tracker

SILENT = Silent()


@dataclass(frozen=True)
class Session:
    """What surrounds a training.

    `identity` names latents and options from outside; an empty one keeps no state to go on from. `resume` takes up the
    state of an interrupted training of the same identity.
    """

    identity: str = ""
    resume: bool = True
    tracker: Tracker = SILENT
    team: Team = ALONE

    def state_file(self, folder: Path | None, *parts: object) -> StateFile:
        """The state of the training that `parts` decide, besides the identity."""
        identity = identity_of_training(self.identity, *parts) if self.identity else ""
        return StateFile(folder, identity, resume=self.resume, team=self.team)


UNATTENDED = Session()
