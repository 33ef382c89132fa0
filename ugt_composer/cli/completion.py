"""Print a script that completes commands, options and file names of ugt in bash or zsh.

The script is static: completing starts no Python. Make it again when the package is upgraded.

  bash   mkdir -p ~/.local/share/bash-completion/completions
         ugt completion bash > ~/.local/share/bash-completion/completions/ugt
         (for bash-completion 2; without it, add  source <(ugt completion bash)  to ~/.bashrc)
  zsh    mkdir -p ~/.zsh/completions
         ugt completion zsh > ~/.zsh/completions/_ugt
         and in ~/.zshrc, before compinit:  fpath=(~/.zsh/completions $fpath)

Then start a new shell.
"""

import argparse

SHELLS = ("bash", "zsh")
EPILOG = """examples:
  ugt completion bash > ~/.local/share/bash-completion/completions/ugt
  source <(ugt completion bash)                     in this shell only"""
FILES = ("FILE", "DIR", "INPUT", "INTERACTIONS", "YAML", "PATH", "RUN", "NPY")  # parts of metavars


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=SHELLS, metavar="SHELL", help=" or ".join(SHELLS))


def main(arguments: argparse.Namespace) -> int:
    import shtab

    from ugt_composer.cli.main import parser

    complete = parser(with_arguments=True)
    for action in _actions(complete):
        name = action.metavar if isinstance(action.metavar, str) else action.dest.upper()
        if action.choices is None and action.nargs != 0 and any(part in name for part in FILES):
            vars(action)["complete"] = shtab.FILE
    print(shtab.complete(complete, shell=arguments.shell))
    return 0


def _actions(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    """Options and arguments of a parser and of its commands."""
    found = []
    for action in parser._actions:  # argparse lists them nowhere else; shtab reads them there, too
        if isinstance(action, argparse._SubParsersAction):
            found += [inner for command in action.choices.values() for inner in _actions(command)]
        else:
            found.append(action)
    return found
