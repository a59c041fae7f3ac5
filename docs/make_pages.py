"""Write the pages of models, commands and ``result.json`` from the program: ``python docs/make_pages.py``."""

import json
import re
from pathlib import Path
from typing import Any

from lary.cli import app
from lary.models.overview import facts
from lary.models.spec import MODELS, Weights
from lary.results.record import schema_text

FOLDER = Path(__file__).parent
INTRODUCTION = """\
# Models

Made from the records by `python docs/make_pages.py`; a test holds it against them.

- *tokens* are (P, N, D): latent steps, tokens per step, latent dimension; (N, D) for a model without steps.
- *parameters* are counted as in the paper's tables, parts that only training needs included.
- *published* are the numbers in the tables of the paper (Nie et al. 2026, arXiv 2604.11689): Top-1 accuracy in % for
  classification, MSE of normalised actions for regression. The `paper` protocol computes as their code does.
- *paper* is what that protocol changes for the model; without such a line both protocols give the same tokens.
- *known* are facts and defects that a reader of the numbers should know.
"""


def where_to_put(weights: Weights | None) -> str:
    """Where this machine's weights are looked for, within a sentence."""
    if weights is None:
        return "needs no weights"
    places = [weights.variable] if weights.variable else []
    places += [f"MODEL_DIR/{weights.folder}"] if weights.folder else []
    places += [f"the Python package {weights.packages[0]} of the extra '{weights.extra}'"] if weights.packages else []
    return f"on this machine they are looked for in {' or '.join(places)}" if places else "pass --weights"


def models_page() -> str:
    """The text of ``models.md``, made from the records."""
    lines = INTRODUCTION.splitlines()
    for spec in MODELS:
        rows = [*facts(spec)[1:], ("weights", where_to_put(spec.weights) + hub_text(spec.weights))]
        if spec.backbone:
            place = where_to_put(spec.backbone) + hub_text(spec.backbone)
            rows.append(("backbone", f"needed where the weights hold none; {place}"))
        lines += ["", f"## `{spec.name}`", "", spec.description + ".", "", "| | |", "|---|---|"]
        lines += [f"| {name} | {text} |" for name, text in rows]
    return "\n".join(lines) + "\n"


def hub_text(weights: Weights | None) -> str:
    """Where the hub has weights, as a half sentence."""
    if weights is None or not weights.hub:
        return ""
    pinned = f" at {weights.revision[:7]}" if weights.revision else ""
    return f", or fetched from `{weights.hub}`{pinned}"


def commands_page() -> str:
    """The text of ``commands.md``, the help of every command."""
    text = app.generate_docs(output_format="markdown", recursive=True, heading_level=1)
    return re.sub(r"\n{3,}", "\n\n", text.replace("# lary\n", "# Commands\n", 1)).strip() + "\n"


def result_page() -> str:
    """The text of ``result.md``, the fields of the record that every run writes."""
    schema: dict[str, Any] = json.loads(schema_text())
    lines = [
        "# Fields of result.json", "",
        "Made from the JSON Schema that `lary schema` prints ([result.schema.json](result.schema.json)).",
        "`lary.load_results` gives the fields that most readers want as a table.",
    ]  # fmt: skip
    for name, entry in [("result.json", schema), *schema["$defs"].items()]:
        if "properties" not in entry:
            continue
        lines += ["", f"## {name}", "", entry.get("description", ""), "", "| field | type | meaning |", "|---|---|---|"]
        for field, about in entry["properties"].items():
            lines.append(f"| `{field}` | {type_text(about)} | {about.get('description', '').replace('|', ' or ')} |")
    return "\n".join(lines) + "\n"


def type_text(about: dict[str, Any]) -> str:
    """The type of a field in words."""
    if "$ref" in about:
        name = about["$ref"].rsplit("/", 1)[1]
        return f"[{name}](#{name.lower()})"
    for several in ("anyOf", "allOf"):
        if several in about:
            return " or ".join(map(type_text, about[several]))
    if "enum" in about or "const" in about:
        return ", ".join(f"`{value}`" for value in about.get("enum", [about.get("const")]))
    items = about.get("items") or about.get("additionalProperties")
    if about.get("type") in ("array", "object") and isinstance(items, dict):
        return f"{'list' if about['type'] == 'array' else 'names and values'} of {type_text(items)}"
    return {"number": "number", "integer": "whole number", "null": "null"}.get(
        about.get("type", ""), about.get("type", "any")
    )


PAGES = {"models.md": models_page, "commands.md": commands_page, "result.md": result_page}

if __name__ == "__main__":
    for name, page in PAGES.items():
        (FOLDER / name).write_text(page(), encoding="utf-8")
