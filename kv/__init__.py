"""The front: a supervisor, and HTTP workers that hold no data."""

__version__ = "0.1.0"
