"""FILE.py:NAME, code of one's own: it runs where a person names it, and never because a run file or a folder does."""

from __future__ import annotations

import errno
import hashlib
import inspect
import os
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any

from .errors import NotTyped, OptionError, PluginImport, did_you_mean, named, says
from .net_arguments import refuse_texts
from .passing import passable
from .reading import read

FLAGS = {"model.name": "--model", "data.name": "--dataset"}
"""The settings that may name a file, and what types each."""

CAP = 1 << 20
"""Bytes of a file of code."""

_LOADED: dict[tuple[str, str], ModuleType] = {}
"""Modules by path and SHA-256: of one state of a file there is one, so that its classes are the same everywhere."""

_FOLDERS: dict[tuple[str, str], str] = {}
"""The working folder that a file's import has gone to, and in which its code runs on, by path and SHA-256."""

_BESIDE: dict[str, tuple[str, object]] = {}
"""The folder of every module that lies beside such a file and that it has imported, and which state of it."""


@dataclass(frozen=True)
class OwnFile:
    """The class or function `name` in the file at `path`, for the setting `key`."""

    key: str
    path: str
    name: str
    recorded: str = ""
    """The SHA-256 that a run was started with, "" where none is known."""
    before: str = ""
    """The path that it had then, "" where that is `path` or unknown."""
    content: bytes | None = field(default=None, repr=False)
    """What the file held when a person named it in this very call; None where nobody has."""

    @classmethod
    def written(cls, key: str, text: object) -> OwnFile | None:
        """FILE.py:NAME as a file has it; None for any other name."""
        path, colon, name = text.rpartition(":") if isinstance(text, str) else ("", "", "")
        return cls(key, path, name) if colon and path.endswith(".py") else None

    @classmethod
    def typed(cls, key: str, text: object) -> OwnFile | None:
        """As `written`, of what a person names: read, and free to run. OptionError, or PluginImport without a file."""
        flag = named(FLAGS[key])
        if isinstance(text, str) and text.endswith((".py", ".py:")):
            raise OptionError(f"{flag} {text} is a file; say which class or function of it: {text.rstrip(':')}:NAME.")
        if isinstance(text, str) and text.rpartition(":")[0].endswith(".py:"):
            raise OptionError(f"{flag} {text} has two colons, and FILE.py:NAME one: {text.replace('.py::', '.py:')}.")
        file = cls.written(key, text)
        if file is None:
            return None
        path = str(Path(os.path.expanduser(file.path)).absolute())
        if path.encode(errors="replace") != path.encode(errors="surrogatepass"):
            raise PluginImport(f"{path!r} is no UTF-8, so no run file can hold it; rename the folder or file.")
        try:
            return replace(file, path=path, content=read(path, CAP))
        except OSError as error:
            reason = "it has more than 1 MiB" if error.errno == errno.EFBIG else error.strerror or str(error)
            raise PluginImport(f"{path} can not be read ({reason}); {flag} takes FILE.py:NAME.") from None

    @property
    def short(self) -> str:
        """FILE.py:NAME without a folder: what run files and results call it."""
        return f"{Path(self.path).name}:{self.name}"

    @property
    def sha256(self) -> str:
        """Of the file as it was typed, else as it is recorded."""
        return self.recorded if self.content is None else hashlib.sha256(self.content).hexdigest()

    @property
    def changed(self) -> str:
        """A sentence where the file is another than that of the run, "" elsewhere."""
        if not self.recorded or self.recorded == self.sha256:
            return ""
        if self.before and self.before != self.path:
            return f"{self.path} is another file than the run's, {self.before}, and says something else"
        return (
            f"{self.path} has changed since the run was started (SHA-256 {self.recorded[:12]} then, "
            f"{self.sha256[:12]} now)"
        )

    def load(self) -> Any:
        """The class or function. The file's folder leads sys.path while it is imported.

        Raises NotTyped where nobody has named it, PluginImport where it fails, OptionError where it has no such name.
        """
        refuse_untyped({self.key: self})
        names = vars(_LOADED.get((self.path, self.sha256)) or self._imported())
        if self.name not in names:
            own = [name for name, value in names.items() if callable(value) and not name.startswith("_")]
            raise OptionError(f"{self.path} has no {self.name}.{did_you_mean(self.name, own)}")
        made = names[self.name]
        if not (isinstance(made, type) or inspect.isroutine(made)):
            raise OptionError(
                f"{self.short} is an object ({type(made).__name__}); name a class, or a function that returns it, so "
                "that every run has its own."
            )
        return made

    def takes(self, argument: str) -> bool:
        """Whether NAME can be called with it."""
        make = self.load()
        with self.running(), self._blamed("called"):
            parameters = inspect.signature(make).parameters
        return argument in parameters or any(one.kind is one.VAR_KEYWORD for one in parameters.values())

    def made(self, known: Mapping[str, object], options: Mapping[str, object]) -> Any:
        """What NAME returns, called with those of `known` that its signature names, and with all `options`.

        Raises as `load` does, and OptionError for an argument that nobody gives or takes.
        """
        make = self.load()
        with self.running(), self._blamed("called"):
            parameters = inspect.signature(make).parameters
        takes = [name for name, one in parameters.items() if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)]
        given = {name: value for name, value in known.items() if name in takes} | dict(options)
        free = any(one.kind is one.VAR_KEYWORD for one in parameters.values())
        if stray := [name for name in options if not (free or name in takes)]:
            raise OptionError(f"{self.short} takes no argument {stray[0]}.{did_you_mean(stray[0], takes)}")
        refuse_texts(self.short, options, parameters)
        packed = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        needs = [name for name, one in parameters.items() if one.default is one.empty and one.kind not in packed]
        if missing := [name for name in needs if name not in given]:
            raise OptionError(
                f"{self.short} needs {', '.join(missing)}; it is given {', '.join(known)} where it names them, so give "
                "the others defaults."
            )
        with self.running(), self._blamed("called"), self._beside():
            return make(**given)

    @contextmanager
    def running(self) -> Iterator[None]:
        """A scope for its code: what it prints goes to stderr, and what it sets of the program is put back.

        That is the working folder, and of torch the default device, the threads and whether there are gradients.
        OptionError for another default type: put back, nets would have fewer bits than the file says.
        """
        import torch

        here, place = working_folder(), (self.path, self.sha256)
        start = _FOLDERS.get(place, here)
        device, dtype, threads = torch.get_default_device(), torch.get_default_dtype(), torch.get_num_threads()
        with suppress(OSError):
            os.chdir(start)
        try:
            with redirect_stdout(sys.stderr), torch.set_grad_enabled(torch.is_grad_enabled()):
                yield
            if (now := torch.get_default_dtype()) != dtype:
                raise OptionError(
                    f"{self.short} sets torch's default type for the whole program ({now}); leave that out and say the "
                    f"type of the net: net.to({now})."
                )
        finally:
            if (there := working_folder()) not in (start, here):
                _FOLDERS[place] = there
            if there != here:
                os.chdir(here)
            torch.set_default_dtype(dtype)
            if torch.get_default_device() != device:
                torch.set_default_device(None if device.type == "cpu" else device)
            if torch.get_num_threads() != threads:
                torch.set_num_threads(threads)

    def _imported(self) -> ModuleType:
        """A new module, registered: dataclasses and inspect look for it there. Bytecode is not kept."""
        from .generators import repeatable  # and torch with it

        name = f"own_file_{Path(self.path).stem}_{self.sha256[:8]}"
        module = ModuleType(name)
        module.__file__ = self.path
        sys.modules[name] = module
        try:
            with repeatable(0), self.running(), self._blamed("imported"), self._beside():
                exec(compile(self.content or b"", self.path, "exec", dont_inherit=True), vars(module))
        except BaseException:
            del sys.modules[name]
            raise
        return _LOADED.setdefault((self.path, self.sha256), module)

    @contextmanager
    def _beside(self) -> Iterator[None]:
        """Its folder leads sys.path. A module beside another such file is not taken for one beside this."""
        folder = str(Path(self.path).parent)
        for name, (home, state) in list(_BESIDE.items()):
            if (home != folder and _beside(name, folder)) or _beside(name, home) != state:
                sys.modules.pop(name, None)
                del _BESIDE[name]
        before = set(sys.modules)
        sys.path.insert(0, folder)
        try:
            yield
        finally:
            sys.path.remove(folder)
            for name in sys.modules.keys() - before:
                if state := _beside(name, folder):
                    _BESIDE[name] = folder, state

    @contextmanager
    def _blamed(self, what: str) -> Iterator[None]:
        """Whatever goes wrong in the scope, as one sentence with file and line."""
        try:
            yield
        except KeyboardInterrupt:
            raise
        except BaseException as raised:  # SystemExit, and whatever else code may raise
            error = passable(raised)
            said = next(iter(says(error).splitlines()), "")
            frames = traceback.extract_tb(error.__traceback__)
            own = [frame for frame in frames if Path(frame.filename).parent == Path(self.path).parent]
            where = f"{own[-1].filename}, line {own[-1].lineno}" if own else self.path
            if isinstance(error, SyntaxError) and error.filename:
                where, said = f"{error.filename}, line {error.lineno}", str(error.msg)
            reason = f"{type(error).__name__}: {said}" if said else type(error).__name__
            raise PluginImport(f"{self.short} can not be {what} ({where}: {reason}); mend the file.") from error


