"""Sources put together, compiled by NVRTC and kept on disk."""

import re

import pytest

from mtu.core.errors import InvalidInputError
from mtu.plugins import nvrtc

needs_nvrtc = pytest.mark.skipif(not nvrtc.compiler_version(), reason="NVRTC is not installed")


def test_a_source_has_each_of_its_headers_once(tmp_path):
    shared, own = tmp_path / "shared", tmp_path / "own"
    shared.mkdir()
    own.mkdir()
    (shared / "base.cuh").write_text("#pragma once\nbase\n")
    (own / "a.cuh").write_text('#pragma once\n#include "../shared/base.cuh"\na\n')
    (own / "kernel.cu").write_text(
        '#include "a.cuh"\n#include "../own/../shared/base.cuh"\n#include <system>\nkernel\n'
    )
    assert nvrtc.read_source(own / "kernel.cu").split("\n") == ["base", "a", "#include <system>", "kernel", ""]


@needs_nvrtc
def test_compiled_kernels_are_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("MTU_CACHE_DIR", str(tmp_path))
    source = 'extern "C" __global__ void nothing() {}'
    cubin = nvrtc.compiled(source, "sm_90")
    (kept,) = (tmp_path / "kernels").iterdir()
    monkeypatch.setattr(nvrtc, "compile_source", lambda *_: b"compiled again")
    assert nvrtc.compiled(source, "sm_90") == cubin
    assert nvrtc.compiled(source, "sm_80") == b"compiled again"
    kept.write_bytes(kept.read_bytes()[:-1])
    assert nvrtc.compiled(source, "sm_90") == b"compiled again"


@needs_nvrtc
def test_what_a_kept_kernel_depends_on(tmp_path, monkeypatch):
    """The source, the GPU, every option, and the compiler that this process loads."""
    monkeypatch.setenv("MTU_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(nvrtc, "compile_source", lambda source, arch, macros: b"cubin")

    def kept(source="source", arch="sm_90", macros=None):
        nvrtc.compiled(source, arch, macros)
        return len(list((tmp_path / "kernels").iterdir()))

    assert re.fullmatch(r"\d+\.\d+", nvrtc.compiler_version())
    assert [kept(), kept()] == [1, 1]
    assert kept(source="other") == 2
    assert kept(arch="sm_80") == 3
    assert kept(macros={"A": "1"}) == 4
    assert kept(macros={"A": "2"}) == 5
    monkeypatch.setattr(nvrtc, "STANDARD", "c++20")
    assert kept() == 6
    monkeypatch.setattr("cuda.bindings.nvrtc.nvrtcVersion", lambda: (0, 12, 2))
    assert [kept(), kept()] == [7, 7]


@needs_nvrtc
def test_a_cache_that_cannot_be_written_is_said(tmp_path, monkeypatch):
    monkeypatch.setenv("MTU_CACHE_DIR", str(tmp_path / "file"))
    (tmp_path / "file").write_text("")
    with pytest.warns(UserWarning, match="cannot be kept"):
        assert nvrtc.compiled('extern "C" __global__ void nothing() {}', "sm_90")


@needs_nvrtc
def test_an_architecture_nvrtc_does_not_know():
    with pytest.raises(InvalidInputError, match="cannot compile for sm_12"):
        nvrtc.compile_source("", "sm_12", {})
