"""The audit of a data set: what its splits share and lack, and what is odd in them.

Frames are decoded on request. A leak is a file, an episode or video, a segment
or a picture in two splits; all else is a warning or a note. Drawn splits are
audited when they are named.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Collection
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path

import pandas

from lary.arrays import Pixels
from lary.data.configs import AuditConfig
from lary.data.frames import read_frames
from lary.data.spec import DatasetSpec, LabelSpace
from lary.data.splits import find_table
from lary.data.tables import SampleTable, read_table
from lary.files import media_facts, read_json
from lary.runtime import in_threads, progress
from lary.settings import Settings
from lary.types import JsonDict, MediaError, UsageError

MOMENT = re.compile(r"(\d+|start|begin|first|end|last)\.[^./]+$")
"""When a frame was taken: the number or word at the end of its name."""
WORDS = {"start": 0, "begin": 0, "first": 0, "end": 1, "last": 1}

KINDS = json.loads(Path(__file__).with_suffix(".json").read_bytes())
"""Severity and text of findings by name; programs rely on the names."""
ORDER = ("leak", "warning", "note")


@dataclass(frozen=True)
class Finding:
    """What was found in one split or two: `count` of `total`."""

    severity: str
    kind: str
    splits: tuple[str, ...]
    count: int
    total: int
    text: str
    examples: tuple[str, ...]


@dataclass(frozen=True)
class AuditReport:
    """The splits in numbers, and what was found, leaks first."""

    dataset: str
    splits: tuple[JsonDict, ...]
    findings: tuple[Finding, ...]

    @property
    def leaks(self) -> tuple[Finding, ...]:
        return tuple(finding for finding in self.findings if finding.severity == "leak")

    def json(self) -> JsonDict:
        return {"version": 1, **asdict(self), "leaks": len(self.leaks)}

    def text(self) -> str:
        lines = [f"{self.dataset}: {', '.join(facts['split'] for facts in self.splits)}"]
        for facts in self.splits:
            line = "  {split}: {rows} rows, {groups} groups".format(**facts)
            line += f", {sum(map(bool, facts['embodiments']))} robot types"
            line += f", {len(facts['classes'])} classes" * bool(facts["classes"])
            lines.append(f"{line} ({facts['table']})")
        for finding in self.findings:
            line = f"{finding.severity:8}{' and '.join(finding.splits)}: {finding.text}"
            lines.append(line + f", such as {', '.join(finding.examples)}" * bool(finding.examples))
        number = Counter(finding.severity for finding in self.findings)
        lines.append(", ".join(f"{number[name]} {name}s" for name in ORDER))
        return "\n".join(lines)


class Part:
    """One split: its table, and its rows with paths as they are read.

    ``shown`` are paths with frame indices, ``segment`` is a pair's folder or
    the video.
    """

    def __init__(self, table: SampleTable) -> None:
        self.table, self.name = table, table.split
        self.labelled = isinstance(table.spec.target, LabelSpace)
        self.unit, pair = table.unit, table.spec.media == "pair"
        # The prefix keeps equal names under different roots apart.
        prefix = f"{table.spec.split(self.name).root}/"
        lines = []
        for sample in table:
            media = [prefix + path for path in sample.media]
            shown = (*media, *map(str, sample.frame_index))
            group = prefix + sample.group
            target = sample.target if self.labelled else prefix + sample.target
            segment = media[0].rpartition("/")[0] if pair else group
            lines.append((media[0], media[-1], shown, group, target, sample.embodiment, segment))
        columns = ["first", "last", "shown", "group", "target", "robot", "segment"]
        self.rows = pandas.DataFrame(lines, columns=columns)

    def facts(self) -> JsonDict:
        classes = Counter(self.rows["target"] if self.labelled else ())
        return {
            "split": self.name,
            "table": str(self.table.path),
            "rows": len(self.rows),
            "groups": self.rows["group"].nunique(),
            "classes": dict(sorted(classes.items())),
            "embodiments": dict(sorted(Counter(self.rows["robot"]).items())),
        }


def finding(
    kind: str, parts: tuple[Part, ...], hits: Collection[str], total: int | None = None, **facts: object
) -> list[Finding]:
    """One finding, or none, of `total` or of the last part's rows."""
    if not hits:
        return []
    severity, text = KINDS[kind]
    one, other = parts[0], parts[-1]
    total = len(other.rows) if total is None else total
    facts |= {"one": one.name, "other": other.name, "unit": other.unit, "rows": len(other.rows)}
    text = f"{len(hits)} of {total} {text.format(**facts)}"
    examples = tuple(filter(None, list(hits)[:3]))
    names = tuple(part.name for part in parts)
    return [Finding(severity, kind, names, len(hits), total, text, examples)]


