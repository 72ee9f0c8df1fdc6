"""Loading TensorRT: versions, broken installations, the link that TensorRT-RTX lacks."""

from __future__ import annotations

import types

import pytest

from mtu.core.errors import InvalidInputError, MissingExtraError
from mtu.runtime import tensorrt_library


@pytest.fixture
def fresh(monkeypatch):
    """`load_library` that finds what `module` is set to."""
    monkeypatch.setattr(tensorrt_library.importlib.util, "find_spec", lambda name: types.SimpleNamespace())

    def install(module):
        def load(name):
            if isinstance(module, Exception):
                raise module
            return module

        monkeypatch.setattr(tensorrt_library.importlib, "import_module", load)
        return tensorrt_library.load_library.__wrapped__  # the cache is to keep the real one

    return install


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (
            ImportError("libnvinfer.so.10: cannot open\nshared object file"),
            "(libnvinfer.so.10: cannot open shared object",
        ),
        (OSError("libcudart.so.12"), "is installed but cannot be loaded (libcudart.so.12)"),
        (types.SimpleNamespace(), "is installed but cannot be loaded"),
        (types.SimpleNamespace(__version__="8.5.3.1"), "tensorrt 8.5.3.1 is too old: 8.6 or newer is needed"),
    ],
)
def test_a_library_that_is_of_no_use_says_why(fresh, module, words):
    with pytest.raises(InvalidInputError) as refused:
        fresh(module)("tensorrt")
    assert words in str(refused.value) and '"mtu-trt[gpu]"' in str(refused.value) and "\n" not in str(refused.value)


def test_an_unknown_or_absent_library(monkeypatch):
    with pytest.raises(InvalidInputError, match="unknown library 'cudnn': choose tensorrt or tensorrt-rtx"):
        tensorrt_library.load_library("cudnn")
    monkeypatch.setattr(tensorrt_library, "is_installed", lambda name: False)
    with pytest.raises(MissingExtraError, match=r"package 'tensorrt_rtx'.*rtx"):
        tensorrt_library.load_library.__wrapped__("tensorrt-rtx")


def test_a_link_that_cannot_be_made_is_explained(monkeypatch, tmp_path):
    """Without the link TensorRT-RTX's parser ends the process at the first plugin."""
    (tmp_path / "libtensorrt_rtx.so.1").touch()
    place = types.SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(tensorrt_library.importlib.util, "find_spec", lambda name: place)
    library = tensorrt_library.Library("tensorrt-rtx", None, "1.7.1", None)
    tensorrt_library.check_plugin_import(library)
    link = tmp_path / "libtensorrt_rtx.so"
    assert str(link.readlink()) == "libtensorrt_rtx.so.1"
    tensorrt_library.check_plugin_import(library)
    link.unlink()

    def refuse(self, target):
        raise PermissionError(13, "Permission denied", target, None, str(self))

    monkeypatch.setattr(tensorrt_library.Path, "symlink_to", refuse)
    with pytest.raises(InvalidInputError, match=r"Permission denied.*make it, or build with --no-plugin"):
        tensorrt_library.check_plugin_import(library)
