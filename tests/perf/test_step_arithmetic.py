"""The multiply-adds that the benchmark of a step predicts with, by hand."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "perf"))
from step_arithmetic import Lengths, Model, Way, count

SIZE = Lengths(prompts=1, group=4, prompt=1500, completion=300, fast=22, patches=0, mel_frames=0)
LAYERS_ONLY = Model(layers=1, attention=0, head=0, towers=0.0, head_everywhere=False)
STRAIGHT = Way(packing=False, features=False, straight=True)


def test_tokens_of_each_part() -> None:
    ours, straight = count(LAYERS_ONLY, SIZE, Way()), count(LAYERS_ONLY, SIZE, STRAIGHT)
    assert ours["sampling"] == 1500 + 4 * 300 + 4 * 22
    assert straight["sampling"] == 4 * (1500 + 300 + 1522)
    assert ours["training"] == 3 * (1500 + 4 * 301)  # a branch keeps one prompt token
    assert straight["training"] == 3 * 4 * 1800
    assert straight["training"] / ours["training"] == pytest.approx(2.66, abs=0.01)
    assert ours["step"] == ours["sampling"] + ours["reference"] + ours["training"]


def test_attention_head_and_towers() -> None:
    attention = count(replace(LAYERS_ONLY, layers=0, attention=1), SIZE, Way(calibration=False))
    assert attention["reference"] == 1500**2 / 2 + 4 * 301 * (1500 + 301 / 2)
    head = replace(LAYERS_ONLY, layers=0, head=1)
    assert count(head, SIZE, Way())["reference"] == 4 * 300
    assert count(replace(head, head_everywhere=True), SIZE, Way(packing=False))["reference"] == 4 * 1800
    towers = replace(LAYERS_ONLY, layers=0, towers=1.0)
    assert count(towers, SIZE, Way())["step"] == 0
    assert count(towers, SIZE, Way(features=False))["step"] == 3  # sampling, reference, training: once a clip
    assert count(towers, SIZE, STRAIGHT)["step"] == 16  # those and the fast confidence, for each rollout


def test_an_adapter_saves_a_third_of_training_and_checkpointing_costs_as_much() -> None:
    plain = count(LAYERS_ONLY, SIZE, Way())["training"]
    assert count(replace(LAYERS_ONLY, adapter=True), SIZE, Way())["training"] == plain * 2 / 3
    assert count(replace(LAYERS_ONLY, checkpointing=True), SIZE, Way())["training"] == plain * 4 / 3