def audit(spec: DatasetSpec, config: AuditConfig, settings: Settings) -> AuditReport:
    """Audit the splits of a data set. Raises UsageError."""
    parts = open_parts(spec, config, settings)
    findings: list[Finding] = []
    contents = []
    trains = {spec.roles(chosen)["train"] for chosen in (None, *spec.split_sets)}
    for part in parts:
        findings += inspect_table(part)
        if config.training and part.name not in trains:
            findings += find_trained(part, config.training)
        contents.append(digest_frames(part, config.workers, findings) if config.frames else {})
    for (one, mine), (other, theirs) in combinations(zip(parts, contents, strict=True), 2):
        findings += compare_tables(one, other)
        first = {digest: name for name, digests in reversed(mine.items()) for digest in digests}
        twins = {name: first[digest] for name, digests in theirs.items() for digest in digests if digest in first}
        renamed = [f"{name} = {twin}" for name, twin in twins.items() if name not in mine]
        findings += finding("same_frame_content", (one, other), renamed, len(theirs))
    findings.sort(key=lambda finding: ORDER.index(finding.severity))
    return AuditReport(spec.name, tuple(part.facts() for part in parts), tuple(findings))


def open_parts(spec: DatasetSpec, config: AuditConfig, settings: Settings) -> list[Part]:
    tables = {}
    for entry in config.table:
        name, _, file = entry.partition("=")
        if not file:
            raise UsageError(f"--table {entry}: expected SPLIT=FILE.")
        tables[name] = Path(file)
    # Without files to open, paths are only compared.
    data_dir = settings.path("DATA_DIR") if config.frames or config.training else Path()
    usual = [name for name in spec.roles(None).values() if name in {*spec.splits, *spec.drawn}]
    found, missing = [], ""
    for name in dict.fromkeys((*(config.splits or usual), *tables)):
        try:
            path = find_table(spec, name, settings.path("LARY_ROOT"), tables.get(name))
        except UsageError as error:
            if name in config.splits or name in tables:
                raise
            missing = str(error)
            continue
        found.append(Part(read_table(spec, name, path=path, data_dir=data_dir)))
    if not found:
        raise UsageError(f"There is nothing to audit. {missing}")
    return found


def inspect_table(part: Part) -> list[Finding]:
    """What a split's own table says of groups, rows and pairs."""
    rows, one, first = part.rows, (part,), part.rows["first"]
    again, equal = rows.duplicated("shown"), rows.duplicated(["shown", "target"])
    found = finding("no_group", one, list(first[[not source for source in part.table.sources]]))
    found += finding("repeated_row", one, list(first[equal]))
    found += finding("contradiction", one, list(first[again & ~equal]))
    if part.table.spec.media != "pair":
        return found
    moments = [rows[name].str.extract(MOMENT)[0] for name in ("first", "last")]
    source, target = (pandas.to_numeric(moment, errors="coerce") for moment in moments)
    before, after = (moment.map(WORDS) for moment in moments)
    step = (target - source).fillna(after - before)  # not a number where the names don't tell
    reversed_pairs = list(first[step < 0])
    found += finding("reversed_pair", one, reversed_pairs, forward=(step > 0).sum())
    segments = Counter(map(frozenset, rows["shown"]))
    both = [""] * sum(count > 1 for count in segments.values())
    # Some turned round, others not: pairs were turned to augment, and then split by row.
    if reversed_pairs and len(both) < len(segments):
        found += finding("both_directions", one, both, len(segments))
    found += finding("same_frame", one, list(first[step == 0]))
    if stride := part.table.spec.stride:
        odd = rows[(target - source).abs().fillna(stride) != stride]
        spans = list(odd["first"] + " to " + odd["last"])
        found += finding("other_stride", one, spans, stride=stride)
    return found


