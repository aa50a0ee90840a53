"""The code of a run that is not advkit's, and which parts of it have changed."""

from __future__ import annotations

from torch import nn

from .. import registry
from ..code_digest import code
from ..config.request import registered
from ..config.resolve import Resolved
from ..storage import machine
from ..storage.run_folder import RunFolder
from .passed_net import code_of_net


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


def changes(folder: RunFolder, resolved: Resolved, model: nn.Module) -> list[str]:
    """Sentences where a file, or the code of a net or of data that are not advkit's, is another than the run's.

    Digests of another Python or torch tell nothing; of a registered net, the version of its package does then.
    """
    name, said = resolved.model_name, [file.changed for file in resolved.files.values() if file.changed]
    built, net = f"model {name}", f"net, {name if registered(name) else type(model).__name__}"
    then, now = folder.code(), code_of(resolved, model)
    was, here = folder.packages().get(built), machine.packages(resolved).get(built)
    if not then and was not in (None, here):
        return [*said, f"The {net}, is of {here} now, and of {was} when the run was started"]
    owners = {"model": net, built: net}
    owners |= {file.short: f"data, {file.short}" for key, file in resolved.files.items() if key == "data.name"}
    other = dict.fromkeys(whose for key, whose in owners.items() if then.get(key) not in (None, now.get(key)))
    return said + [f"The code of the {whose}, is another than that the run was started with" for whose in other]
