"""How far the steps of an attack get, in words."""

from __future__ import annotations

from math import inf


def misfit(steps: int, pace: float, setting: str, start: str = "the image") -> str:
    """What is wrong with `steps` of `pace`, in eps, around their start, and what to set; "" where nothing is.

    Where they end before the edge of the ball, whoever is trained or judged by them alone is so at a smaller budget. A
    step that is longer than the ball is wide goes from edge to edge, whatever the gradient says of what lies between.
    """
    if not steps:
        return ""
    if 2 + 1e-6 < pace < inf:
        return (
            f"a step of {pace:.4g} eps is longer than the ball is wide, 2 eps; choose {setting}=eps/4, say (a step of "
            "2 gray levels is 2/255)"
        )
    if steps * pace >= 1 - 1e-6:  # three steps of eps/3 reach it
        return ""
    many, enough = ("1 step", "eps") if steps == 1 else (f"{steps} steps", f"eps/{steps}")
    far = f"{many} of {pace:.4g} eps can end no further than {steps * pace:.4g} eps from {start}"
    return f"{far}; choose {setting}={enough} or more, or more steps"
