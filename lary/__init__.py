"""lary: how much of an action does a visual representation hold?"""

__version__ = "0.1.0"
