"""The command line: one file a theme; importing this registers every command."""

# ruff: noqa: I001 (the order is that of the help)
from mer_r1.cli import corpus as corpus
from mer_r1.cli import prepare as prepare
from mer_r1.cli import training as training
from mer_r1.cli import plan as plan
from mer_r1.cli import features as features
from mer_r1.cli import parity as parity
from mer_r1.cli import asking as asking
from mer_r1.cli import auto as auto
from mer_r1.cli import scoring as scoring
from mer_r1.cli import extract as extract
from mer_r1.cli import benchmarks as benchmarks
from mer_r1.cli import unibench as unibench
from mer_r1.cli import mme as mme
from mer_r1.cli import lmms as lmms
from mer_r1.cli import study as study
from mer_r1.cli.base import app, main

__all__ = ["app", "main"]
