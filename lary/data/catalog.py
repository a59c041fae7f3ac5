"""The records of the benchmark's data sets and of the simulated arms, from ``catalog.json``.

Sources: arXiv 2604.11689, section 3 and appendix (tracks, splits, licences) and the published
metadata tables. The revision of the published data sets is the day on which they were opened in
full. Four fields need a reason:

- ``drawn``: the published training and validation rows split anew, 75:25 by whole groups, since the
  published split of these data sets is by row.
- ``groups`` of VLABench are empty: the published results of these keys have single dimensions only.
- ``path_repair`` of VLABench: a cleaning step took the text ``_<stride>/`` out of the paths of
  episode ``<stride>``.
- ``unnamed_robot`` of RoboCOIN: the cell is empty for all tasks of this robot and for no other;
  everywhere else the task's folder begins with the robot.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lary.data import spec

EPISODE = r"^(.*?ep_[^/]+)/"
"""Group of a pair: its episode folder, with the task folder before it where there is one."""
CLIP = r"^((?:SSv2|EgoDex)/(?:[^/]+/)*\d+(?=_\d+(?:_rev)?\.[^./]+$)|.+?(?=(?:_rev)?\.[^./]+$))"
"""Group of a clip: its path without ``_rev`` and extension, so that a clip and its reversal stay together.

SSv2 and EgoDex clips are named ``<row of the seed table>_<line>``: clips of one row come from one video.
"""


def tupled(value: Any) -> Any:
    """A JSON value with tuples in place of its lists, as records have them."""
    if isinstance(value, dict):
        return {key: tupled(each) for key, each in value.items()}
    return tuple(map(tupled, value)) if isinstance(value, list) else value


def shipped_record(entry: dict[str, Any]) -> spec.DatasetSpec:
    """A record of ``catalog.json``. Without the validation of imported records, whose library takes time to load."""
    fields = tupled(entry)
    target = fields["target"]
    if "classes" in target:
        fields["target"] = spec.LabelSpace(**target)
    else:
        target["normalisation"] = spec.Normalisation(**target["normalisation"])
        target["orientations"] = tuple(spec.Orientation(**each) for each in target["orientations"])
        fields["target"] = spec.ActionSpace(**target)
    fields["splits"] = {name: spec.Split(**each) for name, each in fields["splits"].items()}
    fields["drawn"] = {name: spec.Draw(**each) for name, each in fields.get("drawn", {}).items()}
    fields["licences"] = tuple(spec.Licence(**each) for each in fields["licences"])
    return spec.DatasetSpec(**fields)


for record in json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8")):
    spec.register_dataset(shipped_record(record))
