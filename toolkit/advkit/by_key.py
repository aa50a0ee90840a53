"""Results whose fields are attributes or, as in their JSON, keys: `result.eps` is `result["eps"]`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from typing import Any


class ByKey:
    """What a dictionary has to read it by, of the fields of a dataclass, or of those that `keys` gives."""

    def keys(self) -> list[str]:
        """Of the fields."""
        return [field.name for field in fields(self)]  # type: ignore[arg-type]

    def __getitem__(self, key: str) -> Any:
        if key not in self.keys():
            raise KeyError(key)
        return getattr(self, key)

    def __contains__(self, key: object) -> bool:
        return key in self.keys()

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def __len__(self) -> int:
        return len(self.keys())

    def get(self, key: str, default: Any = None) -> Any:
        """As a dictionary's."""
        return getattr(self, key) if key in self.keys() else default

    def items(self) -> list[tuple[str, Any]]:
        """Of `keys`."""
        return [(key, self[key]) for key in self.keys()]
