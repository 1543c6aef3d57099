"""The command line, one file per theme; importing it registers every command."""

# ruff: noqa: I001 (the order is that of the help)
from mer_r1.cli import data as data
from mer_r1.cli import training as training
from mer_r1.cli import plan as plan
from mer_r1.cli import diagnose as diagnose
from mer_r1.cli import predict as predict
from mer_r1.cli import score as score
from mer_r1.cli.benchmarks import mer_unibench_score as mer_unibench_score
from mer_r1.cli.benchmarks import mer_unibench as mer_unibench
from mer_r1.cli.benchmarks import mme_emotion as mme_emotion
from mer_r1.cli import study as study
from mer_r1.cli.app import app, main

__all__ = ["app", "main"]
