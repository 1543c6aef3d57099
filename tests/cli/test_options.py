"""Spellings of the last release, groups of options, missing extras."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from mer_r1 import cli
from mer_r1.cli.app import EXTRAS, progress
from mer_r1.cli.options import RENAMED, RENAMED_VALUES, App

NOTE = "{} is now {}; the old spelling goes with the next release\n"


def commands(group=None, path=()):
    for name, command in (group or typer.main.get_command(cli.app)).commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*path, name))
        else:
            yield " ".join((*path, name)), command


def mer_r1(*words):
    return CliRunner().invoke(cli.app, [str(word) for word in words])


# --- spellings of the last release ------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", RENAMED)
def test_every_renamed_option_leads_to_one_that_exists(words):
    """In the command, or somewhere in the group; the old name is free, and takes a value as the new one does."""
    named = {path: command for path, command in commands() if f"{path} ".startswith(f"{words} ")}
    assert named
    for old, new in RENAMED[words].items():
        taking = [p for command in named.values() for p in command.params if new in p.opts]
        assert taking, f"{words} has no {new}"
        assert not any(parameter.is_flag for parameter in taking)
        assert not any(old in p.opts for command in named.values() for p in command.params)


def test_renamed_values_belong_to_renamed_options():
    assert set(RENAMED_VALUES) <= {old for names in RENAMED.values() for old in names}


def test_an_old_spelling_works_with_a_note_on_stderr_and_a_clean_stdout(tmp_path):
    for name, word in (("gold", "happy"), ("one", "glad"), ("two", "sad")):
        (tmp_path / f"{name}.json").write_text(json.dumps({"a": word}))
    files = [tmp_path / "one.json", tmp_path / "two.json"]
    words = ["score", "hit-rate", "--gold", tmp_path / "gold.json", "--json"]
    now = mer_r1(*words, "--predictions", files[0], "--predictions", files[1])
    old = mer_r1(*words, "--pred", files[0], f"--pred={files[1]}")
    assert (old.exit_code, old.stdout) == (0, now.stdout)
    assert len(json.loads(old.stdout)) == 2
    assert (now.stderr, old.stderr) == ("", NOTE.format("--pred", "--predictions"))


def test_old_spellings_are_in_no_help():
    for words, names in RENAMED.items():
        shown = [mer_r1(*path.split(), "--help").stdout for path, _ in commands() if f"{path} ".startswith(f"{words} ")]
        for old in names:
            assert not any(f"{old} " in text for text in shown), f"{words} {old}"


def parsed(words):
    path, given = " ".join(words[:2]), words[2:]
    command = dict(commands())[path]
    return command.make_context(f"mer-r1 {path}", [str(word) for word in given]).params


def test_old_values_and_two_prices_in_one(tmp_path, capsys):
    base = ["eval", "mer-unibench", "--model", "m", "--data", tmp_path, "--out", tmp_path]
    old = parsed([*base, "--llm", "r", "--llm-sampling", "ours", "--llm-replies=reference", "--base-url", "http://m"])
    new = parsed(
        [
            *base,
            *("--reader", "r", "--reader-sampling", "greedy", "--reader-replies", "reference"),
            *("--model-url", "http://m"),
        ]
    )
    assert old == new
    assert capsys.readouterr().err.count("\n") == 4
    base = ["eval", "mme-emotion", "--manifest", tmp_path, "--out", tmp_path, "--judge", "j"]
    assert parsed([*base, "--price-out", "8", "--price-in", "2"])["prices"] == "2,8"
    assert parsed([*base, "--price-in", "2"])["prices"] == "2,", "which is refused as no two numbers"
    assert parsed([*base, "--max-tokens", "9", "--max-new-tokens", "7"])["judge_max_new_tokens"] == 9


def test_what_follows_two_dashes_and_values_stay_as_they_are(tmp_path):
    given = parsed(["score", "mer-unibench", "--predictions", tmp_path, "--data", "x", "--", "--gold"])
    assert [str(path) for path in given["more"]] == ["--gold"]


def test_one_command_is_not_renamed_by_the_table_of_another(tmp_path):
    """--data is the manifest's old name in eval mme-emotion, and the folder's name in eval mer-unibench."""
    given = parsed(["eval", "mer-unibench", "--model", "m", "--data", tmp_path, "--out", tmp_path])
    assert given["data"] == tmp_path


def test_a_command_that_moved_runs_in_its_module_with_a_note(monkeypatch, capsys):
    program, called = typer.main.get_command(cli.app), []
    program.commands.pop("lmms-answers", None)
    monkeypatch.setattr(subprocess, "call", lambda words: called.append(words) or 3)
    with pytest.raises(SystemExit) as stop:
        program(["lmms-answers", "a.jsonl", "--out", "o"])
    assert stop.value.code == 3
    module = ["-m", "mer_r1.integrations.lmms_eval", "answers"]
    assert called == [[sys.executable, *module, "a.jsonl", "--out", "o"]]
    written = capsys.readouterr()
    assert (written.out, written.err) == ("", f"mer-r1 lmms-answers is now: python {' '.join(module)}\n")


def test_a_number_of_clips_for_a_study():
    study = dict(commands())["study paradox"]
    given = study.make_context("mer-r1 study paradox", ["--clips", "8,4,4", "--jobs", "2"]).params
    assert (given["num_clips"], given["workers"]) == ("8,4,4", 2)


# --- groups of options ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Server:
    """Options of a server."""

    url: Annotated[str, typer.Option()]
    seconds: float = 5.0


def test_a_dataclass_of_options_becomes_one_option_per_field():
    app, seen = App(), []

    @app.command()
    def ask(word: str, server: Server, loud: bool = False) -> None:
        """Ask."""
        seen.append((word, server, loud))

    for words in (["a", "--url", "u"], ["b", "--url", "v", "--seconds", "2", "--loud"]):
        assert CliRunner().invoke(app, words).exit_code == 0
    assert seen == [("a", Server("u", 5.0), False), ("b", Server("v", 2.0), True)]
    assert CliRunner().invoke(app, ["a"]).exit_code == 2, "a field without a default is required"


# --- missing extras ---------------------------------------------------------------------------------------------------

BLOCK = """
import os, sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in os.environ["MISSING"].split(","):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
"""


def without(tmp_path, modules, *words):
    """Run the program where modules are not installed, in its worker processes too."""
    (tmp_path / "sitecustomize.py").write_text(BLOCK)
    where = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": where, "MISSING": ",".join(modules)}
    command = [sys.executable, "-m", "mer_r1.cli", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=120)


READER = ("--reader", "m", "--reader-url", "http://127.0.0.1:9/v1")
ALL = [module for modules in EXTRAS.values() for module in modules]


@pytest.mark.parametrize(
    ("modules", "words", "module", "extra"),
    [
        (ALL, ["predict", "HERE/t.csv", "--model", "m"], "torch", "predict"),
        (ALL, ["rl", "output_dir=o"], "trl", "train"),
        (["trl"], ["plan", "--config", "tiny"], "trl", "train"),
        (["trl"], ["rl", "output_dir=o", "use_cpu=true", "bf16=false"], "trl", "train"),
        (ALL, ["scenes", "--out", "HERE/s", "--num-clips", "2"], "numba", "scenes"),
        (ALL, ["demo", "--out", "HERE/d"], "torch", "train"),
        (EXTRAS["scenes"], ["study", "paradox", "--out", "HERE/s", "--seeds", "1"], "anny", "scenes"),
        (["matplotlib"], ["demo", "--out", "HERE/d"], "matplotlib", "scenes"),
        (["anny"], ["scenes", "--out", "HERE/s", "--num-clips", "2"], "anny", "scenes"),  # in a worker process
        (
            ["openai"],
            ["extract", "--predictions", "HERE/p.jsonl", "--out", "HERE/o.jsonl", *READER],
            "openai",
            "llm",
        ),
    ],
)
def test_a_missing_extra_is_named_in_one_line(tmp_path, modules, words, module, extra):
    (tmp_path / "p.jsonl").write_text('{"id": "a", "completion": "She is sad."}\n')
    (tmp_path / "t.csv").write_text("path,words\n,Oh no.\n")  # files are checked before a model is looked for
    done = without(tmp_path, modules, *(word.replace("HERE", str(tmp_path)) for word in words))
    last = done.stderr.splitlines()[-1]
    assert (done.returncode, "Traceback" in done.stderr) == (2, False), done.stderr
    assert last.startswith(f"mer-r1: this command needs {module}, which is not installed: ")
    assert f"'.[{extra}]'" in last


def test_a_dumb_terminal_gets_no_blank_line_for_the_bar_it_cannot_show(monkeypatch, capsys):
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("TERM", "dumb")
    with progress("clips", 3) as advance:
        advance(1)
    assert capsys.readouterr().err == ""


def test_words_and_scores_need_no_extra(tmp_path):
    done = without(tmp_path, ALL, "map", "happy", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)[0]["word"] == "happy"
    done = without(tmp_path, ALL, "env")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("name", ["mer_r1.nothing", "unheard_of", None])
def test_an_unknown_module_keeps_its_traceback(monkeypatch, name):
    def fail():
        raise ModuleNotFoundError("no module", name=name)

    monkeypatch.setattr(sys.modules["mer_r1.cli.app"], "app", fail)
    with pytest.raises(ModuleNotFoundError):
        cli.main()
