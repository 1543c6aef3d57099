"""Fixtures shared by all tests."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder `shared` beside the checkout: official tables and reference values that are not ours to commit.

    Skips with a word where the folder is absent; fails in CI, where it must be there.
    """
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not folder.is_dir():
        if os.environ.get("CI") == "true":
            pytest.fail(
                f"CI=true but the reference folder is missing: expected it beside the checkout, ../{folder.name}"
            )
        pytest.skip("the folder ../shared with the official tables is not here")
    return folder
