"""Files of numpy from anywhere: read without pickle, refused in one message where they are not what they say."""

from __future__ import annotations

import io
import os
import struct
import zipfile

import numpy as np
import pytest
import torch

from mtu.core.errors import InvalidInputError
from mtu.models.checkpoint import load_checkpoint
from mtu.models.npz import TIMES, is_npz, read_npz


def npy(array: np.ndarray, **options) -> bytes:
    written = io.BytesIO()
    np.lib.format.write_array(written, array, **options)
    return written.getvalue()


def header(shape: str, descr: str = "'<f4'", values: bytes = b"\0" * 16) -> bytes:
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + values


GOOD = npy(np.arange(4, dtype=np.float32))


def archive(path, members: dict[str, bytes] | list[tuple[str, bytes]], method: int = zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", method) as file:
        for name, data in members.items() if isinstance(members, dict) else members:
            file.writestr(name, data)
    return path


class Malicious:
    def __reduce__(self):
        return os.system, ("touch HACKED",)


@pytest.mark.parametrize(
    "array", [np.float16(2), np.arange(6, dtype=">f4").reshape(2, 3), np.ones((2, 0, 3)), np.ones((2, 3), order="F")]
)
def test_arrays_come_back_as_they_were(tmp_path, array):
    np.savez(tmp_path / "x.npz", **{"a/b:0": array})
    (found,) = read_npz(tmp_path / "x.npz").values()
    assert (
        np.array_equal(found, array) and found.shape == array.shape and found.dtype.isnative and found.flags.writeable
    )


def test_pickled_members_are_refused_and_do_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.savez(tmp_path / "x.npz", params=np.array([np.ones(2), Malicious()], dtype=object))
    with pytest.raises(InvalidInputError, match="params holds pickled objects; running code from a file is refused"):
        load_checkpoint(tmp_path / "x.npz")
    assert not (tmp_path / "HACKED").exists()


BAD = {
    "more values than are there": ({"a.npy": header("(1000000000000,)")}, "has 16 bytes, not 4000000000000"),
    "fewer": ({"a.npy": header("(2,)")}, r"is float32 \[2\] and has 16 bytes, not 8"),
    "a size below zero": ({"a.npy": header("(-4, -1)")}, r"is float32 \[-4, -1\]"),
    "a hidden overflow": ({"a.npy": header("(4294967296, 4294967296, 4)")}, "has 16 bytes"),
    "a record": ({"a.npy": header("(2,)", "[('x', '<f4'), ('y', '<f4')]")}, "should be floating-point"),
    "an object inside a record": ({"a.npy": header("(2,)", "[('x', '|O')]")}, "pickled objects"),
    "long double": ({"a.npy": npy(np.ones(1, np.longdouble))}, "has type .*should be floating-point"),
    "whole numbers": ({"a.npy": npy(np.ones(4, np.int64))}, "has type int64, should be floating-point"),
    "no header": ({"a.npy": b"text"}, "a has no header of numpy's"),
    "a header that is no Python": ({"a.npy": header("(((((", "'<f4'")}, "a has no header of numpy's"),
    "a header with a call": ({"a.npy": header("__import__('os').getcwd()")}, "a has no header of numpy's"),
    "a header that is deep": ({"a.npy": header("-" * 5000 + "1")}, "a has no header of numpy's"),
    "another version": ({"a.npy": GOOD.replace(b"NUMPY\x01", b"NUMPY\x07")}, "a has no header of numpy's"),
    "a picture": ({"a.npy": GOOD, "read me.txt": b"hello"}, "holds 'read me.txt', which is no array"),
    "a name twice": ([("a.npy", GOOD), ("a.npy", GOOD)], "holds a twice"),
}


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("what", BAD)
def test_what_is_no_plain_array_is_refused(tmp_path, what):
    members, words = BAD[what]
    with pytest.raises(InvalidInputError, match=words) as caught:
        load_checkpoint(archive(tmp_path / "x.npz", members))
    assert str(caught.value).count("checkpoint") == 1


def test_a_zip_bomb_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
    zeros = npy(np.zeros(4_000_000, np.float32))
    path = archive(tmp_path / "x.npz", {f"{n}.npy": zeros for n in range(3)}, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size * TIMES < 3 * len(zeros)
    monkeypatch.setattr(zipfile.ZipFile, "open", lambda *_: pytest.fail("it was unpacked"))
    with pytest.raises(InvalidInputError, match="would unpack to 48000384, more than 50 times as many"):
        load_checkpoint(path)


def test_many_names_for_the_same_bytes_are_refused(tmp_path):
    path = archive(tmp_path / "x.npz", {f"{n:02}.npy": npy(np.zeros(5000)) for n in range(2)})
    data = path.read_bytes()
    central = data[data.index(b"PK\x01\x02") : data.index(b"PK\x05\x06")]
    first = central[: len(central) // 2]
    many = b"".join(first.replace(b"00.npy", f"{n:02}.npy".encode()) for n in range(99))
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 99, 99, len(many), data.index(b"PK\x01\x02"), 0)
    path.write_bytes(data[: data.index(b"PK\x01\x02")] + many + end)
    with pytest.raises(InvalidInputError, match=r"cannot be read as .npz|times as many"):
        load_checkpoint(path)


def test_a_size_that_is_not_true_is_refused(tmp_path):
    path = archive(tmp_path / "x.npz", {"a.npy": npy(np.zeros(2_000_000, np.float32))}, zipfile.ZIP_DEFLATED)
    whole, true = path.read_bytes(), struct.pack("<L", 8_000_128)
    assert whole.count(true) == 2  # in front of the member and in the list at the end
    path.write_bytes(whole.replace(true, struct.pack("<L", 200)))
    with pytest.raises(InvalidInputError, match="Bad CRC-32"):
        load_checkpoint(path)


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_compressions_are_refused(tmp_path, method):
    with pytest.raises(InvalidInputError, match="encrypted or compressed as numpy never does"):
        load_checkpoint(archive(tmp_path / "x.npz", {"a.npy": GOOD}, method))


@pytest.mark.parametrize("keep", [4, 100, 0.5, -1])
def test_a_file_that_was_cut_off(tmp_path, keep):
    np.savez(tmp_path / "x.npz", a=np.ones(500, np.float32), b=np.ones(500, np.float32))
    data = (tmp_path / "x.npz").read_bytes()
    (tmp_path / "x.npz").write_bytes(data[: int(keep * len(data)) if isinstance(keep, float) else keep])
    with pytest.raises(InvalidInputError, match=r"cannot be read as .npz \(.*\): get it again"):
        load_checkpoint(tmp_path / "x.npz")


def test_files_with_spoilt_bytes_end_in_a_message_or_are_read(tmp_path):
    path = tmp_path / "x.npz"
    np.savez_compressed(path, a=np.arange(300, dtype=np.float32), b=np.ones((4, 5)))
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    outcomes = []
    for _ in range(400):
        spoilt = bytearray(whole)
        for place in rng.integers(0, len(spoilt), rng.integers(1, 5)):
            spoilt[place] = rng.integers(256)
        path.write_bytes(bytes(spoilt))
        try:
            read_npz(path)
            outcomes.append("read")
        except InvalidInputError:
            outcomes.append("refused")
    assert outcomes.count("refused") > 100


def test_what_is_whose(tmp_path):
    torch.save({"a": torch.ones(2)}, tmp_path / "torch.npz")
    torch.save({"a": torch.ones(2)}, tmp_path / "torch.pt")
    np.savez(tmp_path / "numpy.npz", a=np.ones(2))
    (tmp_path / "numpy.pt").write_bytes((tmp_path / "numpy.npz").read_bytes())
    (tmp_path / "text.npz").write_text("hello")
    assert [name for name in sorted(each.name for each in tmp_path.iterdir()) if is_npz(tmp_path / name)] == [
        "numpy.npz",
        "numpy.pt",
    ]
    for name in ("torch.npz", "numpy.pt"):
        with pytest.raises(InvalidInputError, match="is of another network: it has a"):
            load_checkpoint(tmp_path / name)
