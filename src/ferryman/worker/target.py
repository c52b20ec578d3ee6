"""From ``module:attribute`` or ``path/to/file.py:attribute`` to the app."""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any

from ferryman.app import App
from ferryman.errors import AppNotFound

__all__ = ["load_app"]


def load_app(target: str) -> App:
    """Import the app that a target names.

    The attribute may be left out if the module has one app only, or one that is called ``app``. A file is
    imported under the name that others would import it by, its folder (or the one above its
    outermost package) put first on ``sys.path``.

    Raises AppNotFound, from the error that the import raised if there was one.
    """
    place, _, attribute = target.rpartition(":") if ":" in target else (target, "", "")
    if not place:
        raise AppNotFound(f"the target {target!r} names no module; write module:attribute, such as tasks:app")
    module = _import_file(Path(place)) if _is_file(place) else _import_module(place)
    return _attribute(module, place, attribute) if attribute else _only_app(module, place)


def _is_file(place: str) -> bool:
    return place.endswith(".py") or "/" in place


def _import_file(path: Path) -> ModuleType:
    if not path.is_file():
        folder = path.parent
        near = _near(path.name, (each.name for each in folder.glob("*.py"))) if folder.is_dir() else ""
        raise AppNotFound(f"there is no file {str(path)!r}, seen from {str(Path.cwd())!r}{near}")
    path = path.resolve()
    names = [] if path.stem == "__init__" else [path.stem]
    folder = path.parent
    while (folder / "__init__.py").is_file():
        names.insert(0, folder.name)
        folder = folder.parent
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    name = ".".join(names)
    module = _import_module(name)
    found = getattr(module, "__file__", None)
    if found is None or Path(found).resolve() != path:
        raise AppNotFound(
            f"the file {str(path)!r} cannot be imported as {name!r}: that is the name of "
            f"{found or 'a built-in module'}; rename the file"
        )
    return module


def _import_module(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not (name == error.name or name.startswith(f"{error.name}.")):
            raise _broken(name, error) from _trimmed(error)
        near = _near(name, _modules_beside(name))
        raise AppNotFound(
            f"there is no module {error.name!r}; it was looked for in {str(Path.cwd())!r} and in the "
            f"installed packages{near}"
        ) from None
    except (Exception, SystemExit) as error:
        raise _broken(name, error) from _trimmed(error)


def _broken(name: str, error: BaseException) -> AppNotFound:
    last_line = f"{type(error).__name__}: {error}".strip().splitlines()[0]
    return AppNotFound(f"the module {name!r} was found, but importing it raised {last_line}")


def _trimmed(error: BaseException) -> BaseException:
    """The error without the steps of this file and of Python's own import system."""
    steps: TracebackType | None = error.__traceback__
    own = (__file__, importlib.__file__)
    while steps is not None and (
        (file := steps.tb_frame.f_code.co_filename) in own or file.startswith("<frozen importlib")
    ):
        steps = steps.tb_next
    return error.with_traceback(steps)


def _attribute(module: ModuleType, place: str, attribute: str) -> App:
    found: Any = module
    for part in attribute.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            near = _near(part, _apps(module) or vars(module))
            raise AppNotFound(f"the module {place!r} has no attribute {attribute!r}{near}") from None
    if not isinstance(found, App):
        hint = _listed(_apps(module))
        raise AppNotFound(f"{place}:{attribute} is no Ferryman app, but {_a(type(found).__qualname__)}{hint}")
    return found


def _only_app(module: ModuleType, place: str) -> App:
    apps = _apps(module)
    if "app" in apps:
        return apps["app"]
    if len({id(app) for app in apps.values()}) == 1:
        return next(iter(apps.values()))
    if not apps:
        raise AppNotFound(
            f"the module {place!r} has no Ferryman app; make one, app = Ferryman(), or name it: module:attribute"
        )
    raise AppNotFound(f"the module {place!r} has several apps, so name one{_listed(apps)}")


def _apps(module: ModuleType) -> dict[str, App]:
    return {name: value for name, value in vars(module).items() if isinstance(value, App)}


def _modules_beside(name: str) -> list[str]:
    *parents, _ = name.split(".")
    folder = Path.cwd().joinpath(*parents)
    if not folder.is_dir():
        folder, parents = Path.cwd(), []
    found = [each.stem for each in folder.glob("*.py")]
    found += [each.parent.name for each in folder.glob("*/__init__.py")]
    return [".".join([*parents, each]) for each in found]


def _near(wrong: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(wrong, list(known), n=3)
    return f"; did you mean {' or '.join(near)}?" if near else ""


def _listed(names: Iterable[str]) -> str:
    text = ", ".join(names)
    return f"; it has {text}" if text else ""


def _a(noun: str) -> str:
    return f"an {noun}" if noun[0].lower() in "aeiou" else f"a {noun}"
