"""`mtu-farm verify`: what was made is restored again and compared."""

from __future__ import annotations

import pytest
from tests import cli
from tests.farm.made_films import finish, jobs

from mtu.core.errors import InvalidInputError, MissingFileError
from mtu.farm.engine import Workers
from mtu.farm.verify import verify
from mtu.runtime.batch import record_of

pytestmark = pytest.mark.usefixtures("no_ray")


def test_it_can_be_verified(ready, tmp_path, capsys):
    assert finish(ready, Workers()).error == ""
    job = jobs(tmp_path, "out", ["a.mp4"], overwrite=True)[0]
    starts = [scene.first for scene in ready.plan.scenes]
    assert verify(job, whole=True) == starts
    assert set(verify(job, whole=False, seed=1)) < set(starts)
    words = [tmp_path / "a.mp4", "-o", tmp_path / "out", "--model", tmp_path / "model", "--backend", "onnxruntime"]
    ended = cli.run(capsys, "mtu-farm", "verify", *words, "--all")
    assert ended.code == 0 and f"{len(starts)} scenes restored again" in ended.err


@pytest.mark.parametrize(
    ("what", "said"),
    [("changed", "has changed since mtu-farm run made it"), ("gone", "does not exist"), ("record", "is broken")],
)
def test_an_output_that_is_another_is_not_verified(ready, tmp_path, what, said):
    assert finish(ready, Workers()).error == ""
    target = tmp_path / "out" / "a.mp4"
    if what == "changed":
        target.write_bytes(target.read_bytes()[:-1] + b"?")
    elif what == "gone":
        target.unlink()
    else:
        record_of(str(target)).write_text("{")
    with pytest.raises((InvalidInputError, MissingFileError), match=said):
        verify(jobs(tmp_path, "out", ["a.mp4"], overwrite=True)[0], whole=True)


def test_what_comes_out_otherwise_is_found(ready, tmp_path):
    assert finish(ready, Workers()).error == ""
    record = record_of(str(tmp_path / "out" / "a.mp4"))
    text = record.read_text()
    digest = text.split('"scenes": {')[1].split(": ")[1][1:65]
    record.write_text(text.replace(digest, "0" * 64))
    job = jobs(tmp_path, "out", ["a.mp4"], overwrite=True)[0]
    with pytest.raises(InvalidInputError, match="frames 0 to 11 come out otherwise"):
        verify(job, whole=True)
    record.unlink()
    with pytest.raises(MissingFileError, match="was not made by mtu-farm run"):
        verify(job, whole=True)


def test_what_it_was_made_with_is_named(ready, tmp_path, capsys):
    assert finish(ready, Workers()).error == ""
    other = jobs(tmp_path, "out", ["a.mp4"], overwrite=True, strict=True)[0]
    with pytest.raises(InvalidInputError, match=r"a.mp4 was made with strict False, and now it is True"):
        verify(other, whole=True)


def test_all_are_verified_though_one_fails(ready, tmp_path, capsys):
    assert finish(ready, Workers()).error == ""
    (tmp_path / "none.mp4").write_bytes((tmp_path / "a.mp4").read_bytes())
    given = [tmp_path / "none.mp4", tmp_path / "a.mp4", "-o", tmp_path / "out", "--model", tmp_path / "model"]
    ended = cli.run(capsys, "mtu-farm", "verify", *given, "--backend", "onnxruntime", "--all")
    assert ended.code == 4 and "failed: " in ended.err and "none.mp4 does not exist" in ended.err, ended.err
    assert "8 scenes restored again" in ended.err and "2 films: 1 the same, 1 failed" in ended.err
    alone = [given[0], *given[2:]]
    cli.refused(cli.run(capsys, "mtu-farm", "verify", *alone), tmp_path, "none.mp4 does not exist: nothing to verify")
    (tmp_path / "out" / "none.mp4").write_bytes(b"mine")
    cli.refused(cli.run(capsys, "mtu-farm", "verify", *alone), tmp_path, "was not made by mtu-farm run")
    (tmp_path / "list.txt").write_text(f"{tmp_path / 'a.mp4'}\n")
    ended = cli.run(
        capsys, "mtu-farm", "verify", "--list", tmp_path / "list.txt", *given[2:], "--backend", "onnxruntime"
    )
    assert ended.code == 0 and "restored again, the same" in ended.err, ended.err
