"""``ferryman migrate``: brings a store's tables and functions to the version of this Ferryman."""

from __future__ import annotations

from collections.abc import Sequence

import click

from ferryman.cli.output import say
from ferryman.cli.target import Target, on_store, pass_target, with_app
from ferryman.store.open import find_migrations, open_store

__all__ = ["migrate"]


@click.command()
@click.option("--sql", is_flag=True, help="Print the SQL that would be run, and change nothing.")
@with_app
@on_store
@pass_target
def migrate(target: Target, sql: bool) -> None:
    """Bring a store's tables and functions to the version of this Ferryman.

    A new store is made by itself when it is first used. One that an older Ferryman made may have to be migrated: workers
    say so. It is safe to do that while workers run, and from several places at once; older workers go on.

    \b
    Examples:
      ferryman migrate --url postgresql://localhost/shop
      ferryman migrate --sql | psql -v ON_ERROR_STOP=1 shop   for a user with more rights than the workers have
    """
    url = target.app.settings.url
    migrations = find_migrations(url)
    if migrations is None:
        store = open_store(url)
        say(f"{store.url} makes what it needs by itself: there is nothing to do")
        store.close()
    elif sql:
        _print(migrations.script())
    else:
        done = migrations.apply()
        for what in done:
            say(f"✓ {what}")
        if not done:
            say("the store is up to date: there is nothing to do")


def _print(script: Sequence[tuple[str, str]]) -> None:
    """The whole as one transaction, for psql."""
    if not script:
        click.echo("-- the store is up to date: there is nothing to do")
        return
    click.echo("BEGIN;")
    for title, sql in script:
        if title:
            click.echo(f"\n-- {title}")
        # On a line of its own, since the last one may be a comment.
        click.echo(sql if sql.rstrip().endswith(";") else f"{sql}\n;")
    click.echo("COMMIT;")
