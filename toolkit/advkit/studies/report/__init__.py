"""`advkit report`: runs as one HTML page that needs no network, no other file and no script."""

from __future__ import annotations

from .page import Page, build, report

__all__ = ["Page", "build", "report"]
