"""The documentation as a site: the Markdown pages of this repository as they are, the commands, and a first page.

    make docs-site            writes dist/docs/docs/site/index.html; a warning is an error

Its source is the repository's root, so that links between pages are the ones that one follows in the repository.
"""

from __future__ import annotations

import json
import posixpath
import re
from html import escape
from pathlib import Path
from typing import Any

from advkit import __version__, registry
from advkit.compose.registration import hooks_of

ROOT = Path(__file__).resolve().parents[2]

project, author, release = "advkit", "The advkit developers", __version__
copyright = "The advkit developers, MIT licence"
extensions = ["myst_parser", "sphinx_click"]
root_doc = "docs/site/index"
include_patterns = ["*.md", "docs/**.md", "results/**.md", "examples/**.md"]
exclude_patterns = [".*", "dist", "runs"]  # not walked either
html_theme = "furo"
html_title = "advkit"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_copy_source = html_show_sphinx = False
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#0b5fa5", "color-brand-content": "#0b5fa5"},
    "dark_css_variables": {"color-brand-primary": "#7cb7ff", "color-brand-content": "#7cb7ff"},
}
pygments_style, pygments_dark_style = "friendly", "monokai"
myst_heading_anchors = 4
myst_enable_extensions = ["colon_fence", "attrs_block"]
smartquotes = False  # -- is a part of commands
suppress_warnings = ["misc.highlighting_failure"]  # output of commands in blocks without a language
highlight_language = "none"
QUESTIONS = {
    "perturbation_budget": "How far may each sample be attacked?",
    "target_label": "Which label is it trained on?",
    "attack_objective": "What does the attack increase?",
    "attack_step": "When does it stop on a sample?",
    "weight_perturbation": "At which weights is the loss taken?",
    "base_loss": "Which loss?",
    "extra_regularizer": "What is added to it?",
    "instance_weight": "How much does each sample count?",
}
"""By hook, in the order of a step."""
LOOPS = ("by hand", "advkit", "advkit, compiled", "torchattacks", "adv-lib", "ART")
LINK = re.compile(r"(?<!!)\[([^\]]*)\]\(([^)#\s]+)(#[^)\s]*)?\)")


def setup(app: Any) -> None:
    app.connect("source-read", readable)
    app.connect("sphinx-click-process-description", as_typed)


def as_typed(app: Any, context: Any, lines: list[str]) -> None:
    """Commands in the help of a command, which stand in lines of their own, as code."""
    lines[:] = [re.sub(r"^(\| )?(advkit .*)$", r".. code-block:: none\n\n   \2\n", line) for line in lines]
    lines[:] = "\n".join(lines).split("\n")


def readable(app: Any, page: str, source: list[str]) -> None:
    """Links to folders become links to what describes them; the first page gets its pictures."""
    here = posixpath.dirname(page)

    def led(link: re.Match[str]) -> str:
        text, target, _ = link.groups()
        folder = ROOT / here / target
        if "://" in target or not folder.is_dir():
            return link.group()
        return f"[{text}]({target.rstrip('/')}/README.md)" if (folder / "README.md").is_file() else text

    source[0] = LINK.sub(led, source[0]).replace("{{ step }}", step()).replace("{{ cost }}", cost())


def step() -> str:
    """The questions of a step, and who answers them, as HTML."""
    plugins = {name: hooks_of(registry.load("plugin", name)) for name in registry.names("plugin")}
    items = []
    for hook, question in QUESTIONS.items():
        answers = [f'<a href="../methods/{name}.html">{name}</a>' for name, hooks in plugins.items() if hook in hooks]
        items.append(f"<li><b>{question}</b><code>{hook}</code><span>{' '.join(answers)}</span></li>")
    return f'<ol class="step">{"".join(items)}</ol>'


def cost() -> str:
    """Seconds of a step as multiples of a loop written by hand and of PGD-AT, as HTML."""
    peers = _measured("bench-peers")["tables"][0]["rows"]
    methods = _measured("bench")["methods"][0]["methods"]
    loops = {"by hand": peers["by hand"], **{name: row for name, row in peers.items() if "hand" not in name}}
    groups = {
        "PGD-AT, beside a loop written by hand": {name: row["ratio"] for name, row in loops.items() if name in LOOPS},
        "Methods, beside PGD-AT": {name: row["measured"] for name, row in methods.items()},
    }
    widest = max(ratio["median"] for rows in groups.values() for ratio in rows.values())
    parts = []
    for title, rows in groups.items():
        lines = (
            f'<tr title="{ratio["min"]:.2f} to {ratio["max"]:.2f}"><th>{escape(name)}</th><td>'
            f'<i style="width: {100 * ratio["median"] / widest:.1f}%"></i></td><td>{ratio["median"]:.2f}</td></tr>'
            for name, ratio in rows.items()
        )
        parts.append(f"<table><caption>{title}</caption>{''.join(lines)}</table>")
    return f'<div class="cost">{"".join(parts)}</div>'


def _measured(name: str) -> dict[str, Any]:
    figures: dict[str, Any] = json.loads((ROOT / "results" / f"{name}.json").read_text(encoding="utf-8"))
    return figures
