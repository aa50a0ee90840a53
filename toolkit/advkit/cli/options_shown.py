"""Options of plugins and of nets, as tables and as JSON."""

from __future__ import annotations

from typing import Any


def facts(options: Any) -> dict[str, dict[str, Any]]:
    """Default, unit and meaning of every option of a set, by name."""
    return {
        key: {
            "default": field.default.plain() if hasattr(field.default, "plain") else field.default,
            "unit": (field.json_schema_extra or {}).get("unit", ""),
            "help": field.description or "",
        }
        for key, field in options.model_fields.items()
    }


def show(console: Any, options: Any, before: str = "") -> None:
    """A line an option, its name after `before`; nothing where there is none."""
    from .display import table_of

    table = table_of("option", "default", "unit", "meaning", wrap=("default", "unit", "meaning"))
    for key, field in facts(options).items():
        table.add_row(f"{before}{key}", *(str(part) for part in field.values()))
    if table.row_count:
        console.print(table)