def working_folder() -> str:
    """The working folder, "" where it has been removed."""
    with suppress(OSError):
        return os.getcwd()
    return ""


def back_to(folder: str) -> None:
    """Go to a folder, if it is one; nobody can go to one that has been removed."""
    with suppress(OSError):
        if folder and working_folder() != folder:
            os.chdir(folder)


@contextmanager
def staying() -> Iterator[None]:
    """A scope for code of others, after which the working folder is what it was: a run's own may be named from it."""
    before = working_folder()
    try:
        yield
    finally:
        back_to(before)


def _beside(name: str, folder: str) -> object:
    """What tells states of a module of `folder` apart, by the file of its top package; None where there is none."""
    top = Path(folder) / name.partition(".")[0]
    for path in (top.with_suffix(".py"), top / "__init__.py"):
        with suppress(OSError):
            found = path.stat()
            return found.st_mtime_ns, found.st_size
    return None


def words(files: Mapping[str, OwnFile]) -> list[str]:
    """What a command line names them with again: ["--model", "/nets/net.py:Net"]."""
    return [word for key, file in files.items() for word in (FLAGS[key], f"{file.path}:{file.name}")]


def refuse_untyped(files: Mapping[str, OwnFile]) -> None:
    """NotTyped where a run file or folder names code that nobody has named in this call."""
    if unsaid := {key: file for key, file in files.items() if file.content is None}:
        raise NotTyped([file.short for file in unsaid.values()], words(unsaid))


def load_all(files: Mapping[str, OwnFile]) -> None:
    """Import what is named: whatever is wrong with a file is said before data are read."""
    refuse_untyped(files)
    for file in files.values():
        file.load()


def over(below: Mapping[str, OwnFile], above: Mapping[str, OwnFile]) -> dict[str, OwnFile]:
    """The files of two layers, by setting: those above, which know what the ones below have recorded of them."""
    return {**below} | {key: _remembering(file, below[key]) if key in below else file for key, file in above.items()}


def _remembering(file: OwnFile, below: OwnFile) -> OwnFile:
    """A file with what the one below it has recorded."""
    if file.recorded:
        return file
    return replace(file, recorded=below.recorded, before=below.before or below.path)
