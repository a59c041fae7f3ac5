"""What data sets there are and on which terms: the text of ``lary datasets``. Loads no heavy library."""

from __future__ import annotations

import textwrap

from lary.data.spec import DATASETS, DatasetSpec, LabelSpace

HEADER = ("key", "title", "kind", "splits", "size", "licence", "commercial")


NOTES = (
    "Terms, splits and citation of one: lary datasets KEY.",
    "Size in bytes, of its files on the hub: lary data download --include KEY --dry-run.",
)


def kind_of(spec: DatasetSpec) -> str:
    """What is shown and what is asked, such as ``pair, 5 x 7 actions`` or ``clip, 54 classes``."""
    if isinstance(spec.target, LabelSpace):
        return f"{spec.media}, {len(spec.target.classes)} classes"
    return f"{spec.media}, {spec.target.horizon} x {len(spec.target.dims)} actions"


def commercial(spec: DatasetSpec) -> str:
    """Whether all, some or none of the sources allow commercial use: yes, in part, no."""
    allowed = [licence.commercial for licence in spec.licences]
    return "yes" if all(allowed) else "in part" if any(allowed) else "no"


def size(spec: DatasetSpec) -> str:
    """Samples over all splits; the bytes of a published data set are known to its hub alone."""
    return f"{spec.samples:,} samples" if spec.samples is not None else "-"


def datasets_table() -> str:
    """One line per data set, and below them where bytes and citations are."""
    rows = [HEADER]
    for spec in DATASETS:
        names = "; ".join(dict.fromkeys(licence.name for licence in spec.licences))
        rows.append((spec.name, spec.title, kind_of(spec), ",".join(spec.splits), size(spec), names, commercial(spec)))
    order = (0, 1, 2, 3, 4, 6, 5)  # the licence may be long, so it stands last
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADER))]
    lines = ["  ".join(row[column].ljust(widths[column]) for column in order).rstrip() for row in rows]
    return "\n".join([*lines, "", *NOTES])


def dataset_text(spec: DatasetSpec) -> str:
    """A record in full, with terms and citation."""
    lines = [
        f"{spec.name}: {spec.title}",
        *textwrap.wrap(spec.description, 100, initial_indent="  ", subsequent_indent="  "),
        f"kind:        {kind_of(spec)}" + (f", stride {spec.stride}" if spec.stride else ""),
        f"size:        {size(spec) if spec.samples is not None else 'not published'}",
        f"revision:    {spec.revision or '-'}",
        f"download:    {f'lary data download --include {spec.name} (--dry-run: bytes)' if spec.repository else '-'}",
        "splits:",
        *(f"  {name}: LARY_ROOT/data/{spec.table_name(name)}, DATA_DIR/{split.root}" for name, split in
          spec.splits.items()),
        *(f"  {', '.join(list(spec.roles(name).values())[:2])}: drawn anew from these tables, for --splits {name}"
          for name in spec.split_sets),
        f"probes:      train on {spec.train}, validate on {spec.validation}"
        + (f", unseen {spec.unseen}" if spec.unseen else ""),
    ]  # fmt: skip
    if isinstance(spec.target, LabelSpace):
        lines += textwrap.wrap(
            f"classes:     {', '.join(spec.target.classes)}", 110, subsequent_indent=" " * 13, break_on_hyphens=False
        )
    else:
        units = dict(zip(spec.target.dims, spec.target.units, strict=False))
        dims = [f"{dim} ({units[dim]})" if units.get(dim) else dim for dim in spec.target.dims]
        lines += textwrap.wrap(f"dimensions:  {', '.join(dims)}", 110, subsequent_indent=" " * 13)
    lines.append(f"commercial:  {commercial(spec)}")
    lines.append("licences:")
    for licence in spec.licences:
        use = "commercial use allowed" if licence.commercial else "no commercial use"
        lines.append(f"  {licence.source}: {licence.name}; {use}" + (f"; {licence.url}" if licence.url else ""))
    if spec.citation:
        lines += ["citation:", textwrap.indent(spec.citation, "  ")]
    return "\n".join(lines)
