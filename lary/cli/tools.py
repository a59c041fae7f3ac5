"""``lary data``: all commands about data in one place."""

from lary.cli.audit import COMMANDS
from lary.cli.data import data_app
from lary.cli.imports import download, import_lerobot, import_videos

for command in (*COMMANDS, download, import_lerobot, import_videos):
    data_app.command(command)

__all__ = ["data_app"]
