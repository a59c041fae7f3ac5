"""``lary models``, apart from other commands so that it answers at once."""

from __future__ import annotations

from lary.cli.places import ALL_DEFAULT, Places


def models(key: str | None = None, *, places: Places = ALL_DEFAULT) -> int:
    """List the models and whether their weights are here, or show the record of one.

    Args:
        key: Model to show.
    """
    places.load_plugins()
    from lary.models.overview import model_text, models_table
    from lary.models.spec import MODELS

    values = places.settings().values()
    print(model_text(MODELS.get(key), values) if key else models_table(values))
    return 0
