"""What a command acts on: the store that a URL names, and the app if one was given."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import unquote, urlsplit

import click
import msgspec

from ferryman.errors import ConfigError, FerrymanError, StoreUnavailable

if TYPE_CHECKING:
    from ferryman.app import App
    from ferryman.config import Settings
    from ferryman.io.operation import Operation
    from ferryman.store.port import Store

__all__ = [
    "NotThereError",
    "Target",
    "listing",
    "on_store",
    "pass_target",
    "sqlite_file",
    "with_app",
    "with_tasks",
]

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])


class NotThereError(FerrymanError):
    """There is no such thing in the store."""


class Target:
    """Opens what a command needs when it is first asked for. Not thread-safe."""

    def __init__(self) -> None:
        self.url: str | None = None
        self.app_name: str | None = None
        self.debug = False
        self.json = False

    @functools.cached_property
    def settings(self) -> Settings:
        """The settings in force, the URL of the command line first."""
        from ferryman.config import load_settings

        return load_settings(url=self.url)

    @functools.cached_property
    def app(self) -> App:
        """The user's app if one was named, else a bare one; on the store that the command line names."""
        from ferryman.app import App

        if self.app_name is None:
            return App(settings=self.settings)
        app = _load_app(self.app_name)
        if self.url is not None:
            # The command line has the last word; the app has not opened its store yet.
            app.settings = msgspec.structs.replace(app.settings, url=self.url)
        return app

    @property
    def store(self) -> Store:
        """The store, which another process can see. Raises ConfigError for one that none can."""
        store = self.app.store
        if not store.capabilities.shared:
            raise ConfigError(
                f"the store {store.url} lives inside one program, so the command line cannot see it; "
                "name a store of a file: --url sqlite:///jobs.db"
            )
        return store

    @property
    def existing(self) -> Store:
        """The store, for looking: a file that is not there is an error, and is not made."""
        path = sqlite_file(self.app.settings.url)
        if path is not None and not path.exists():
            raise StoreUnavailable(
                f"there is no store at {path}; it is made by the first enqueue or worker. "
                "Is this the right directory? Name another with --url or FERRYMAN_URL"
            )
        return self.store

    def run(self, operation: Operation[T]) -> T:
        """Perform one operation."""
        return self.app.store.runner().run(operation)

    def now(self) -> int:
        """The time by the store's clock, which its moments are to be held against."""
        return self.run(self.existing.time())

    def close(self) -> None:
        """Let go of the store."""
        app = self.__dict__.pop("app", None)
        if app is not None:
            app.close()


def sqlite_file(url: str) -> Path | None:
    """The file of a SQLite URL."""
    if not url.startswith("sqlite:///"):
        return None
    return Path(unquote(urlsplit(url).path)[1:])


def _load_app(name: str) -> App:
    """The user's app. Modules are looked for in the working directory first, as ``python -m`` does."""
    from ferryman.worker.target import load_app

    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    return load_app(name)


# -- options that many commands share ------------------------------------------------------------------

pass_target = click.make_pass_decorator(Target, ensure=True)


def on_store(command: F) -> F:
    """Gives a command ``--url``, so that it can stand after the command's name as well."""
    return click.option(
        "--url", metavar="URL", expose_value=False, callback=_set_url, help="The store, if not the usual one."
    )(command)


def listing(command: F) -> F:
    """Gives a command ``--url`` and ``--json``."""
    return on_store(
        click.option(
            "--json",
            is_flag=True,
            expose_value=False,
            callback=_set_json,
            help="One JSON object a line, for programs.",
        )(command)
    )


def with_app(command: F) -> F:
    """Gives a command ``--app``, for what the app says of the store."""
    return _app_option("The app, whose store, codec and blobs are used.")(command)


def with_tasks(command: F) -> F:
    """Gives a command ``--app``, for its tasks, too."""
    return _app_option("The app, so that arguments are checked against its tasks.")(command)


def _app_option(help: str) -> Callable[[F], F]:
    return click.option("--app", metavar="MODULE:ATTR", expose_value=False, callback=_set_app, help=help)


def _set_url(ctx: click.Context, _: click.Parameter, url: str | None) -> None:
    if url is not None:
        ctx.ensure_object(Target).url = url


def _set_json(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted:
        ctx.ensure_object(Target).json = True


def _set_app(ctx: click.Context, _: click.Parameter, name: str | None) -> None:
    if name is not None:
        ctx.ensure_object(Target).app_name = name
