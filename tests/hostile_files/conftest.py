import pytest


@pytest.fixture
def marker(tmp_path):
    """Return a file that exists afterwards only if anything was executed; the fixture asserts that it does not."""
    file = tmp_path / "executed"
    yield file
    assert not file.exists(), "a file was executed"
