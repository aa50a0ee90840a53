"""How far the steps of an attack get, in words."""

from __future__ import annotations


def short_of(steps: int, pace: float, setting: str, start: str = "the image") -> str:
    """That `steps` of `pace`, in eps, end before the edge of a ball around their start, and what to set; "" elsewhere.

    Whoever is trained or judged by them alone is so at a smaller budget.
    """
    if not steps or steps * pace >= 1 - 1e-6:  # three steps of eps/3 reach it
        return ""
    many, enough = ("1 step", "eps") if steps == 1 else (f"{steps} steps", f"eps/{steps}")
    far = f"{many} of {pace:.4g} eps can end no further than {steps * pace:.4g} eps from {start}"
    return f"{far}; choose {setting}={enough} or more, or more steps"
