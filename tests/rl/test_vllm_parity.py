"""`mer-r1 parity`: silent where both engines agree, and exact about what was planted where they do not."""

import json
import sys

import fake_vllm
import pytest
import torch
from typer.testing import CliRunner

from mer_r1.cli import app
from mer_r1.data.manifest import read_manifest
from mer_r1.errors import UserError
from mer_r1.rl.vllm.parity import compare, position_difference


@pytest.fixture
def vllm(monkeypatch):
    module = fake_vllm.module()
    monkeypatch.setitem(sys.modules, "vllm", module)
    return module


@pytest.fixture
def run(vllm, corpus, taught_folder):
    def go(*words, faults=()):
        vllm.LLM.faults = set(faults)
        command = ["parity", "--model", str(taught_folder), "--manifest", str(corpus), "--device", "cpu", *words]
        return CliRunner().invoke(app, command, env={"COLUMNS": "200"})

    return go


def test_engines_that_agree_say_so(run):
    """With sound and picture, without sound, without picture, and with sound in a file of its own."""
    done = run("--num-clips", "4", "--json")
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert report["agree"]
    assert [row["clip"] for row in report["clips"]] == [f"clip-{index}" for index in range(4)]
    assert [(row["video"] > 0, row["audio"] > 0) for row in report["clips"]] == [
        (True, True), (True, False), (False, True), (True, True),
    ]  # fmt: skip
    for row in report["clips"]:
        assert row["ids"] is row["positions"] is None
        assert row["positions_seen"]
        assert row["answered"] > 3
        assert 0 <= row["largest"] < 1e-4
        assert row["mean"] <= row["largest"]


def test_the_table_says_it_in_words(run):
    done = run("--num-clips", "2")
    assert done.exit_code == 0
    assert "vLLM and training agree." in done.stdout
    assert done.stdout.count("same") == 4


def test_an_id_expanded_twice_is_told_by_its_count(run):
    done = run("--num-clips", "1", "--json", faults=["expanded twice"])
    assert done.exit_code == 1
    (row,) = json.loads(done.stdout)["clips"]
    assert row["ids"] == (
        f"{2 * row['video']} video tokens, expected {row['video']}; "
        f"{2 * row['audio']} audio tokens, expected {row['audio']}"
    )
    assert row["mean"] is row["positions"] is None, "nothing else can be compared"
    assert not row["agrees"]
    assert "differ" in run("--num-clips", "1", faults=["expanded twice"]).stdout


def test_a_lost_frame_rate_is_told_by_the_positions(run):
    done = run("--num-clips", "3", "--json", faults=["frame rate"])
    assert done.exit_code == 1
    seen, silent, heard = json.loads(done.stdout)["clips"]
    assert seen["ids"] is None
    assert "the first at token" in seen["positions"]
    assert silent["positions"]
    assert heard["positions"] is None, "a sound has no frames"
    assert (seen["agrees"], heard["agrees"]) == (False, True)


def test_weights_that_were_not_taken_over_are_told_by_the_log_probabilities(run):
    done = run("--num-clips", "1", "--json", faults=["language model"])
    assert done.exit_code == 1
    (row,) = json.loads(done.stdout)["clips"]
    assert row["ids"] is row["positions"] is None
    assert row["mean"] > 0.5


def test_the_tolerance_is_the_users(run):
    lost = run("--num-clips", "1", "--json", "--tolerance", "100", faults=["language model"])
    assert lost.exit_code == 0
    assert json.loads(lost.stdout)["tolerance"] == 100


def test_positions_that_nobody_made_are_not_called_the_same(run, monkeypatch):
    original = fake_vllm.LLM._read

    def read(self, prompt):
        watched = self.model.__dict__.pop("get_mrope_input_positions", None)
        try:
            return original(self, prompt)
        finally:
            if watched is not None:
                self.model.get_mrope_input_positions = watched

    monkeypatch.setattr(fake_vllm.LLM, "_read", read)
    done = run("--num-clips", "1")
    assert done.exit_code == 0
    assert "not seen" in done.stdout


@pytest.mark.parametrize(
    ("came", "told"),
    [
        ([[0, 1, 2], [0, 1, 2], [0, 1, 2]], None),
        ([[0, 5, 6], [0, 1, 2], [0, 1, 2]], "2 of 3, the first at token 1: 5/1/1, expected 1/1/1"),
        ([[0, 1], [0, 1], [0, 1]], "shape (3, 2), expected (3, 3)"),
    ],
)
def test_position_difference(came, told):
    assert position_difference(torch.arange(3).expand(3, -1), torch.tensor(came)) == told


def test_without_vllm_one_line_says_what_to_install(monkeypatch, corpus, taught_folder):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(UserError, match=r"^mer-r1 parity needs the package vllm .*pip install vllm$"):
        list(compare(str(taught_folder), read_manifest(corpus)[:1], "cpu"))