def find_trained(part: Part, file: Path) -> list[Finding]:
    file = file / "training.json" if file.is_dir() else file
    try:
        sources = read_json(file, "record of the training")["manifest"]["parts"]
        seen = {key: set[str]().union(*(source[key] for source in sources)) for key in ("samples", "digests")}
        own = [source["groups"] for source in sources if source.get("dataset") == part.table.spec.name]
    except (KeyError, TypeError, AttributeError):
        raise UsageError(f"--training {file}: it names no samples; expected a training's folder.") from None
    samples = [sample.media[0] for sample in part.table if sample.id in seen["samples"]]
    groups = sorted(set[str]().union(*own) & {*part.table.groups()})
    paths = dict(zip(part.rows["first"], (part.table.media_path(each)[0] for each in part.table), strict=True))
    twins = [name for name, path in paths.items() if path.is_file() and media_facts(path)[:16] in seen["digests"]]
    one, model = (part,), file.parent.name
    found = finding("trained_sample", one, samples, model=model)
    found += finding("trained_group", one, groups, part.rows["group"].nunique(), model=model)
    return found + finding("trained_content", one, twins, len(paths), model=model)


def digest_frames(part: Part, workers: int, findings: list[Finding]) -> dict[str, list[bytes]]:
    """Digests of a split's images, or of three frames per clip; adds to the findings."""
    files: dict[str, tuple[Path, tuple[int, ...]]] = {}
    pairs = list(zip(part.rows["first"], part.rows["last"], strict=True))
    for names, sample in zip(pairs, part.table, strict=True):
        index = sample.frame_index
        few = index and (index[0], index[len(index) // 2], index[-1])
        for name, path in zip(names, part.table.media_path(sample), strict=False):  # a clip has one
            files.setdefault(name, (path, few))

    def digest(image: Pixels) -> bytes:
        return hashlib.sha256(f"{image.shape}".encode() + image.tobytes()).digest()

    def digests(file: tuple[Path, tuple[int, ...]]) -> list[bytes] | str:
        try:
            return read_frames([file[0]], file[1], fit=digest)
        except MediaError as error:
            return str(error)

    with progress(len(files), f"frames of {part.name}", "file") as bar:
        results = list(in_threads(digests, list(files.values()), max(workers, 1), bar=bar))
    failures = [result for result in results if isinstance(result, str)]
    content = {name: each for name, each in zip(files, results, strict=True) if not isinstance(each, str)}
    known = [pair for pair in pairs if pair[0] != pair[1] and content.keys() >= {*pair}]
    still = [source for source, target in known if content[source] == content[target]]
    findings += finding("unreadable", (part,), failures, len(files))
    findings += finding("equal_images", (part,), still, len(known))
    return content


def compare_tables(one: Part, other: Part) -> list[Finding]:
    """What two splits share, and what the second alone has."""
    both = (one, other)
    mine, theirs = ({*part.rows["first"], *part.rows["last"]} for part in both)
    found = finding("same_file", both, sorted(mine & theirs), len(theirs))
    if mine & theirs:
        inputs = set(map(frozenset, one.rows["shown"]))
        same = [key[0] for key in other.rows["shown"] if frozenset(key) in inputs]
        found += finding("same_sample", both, same)
    finer = any(part.rows["segment"].nunique() > part.rows["group"].nunique() for part in both)
    for name in ("group", "segment") if finer else ("group",):
        column = other.rows[name]
        shared = column[column.isin(set(one.rows[name]))]
        found += finding(f"same_{name}", both, list(shared.unique()), column.nunique(), shared=len(shared))
    known, new = (set(part.rows["target"]) for part in both)
    if one.labelled:
        found += finding("class_not_in_training", both, sorted(new - known), len(new))
    else:
        found += finding("same_action_file", both, sorted(new & known), len(new))
    robots = set(other.rows["robot"])
    strange = [name or "(empty)" for name in sorted(robots - set(one.rows["robot"]))]
    return found + finding("robot_not_in_training", both, strange, len(robots))
