"""Objects in the place of names: what settings can not do to them."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from ..config.resolve import Resolved
from ..errors import OptionError


def refuse_undone(resolved: Resolved, given: Mapping[str, object], own: object, model: object) -> None:
    """OptionError for settings that make data or a net of a name, where an object is passed: nobody would do them."""
    data = resolved.data
    undone = {"limit": data.limit, "balance": data.balance, "size": data.size, "root": data.root} if own else {}
    for key, value in undone.items():
        if value:
            raise OptionError(
                f"data.{key} = {value} is of a data set that is named, and images were passed; leave it out, and pass "
                "those that you mean."
            )
    for key in sorted(given) if isinstance(model, nn.Module) else ():
        if key.startswith("model.") and key != "model.name":
            raise OptionError(f"{key} is of a net that is named, and one was passed; leave it out, and build that so.")
