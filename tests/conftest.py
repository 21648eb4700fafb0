"""Real images come from the folder named by VISIONKIT_TEST_DATA; without it their tests skip."""

import os
from pathlib import Path

import pytest
import torch


@pytest.fixture(scope="session")
def real_data() -> Path:
    folder = os.environ.get("VISIONKIT_TEST_DATA")
    if not folder:
        pytest.skip("VISIONKIT_TEST_DATA is not set")
    return Path(folder)


@pytest.fixture(scope="session", autouse=True)
def _cache_of_this_run(tmp_path_factory):
    """Generated data goes to a folder of the test run, never to the user's cache."""
    before = os.environ.get("VISIONKIT_CACHE")
    os.environ["VISIONKIT_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    yield
    os.environ.pop("VISIONKIT_CACHE")
    if before is not None:
        os.environ["VISIONKIT_CACHE"] = before


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)
