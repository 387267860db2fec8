import pytest


@pytest.fixture
def marker(tmp_path):
    """A file that is there afterwards if anything was executed."""
    file = tmp_path / "executed"
    yield file
    assert not file.exists(), "a file was executed"
