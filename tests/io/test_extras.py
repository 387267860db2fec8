import sys

import pytest

from nnunet_hrmedseg.errors import SetupError
from nnunet_hrmedseg.io.extras import import_extra


def test_missing_package_is_reported_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(SetupError, match=r"jinja2 .*a report.*pip install 'nnunet_hrmedseg\[compare\]'"):
        import_extra("jinja2", "compare", "a report")


def test_installed_module_is_returned():
    assert import_extra("os.path", "compare", "a test").join("a", "b")


def test_missing_dependency_of_an_installed_package_raises_its_own_error(tmp_path, monkeypatch):
    (tmp_path / "half_installed.py").write_text("import package_that_nobody_has\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="package_that_nobody_has"):
        import_extra("half_installed", "compare", "a test")
