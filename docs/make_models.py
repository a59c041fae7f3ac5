"""Write docs/models.md from the models' records: ``python docs/make_models.py``."""

from pathlib import Path

from lary.models.overview import facts, where_to_put
from lary.models.spec import MODELS, Weights

PAGE = Path(__file__).with_name("models.md")
INTRODUCTION = """\
# Models

Made from the records by `python docs/make_models.py`; a test holds it against them.

- *tokens* are (P, N, D): latent steps, tokens per step, latent dimension; (N, D) for a model without steps.
- *parameters* are counted as in the paper's tables, parts that only training needs included.
- *published* are the numbers in the tables of the paper (Nie et al. 2026, arXiv 2604.11689): Top-1 accuracy in % for
  classification, MSE of normalised actions for regression. The `paper` protocol computes as their code does.
- *paper* is what that protocol changes for the model; without such a line both protocols give the same tokens.
- *known* are facts and defects that a reader of the numbers should know.
"""


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


if __name__ == "__main__":
    PAGE.write_text(models_page(), encoding="utf-8")
