"""Options that several commands share, and the spellings of the last release."""

from collections.abc import Callable, Sequence
from typing import Any

import typer
from typer.core import TyperCommand

_PREDICTIONS = {"--pred": "--predictions"}
_READER = {"--llm": "--reader", "--llm-url": "--reader-url"}
_SERVER = {"--data": "--manifest", "--price-in": "--prices", "--price-out": "--prices"}
RENAMED: dict[str, dict[str, str]] = {
    "scenes": {"--clips": "--num-clips"},
    "parity": {"--clips": "--num-clips"},
    "extract": {"--llm": "--reader", "--base-url": "--reader-url"}
    | {"--sampling": "--reader-sampling", "--replies": "--reader-replies"},
    "clues": _SERVER | {"--base-url": "--model-url", "--max-tokens": "--max-new-tokens"},
    "score openset": _PREDICTIONS,
    "score hit-rate": _PREDICTIONS,
    "score sentiment": _PREDICTIONS,
    "score list-parse": _PREDICTIONS,
    "score llm-reply": _PREDICTIONS,
    "score mer-unibench": {"--gold": "--data"},
    "score mme-emotion": {"--judged": "--predictions", "--data": "--manifest", "--alpha": "--cot-weight"},
    "eval mer-unibench": _READER
    | {"--base-url": "--model-url", "--llm-sampling": "--reader-sampling", "--llm-replies": "--reader-replies"}
    | {"--llm-key-variable": "--reader-key-variable"},
    "eval mme-emotion": _SERVER
    | {"--base-url": "--judge-url", "--responses": "--predictions", "--alpha": "--cot-weight"}
    | {"--extractor": "--reader", "--extractor-url": "--reader-url", "--max-tokens": "--judge-max-new-tokens"},
    "study": {"--jobs": "--workers", "--clips": "--num-clips"},
}
"""Command, or group of commands -> old spelling of an option -> its spelling now. Goes with the next release."""

RENAMED_VALUES = {"--llm-sampling": {"ours": "greedy"}, "--llm-replies": {"ours": "checked"}}
"""Old spelling of an option -> old value -> its name now."""


class Command(TyperCommand):
    """A command that also takes the spellings of the last release, with a note on stderr."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments, after old spellings have become those of now."""
        known = {name for parameter in self.params for name in parameter.opts}
        renamed: dict[str, str] = {}
        for words, names in RENAMED.items():
            if f" {words} " in f"{ctx.command_path} ":
                renamed |= {old: new for old, new in names.items() if new in known and old not in known}
        return super().parse_args(ctx, current_spelling(args, renamed, lambda old, new: _note(ctx, old, new)))


class App(typer.Typer):
    """A group of commands, each of which is a `Command`."""

    def command(self, name: str | None = None, **settings: Any) -> Callable[[Any], Any]:
        """Register a function as a command."""
        return super().command(name, **{"cls": Command, **settings})


def current_spelling(
    args: Sequence[str], renamed: dict[str, str], note: Callable[[str, str], None] = lambda old, new: None
) -> list[str]:
    """Replace old spellings of options, and old values, by those of now.

    Args:
        args: the words after the command.
        renamed: old spelling -> spelling now. Every such option takes a value.
        note: callback called for each old spelling.

    >>> current_spelling(["--llm", "m", "--llm-sampling=ours", "--out", "o"], RENAMED["eval mer-unibench"])
    ['--reader', 'm', '--reader-sampling', 'greedy', '--out', 'o']
    >>> current_spelling(["--price-in", "2", "--price-out", "8"], RENAMED["clues"])
    ['--prices', '2,8']
    """
    words, left = [], list(args)
    prices: dict[str, str] = {}
    while left:
        word = left.pop(0)
        if word == "--":
            words += [word, *left]
            break
        old, equals, value = word.partition("=")
        if old not in renamed:
            words.append(word)
            continue
        note(old, renamed[old])
        given = [value] if equals else [left.pop(0)] if left else []
        if old.startswith("--price-"):
            prices[old] = given[0] if given else ""
        else:
            words += [renamed[old], *(RENAMED_VALUES.get(old, {}).get(one, one) for one in given)]
    pair = [prices.get("--price-in", ""), prices.get("--price-out", "")]
    return ["--prices", ",".join(pair), *words] if prices else words


def _note(context: Any, old: str, new: str) -> None:
    if not context.resilient_parsing:
        typer.echo(f"{old} is now {new}; the old spelling goes with the next release", err=True)
