"""Options of plugins and of nets, as tables and as JSON."""

from __future__ import annotations

from typing import Any


def facts(options: Any) -> dict[str, dict[str, Any]]:
    """Symbol in its paper, default, unit and meaning of every option of a set, by name."""
    return {
        key: {
            "symbol": (field.json_schema_extra or {}).get("symbol", ""),
            "default": field.default.plain() if hasattr(field.default, "plain") else field.default,
            "unit": (field.json_schema_extra or {}).get("unit", ""),
            "help": field.description or "",
        }
        for key, field in options.model_fields.items()
    }


def show(console: Any, options: Any, before: str = "") -> None:
    """A line an option, its name after `before`; nothing where there is none."""
    from .display import table_of

    known = facts(options)
    heads = {"symbol": "paper", "default": "default", "unit": "unit", "help": "meaning"}
    shown = [part for part in heads if part != "symbol" or any(field[part] for field in known.values())]
    table = table_of("option", *(heads[part] for part in shown), wrap=("default", "unit", "meaning"))
    for key, field in known.items():
        table.add_row(f"{before}{key}", *(str(field[part]) for part in shown))
    if table.row_count:
        console.print(table)
