"""A folder of labels appears as a whole or not at all."""

import pytest

from visionkit.data.formats.base import new_folder
from visionkit.errors import ConfigError


def test_it_appears_at_the_end(tmp_path):
    with new_folder(tmp_path / "out") as folder:
        (folder / "a.txt").write_text("a")
        assert not (tmp_path / "out").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out" / "a.txt").read_text() == "a"


def test_after_an_error_nothing_remains(tmp_path):
    with pytest.raises(KeyError), new_folder(tmp_path / "out") as folder:
        (folder / "a.txt").write_text("a")
        raise KeyError
    assert not any(tmp_path.iterdir())


def test_what_appears_meanwhile_is_kept(tmp_path):
    with (
        pytest.raises(ConfigError, match="already exists"),
        new_folder(tmp_path / "out") as folder,
    ):
        (folder / "a.txt").write_text("a")
        (tmp_path / "out").mkdir()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert not any((tmp_path / "out").iterdir())
