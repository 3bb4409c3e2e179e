"""Finds the application's bus by its name, ``module.path:attribute``."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import sys
import traceback
from pathlib import Path
from types import ModuleType

from txbus._bus import Bus
from txbus.errors import ConfigurationError, TxbusError
from txbus.settings import nearest

__all__ = ["load_bus"]


def load_bus(app: str) -> Bus:
    """The bus that ``app`` names: a `Bus`, or what a callable without arguments returns.

    The current folder goes to the front of ``sys.path``. ConfigurationError says which part of the
    name is wrong, what was found there, and what was probably meant. Importing runs the module.
    """
    module_name, separator, attribute = app.partition(":")
    if not separator or not module_name or not attribute:
        raise ConfigurationError(f"APP={app!r} must be 'module.path:attribute', for example {_guess(app)!r}")
    if "/" in module_name or module_name.endswith(".py"):
        raise ConfigurationError(f"APP={app!r} names a file; name its module: {_guess(app)!r}")
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    module = _import(module_name)
    found = _attribute(module, attribute, app)
    if isinstance(found, Bus):
        return found
    if isinstance(found, type) or not callable(found):
        raise ConfigurationError(f"APP={app!r} is {_kind(found)}, not a Bus; {_buses(module)}")
    return _called(found, app, module)


def _guess(app: str) -> str:
    path, _, attribute = app.partition(":")
    module = path.removesuffix(".py").replace("\\", "/").strip("./").replace("/", ".")
    return f"{module or 'shop.app'}:{attribute or 'bus'}"


def _import(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as exc:
        if exc.name is None or not (name == exc.name or name.startswith(f"{exc.name}.")):
            raise ConfigurationError(
                f"module {name!r} imports {exc.name!r}, which is not installed ({_where(exc)})"
            ) from exc
        near = nearest(exc.name.rpartition(".")[2], _siblings(exc.name))
        parent = exc.name.rpartition(".")[0]
        likely = f"; the nearest there is {f'{parent}.{near}' if parent else near!r}" if near else ""
        raise ConfigurationError(
            f"there is no module {exc.name!r}, looked for in {Path.cwd()} and where packages are installed{likely}"
        ) from exc
    except TxbusError as exc:
        raise ConfigurationError(f"module {name!r} cannot be imported: {exc} ({_where(exc)})") from exc
    except Exception as exc:
        # Somebody else's module ran: whatever it raised is the answer to "why does it not load".
        raise ConfigurationError(
            f"module {name!r} cannot be imported: {type(exc).__name__}: {exc} ({_where(exc)})"
        ) from exc


def _where(error: BaseException) -> str:
    """The last line of somebody's code before the error, import machinery and txbus left out."""
    own = str(Path(__file__).parents[1])
    frames = [
        f
        for f in traceback.extract_tb(error.__traceback__)
        if not f.filename.startswith((own, "<frozen")) and "importlib" not in f.filename
    ]
    if isinstance(error, SyntaxError):
        return f"{error.filename}:{error.lineno}"
    return f"{frames[-1].filename}:{frames[-1].lineno}" if frames else "nowhere in its own code"


def _siblings(name: str) -> list[str]:
    """The modules beside a missing one."""
    parent = name.rpartition(".")[0]
    path = list(sys.modules[parent].__path__) if parent in sys.modules else [str(Path.cwd())]
    return [module.name for module in pkgutil.iter_modules(path)]


def _attribute(module: ModuleType, attribute: str, app: str) -> object:
    found: object = module
    for part in attribute.split("."):
        if not hasattr(found, part):
            names = [name for name in vars(found) if not name.startswith("_")] if hasattr(found, "__dict__") else []
            near = nearest(part, names)
            likely = f"; the nearest name there is {near!r}" if near else ""
            where = f"module {module.__name__!r}" if found is module else f"{_kind(found)} in APP={app!r}"
            raise ConfigurationError(f"{where} has no attribute {part!r}{likely}; {_buses(module)}")
        found = getattr(found, part)
    return found


def _called(factory: object, app: str, module: ModuleType) -> Bus:
    assert callable(factory)
    try:
        parameters = inspect.signature(factory).parameters.values()
    except (TypeError, ValueError):
        parameters = {}.values()
    empty, kinds = inspect.Parameter.empty, (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    needed = [p.name for p in parameters if p.default is empty and p.kind not in kinds]
    if needed:
        raise ConfigurationError(
            f"APP={app!r} is {_kind(factory)} that needs {', '.join(needed)}; "
            f"name a Bus or a callable without arguments; {_buses(module)}"
        )
    try:
        made = factory()
    except TxbusError:
        raise
    except Exception as exc:
        raise ConfigurationError(f"APP={app!r}: {type(exc).__name__}: {exc} ({_where(exc)})") from exc
    if not isinstance(made, Bus):
        raise ConfigurationError(f"APP={app!r} returned {_kind(made)}, not a Bus; {_buses(module)}")
    return made


def _buses(module: ModuleType) -> str:
    names = [f"{module.__name__}:{name}" for name, value in vars(module).items() if isinstance(value, Bus)]
    return f"the module has {' and '.join(names)}" if names else "the module has no Bus of its own"


def _kind(value: object) -> str:
    """What something is; never its repr, which may hold a password."""
    if isinstance(value, ModuleType):
        return f"the module {value.__name__!r}"
    if isinstance(value, type):
        return f"the class {value.__qualname__!r}"
    if inspect.isroutine(value):
        return f"the function {value.__qualname__!r}"
    return f"an object of type {type(value).__module__}.{type(value).__qualname__}".replace("builtins.", "")
