"""The run of a folder, as it was started: it goes on as it began, or not at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from ..config import runfile
from ..config.layer import Layer, with_files
from ..config.request import Request, registered
from ..config.resolve import Resolved
from ..errors import OptionError, ResumeMismatch, named
from ..own_file import FLAGS, OwnFile
from ..plugin import Plugin
from ..storage.run_folder import RunFolder, of_a_run


def resolve_folder(folder: RunFolder, given: Layer | None = None) -> Resolved:
    """The run of a folder. What is given on top must not change it: ResumeMismatch lists the difference."""
    with of_a_run(folder.path / "run.toml"):
        file = Request((folder.file(),))
        stored = Resolved.of(file)
    if given is None or given.empty:
        return stored
    if given.plugins is not None:
        refuse_other_plugins(stored.chosen, given.names)
    refuse_difference(stored, Resolved.of(file.over(replace(_elsewhere(given), plugins=None))))
    moved = {
        name: {key: value for key, value in values.items() if runfile.is_place(name, key)}
        for name, values in given.options.items()
    }
    if any(moved.values()):
        stored = Resolved.of(file.over(Layer(given.origin, options=moved)))
    return stored.with_files(given.files)


def files_of_several(folders: Sequence[RunFolder], model: str | None, dataset: str | None) -> Mapping[str, OwnFile]:
    """The FILE.py:NAME of the nets and data of several runs. OptionError for what is none, or what no run takes."""
    typed = {key: text for key, text in (("model.name", model), ("data.name", dataset)) if text is not None}
    files = with_files(Layer("python", typed)).files
    for key, text in typed.items():
        flag, what = named(FLAGS[key]), {"model.name": "net", "data.name": "data"}[key]
        if all(registered(str(folder.file().settings.get(key, ""))) for folder in folders):
            raise OptionError(f"The {what} of every run is installed, so {flag} would change nothing; leave it out.")
        if key not in files:
            raise OptionError(f"{flag} {text!r:.80} must be FILE.py:NAME, what gives the {what} of the runs.")
    return files


def of_several(folder: RunFolder, files: Mapping[str, OwnFile]) -> Resolved:
    """One of several runs, of which `files` are what gives the nets and data that are not installed ones."""
    stored = resolve_folder(folder)
    values = stored.values()
    return stored.with_files({key: file for key, file in files.items() if not registered(str(values[key]))})


def _elsewhere(given: Layer) -> Layer:
    """What is given without what may lie elsewhere now: data, whose fingerprint decides, and code, named again."""
    kept = {key: value for key, value in given.settings.items() if key not in {*given.files, "data.root"}}
    return replace(given, settings=kept, files={})


def refuse_difference(stored: Resolved, wanted: Resolved) -> None:
    """A run goes on as it began, or not at all."""
    refuse_other_plugins(stored.chosen, wanted.chosen)
    refuse_changes(runfile.difference(runfile.dump(stored), runfile.dump(wanted)))


def refuse_other_file(trained: str, now: Resolved) -> None:
    """ResumeMismatch for a run.toml that says another run than a checkpoint does."""
    if changes := runfile.difference(trained, runfile.dump(now)):
        raise ResumeMismatch(
            f"run.toml is not that of the checkpoint: {'; '.join(changes)}. Restore it; if nobody has edited it, "
            "resume with the advkit that wrote it."
        )


def refuse_other_plugins(stored: Sequence[str], wanted: Sequence[str]) -> None:
    if list(stored) != list(wanted):
        raise ResumeMismatch(
            f"The run was started with the plugins {', '.join(stored) or 'none'}, not {', '.join(wanted) or 'none'}; "
            f"start a new run with another {named('--out')}."
        )


def refuse_changes(changes: Sequence[str]) -> None:
    if changes:
        raise ResumeMismatch(
            f"A run can not change its settings: {'; '.join(changes)}. Leave them out, or start a new run "
            f"with another {named('--out')}."
        )


def on_top(stored: Layer, given: Layer) -> Resolved:
    """A run with what is given beside it: its plugins may be passed as objects, which have their options."""
    if given.plugins is not None:
        refuse_other_plugins(stored.names, given.names)
    passed = {plugin.name for plugin in given.plugins or () if isinstance(plugin, Plugin)}
    options = {name: values for name, values in stored.options.items() if name not in passed}
    stored = replace(stored, options=options, plugins=stored.plugins if given.plugins is None else given.plugins)
    declined = () if set(given.no_companion) == set(stored.no_companion) else given.no_companion
    rest = replace(_elsewhere(given), plugins=None, no_companion=declined)
    return Resolved.of(Request((stored, rest))).with_files(given.files)
