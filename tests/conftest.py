"""Fixtures shared by all tests."""

import fcntl
import gc
import os
import shutil
import sys
from pathlib import Path

# Before anything imports them: no test may reach for the network, and tiny tensors gain nothing from more threads.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
from hypothesis import HealthCheck, settings

# No test is about time: a busy machine must not fail one. In CI the examples are the same every time.
settings.register_profile(
    "mer-r1",
    deadline=None,
    derandomize=os.environ.get("CI") == "true",
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("mer-r1")


# Files that take the longest, in this order: two processes then end at about the same time (Makefile, test).
LONGEST = (
    "training/test_stages.py",
    "lab/test_smollm2.py",
    "training/test_processes.py",
    "lab/test_faces.py",
    "cli/test_cli.py",
    "benchmarks/test_mer_unibench_run.py",
    "rl/test_vllm_rollouts.py",
    "integrations/test_lmms_tasks.py",
    "lab/test_demo.py",
    "benchmarks/test_mme_pipeline.py",
    "model/test_absent_towers.py",
    "model/test_families.py",
    "evaluation/test_predict.py",
    "test_docs_run.py",
    "test_docs.py",
)


def pytest_collection_modifyitems(items):
    """Begin with the files that take the longest."""
    places = {name: place for place, name in enumerate(LONGEST)}
    root = Path(__file__).parent

    def place(item):
        inside = item.path.relative_to(root).as_posix() if item.path.is_relative_to(root) else ""
        return places.get(inside, len(places))

    items.sort(key=place)


def pytest_collection_finish():
    """Leave what all tests share (modules, mostly) out of every later search for garbage."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure():
    """Let the interpreter's end find them again."""
    gc.unfreeze()


def made_once(tmp_path_factory, name, make):
    """A copy of a folder that the first of the run's processes made; the others wait for it. Each has its own copy."""
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    made = base / f"once-{name}"
    with (base / f"once-{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            make(made.with_suffix(".partial"))
            made.with_suffix(".partial").rename(made)
    return Path(shutil.copytree(made, tmp_path_factory.mktemp(name) / name))


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory) -> None:
    """What is kept from run to run is kept for this run of the tests only."""
    os.environ["MER_R1_CACHE_DIR"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder `shared` beside the checkout: official tables and reference values that are not ours to commit.

    Skips with a word where the folder is absent; fails in CI, where it must be there.
    """
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not folder.is_dir():
        if os.environ.get("CI") == "true":
            pytest.fail(
                f"CI=true but the reference folder is missing: expected it beside the checkout, at ../{folder.name}"
            )
        pytest.skip("the folder ../shared with the official tables is not here")
    return folder


@pytest.fixture(scope="session")
def omni():
    """The tiny untrained policy of `tiny_world`, towers frozen. Shared: a test that changes a weight puts it back."""
    from tiny_world import tiny_omni

    policy = tiny_omni()
    policy.freeze_towers()
    policy.model.eval()
    return policy


@pytest.fixture(scope="session")
def taught_folder(tmp_path_factory) -> Path:
    """A checkpoint of the tiny policy that has learned to answer in form, mostly."""
    from tiny_world import some_prompts, teach, tiny_omni

    def make(folder):
        policy = tiny_omni()
        policy.freeze_towers()
        teach(policy, some_prompts(policy))
        policy.save(folder)

    return made_once(tmp_path_factory, "taught", make)


@pytest.fixture(scope="session")
def taught(taught_folder):
    """That checkpoint, loaded. Shared: a test that changes a weight puts it back."""
    from mer_r1.model.omni import load

    policy = load(taught_folder)
    policy.freeze_towers()
    policy.model.eval()
    return policy


@pytest.fixture(scope="session")
def corpus(tmp_path_factory) -> Path:
    """The manifest of `tiny_corpus`; a test that changes its files copies the folder first."""
    from tiny_corpus import write_corpus

    return write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture
def run(capsys, monkeypatch):
    """Run `mer-r1` in this process; returns its exit status, stdout and stderr."""
    from mer_r1.cli import main

    monkeypatch.setenv("COLUMNS", "80")

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["mer-r1", *map(str, words)])
        try:
            main()
            status = 0
        except SystemExit as stop:
            status = stop.code or 0
        written = capsys.readouterr()
        return status, written.out, written.err

    return call
