"""The command line. Its modules import torch only when a command needs it."""

from __future__ import annotations

from .main import main

__all__ = ["main"]
