"""The code of a run that is not advkit's, and which parts of it have changed."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from .. import registry
from ..code_digest import code
from ..config.request import registered
from ..config.resolve import Resolved
from ..storage import machine
from ..storage.run_folder import RunFolder
from .notes import noted
from .passed_net import code_of_net

RESUMED = "Resumed with other code: "
"""Leads the note of a run that was resumed with code of which `changes` says that it is another."""


def code_of(resolved: Resolved, model: nn.Module) -> dict[str, str]:
    """Digests, by whose it is, of the code of plugins and of the model that is neither advkit's nor torch's.

    A registered model has one of its modules and one of what builds it, which may put torch's own together.
    """
    known, name = {"model": own} if (own := code_of_net(model)) else {}, resolved.model_name
    if registered(name):
        known |= {f"model {name}": digest for digest in code(registry.load("model", name)).values()}
    known |= {file.short: digest for file in resolved.files.values() for digest in code(file.load()).values()}
    plugins: dict[str, type] = {plugin.name: type(plugin) for plugin in resolved.composition.plugins}
    return known | {f"plugin {name}": digest for name, one in plugins.items() for digest in code(one).values()}


def changes(folder: RunFolder, resolved: Resolved, model: nn.Module) -> dict[str, str]:
    """Sentences where a file, or the code of a net or of data that are not advkit's, is another than the run's.

    Each with the setting whose code it is, of a file that gives both the net's, or with "" where code is the same: in
    such a file a comment has changed, or what NAME does not use. Digests of another Python or torch tell nothing; of a
    registered net, the version of its package does then.
    """
    name, said, then, now = resolved.model_name, dict[str, str](), folder.code(), code_of(resolved, model)
    for key, file in resolved.files.items():
        if file.changed:
            alike = file.short in then and then[file.short] == now.get(file.short)
            said[file.changed] = max("" if alike else key, said.get(file.changed, ""))
    built, net = f"model {name}", f"net, {name if registered(name) else type(model).__name__}"
    was, here = folder.packages().get(built), machine.packages(resolved).get(built)
    if not then and was not in (None, here):
        return said | {f"The {net}, is of {here} now, and of {was} when the run was started": "model.name"}
    owners = {"model": (net, "model.name"), built: (net, "model.name")}
    owners |= {f.short: (f"data, {f.short}", key) for key, f in resolved.files.items() if key == "data.name"}
    other = dict(whose for key, whose in owners.items() if then.get(key) not in (None, now.get(key)))
    sentence = "The code of the {}, is another than that the run was started with"
    return said | {sentence.format(whose): key for whose, key in other.items()}


def another_net(folder: RunFolder, answer: str, code: Mapping[str, str]) -> dict[str, list[str]]:
    """For records: of what `told_apart` and `changes` say, in what a net is another than the run's; {} where it is its.

    A net of code that the run was resumed with is the run's, too.
    """
    said, own = [answer, *(sentence for sentence, key in code.items() if key == "model.name")], noted(folder)
    apart = [each for each in said if each and f"{RESUMED}{each}" not in own]
    return {"another_net": apart} if apart else {}
