"""The demo's own work: which stages are done, and resuming."""

import json

import pytest
from rich.console import Console

from mer_r1.errors import UserError
from mer_r1.lab import demo

quiet = Console(quiet=True)


def test_a_stage_that_fails_says_what_it_said(tmp_path):
    settings = [f"manifest={tmp_path / 'none.jsonl'}", "model=nowhere", f"output_dir={tmp_path / 'sft'}"]
    with pytest.raises(UserError, match=r"sft ended with status .*console\.log.*none\.jsonl"):
        demo._train("sft", settings, tmp_path / "sft", demo._no_bar)


def test_steps_are_those_of_the_newest_whole_line(tmp_path):
    log = tmp_path / "log.jsonl"
    assert demo._steps(log) == 0
    log.write_text('{"loss": 1, "step": 5}\n{"loss": 1, "step": 10}\n{"train_runtime": 1, "step": 10}\n')
    assert demo._steps(log) == 10
    log.write_text('{"loss": 1, "step": 5}\n{"loss": 1, "st')
    assert demo._steps(log) == 5


def test_a_finished_stage_is_not_run_again(tmp_path):
    ran = []
    settings = {"quick": True, "seed": 0}
    for _ in range(2):
        demo._Run(tmp_path, settings, quiet).stage("scenes", lambda: ran.append(1))
    assert ran == [1]
    assert json.loads((tmp_path / "stages.json").read_text())["settings"] == settings


def test_a_folder_of_another_demo_is_refused(tmp_path):
    demo._Run(tmp_path, {"quick": True, "seed": 0}, quiet).stage("scenes", lambda: None)
    with pytest.raises(UserError, match="another --out"):
        demo._Run(tmp_path, {"quick": False, "seed": 0}, quiet)


def test_a_stage_that_breaks_off_is_not_finished(tmp_path):
    run = demo._Run(tmp_path, {}, quiet)
    with pytest.raises(ZeroDivisionError):
        run.stage("scenes", lambda: 1 / 0)
    ran = []
    demo._Run(tmp_path, {}, quiet).stage("scenes", lambda: ran.append(1))
    assert ran == [1]
