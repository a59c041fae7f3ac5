"""lary: how much of an action does a visual representation hold?"""

from lary.compat import install

__version__ = "0.1.0"

install()
