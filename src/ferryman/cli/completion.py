"""``ferryman completion``: scripts that let shells complete commands and options."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

__all__ = ["completion"]


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script of a shell.

    \b
    Load it at the start of each shell:
      bash   eval "$(ferryman completion bash)"             in ~/.bashrc
      zsh    eval "$(ferryman completion zsh)"              in ~/.zshrc, after compinit
      fish   ferryman completion fish | source              in ~/.config/fish/config.fish

    \b
    Or keep it in a file, which makes shells start sooner:
      bash   ~/.local/share/bash-completion/completions/ferryman
      fish   ~/.config/fish/completions/ferryman.fish
    """
    kind = get_completion_class(shell)
    assert kind is not None
    root = click.get_current_context().find_root().command
    click.echo(kind(root, {}, "ferryman", "_FERRYMAN_COMPLETE").source())
