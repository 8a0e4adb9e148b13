"""Script with which a shell completes verbs, options and class names; it answers without starting Python."""

from collections.abc import Mapping

from jsonargparse import ArgumentParser

from flatbayes.cli.aliases import CLASS_OPTIONS, list_names
from flatbayes.cli.class_signatures import ClassSignature
from flatbayes.cli.option_table import OptionTable

SCRIPT = """# Completion of flatbayes: add `source <(flatbayes --completion)` to ~/.bashrc,
# or for zsh `autoload -U +X bashcompinit && bashcompinit; source <(flatbayes --completion)` to ~/.zshrc.
_flatbayes() {{
    local current="${{COMP_WORDS[COMP_CWORD]}}" previous="${{COMP_WORDS[COMP_CWORD-1]}}" words=""
    if [ "$COMP_CWORD" -eq 1 ]; then
        words="{verbs} --help --version"
    else
        case "$previous" in
{values}
        esac
        if [ "${{current#-}}" != "$current" ]; then
            case "${{COMP_WORDS[1]}}" in
{options}
            esac
        fi
    fi
    COMPREPLY=($(compgen -W "$words" -- "$current"))
}}
complete -o default -F _flatbayes flatbayes
"""


def render_completion(parsers: Mapping[str, ArgumentParser]) -> str:
    """The script for bash and zsh."""
    options = []
    for verb, parser in parsers.items():
        table = OptionTable.create(verb, parser)
        names = [*table.own_options(), "help"]
        for axis in table.class_options():
            package = CLASS_OPTIONS[axis][0].__name__
            for class_name in list_names(axis):
                names += [f"{axis}.{name}" for name in ClassSignature.of(f"{package}.{class_name}").hints]
        words = " ".join(f"--{name}" for name in sorted(set(names)))
        options.append(f'                {verb}) words="{words}" ;;')
    values = [
        f'            --{axis}|--{axis}.help|*.{axis}) words="{" ".join(list_names(axis))}" ;;'
        for axis in CLASS_OPTIONS
        if axis not in ("source",)
    ]
    return SCRIPT.format(verbs=" ".join(parsers), values="\n".join(values), options="\n".join(options))
