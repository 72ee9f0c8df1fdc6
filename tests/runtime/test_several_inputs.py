"""Several inputs of mtu-run: names, one model for all, failures that stop no other, what is done already."""

from __future__ import annotations

import errno
import json
import signal

import numpy as np
import pytest
from tests import cli
from tests.frames import write_clip
from tests.media import make_video, moving
from tests.small_models import opposite

from mtu.runtime import opened
from mtu.runtime.video import read_picture


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return opposite(tmp_path_factory.mktemp("models") / "opposite")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Two videos of one size, one of another, a directory of pictures."""
    monkeypatch.chdir(tmp_path)
    make_video("a.mkv", moving(3), codec="ffv1", pix_fmt="bgr0")
    make_video("b c.mp4", moving(4, 32, 48))
    make_video("d.mp4", moving(2), audio=True)
    write_clip(tmp_path / "pictures", 3, 24, 32)
    return tmp_path


def run(capsys, model, *words):
    return cli.run(capsys, "mtu-run", *words, "--model", model.directory)


def test_each_gets_an_output_of_its_name(capsys, folder, model):
    ended = run(capsys, model, "a.mkv", "b c.mp4", "pictures", "-o", "out", "--suffix", "-new", "--json", "r.json")
    assert ended.code == 0, ended.err
    assert sorted(path.name for path in (folder / "out").iterdir()) == ["a-new.mkv", "b c-new.mp4", "pictures-new"]
    assert "3 inputs: 3 done" in ended.err
    runs = json.loads((folder / "r.json").read_text())["runs"]
    assert [(each["source"], each["frames"]) for each in runs] == [("a.mkv", 3), ("b c.mp4", 4), ("pictures", 3)]
    alone = run(capsys, model, "a.mkv", "-o", "alone.mkv")
    assert alone.code == 0
    for name, pictures in (("out/a-new.mkv", "first"), ("alone.mkv", "second")):
        assert run(capsys, model, name, "-o", pictures).code == 0
    names = [path.name for path in sorted((folder / "first").iterdir())]
    assert len(names) == 3
    assert all(np.array_equal(*(read_picture(folder / each / name) for each in ("first", "second"))) for name in names)


def test_a_list_of_one_is_a_list(capsys, folder, model):
    (folder / "list.txt").write_text("# my films\n\na.mkv\n")
    ended = run(capsys, model, "--list", "list.txt", "-o", "out")
    assert ended.code == 0, ended.err
    assert (folder / "out" / "a.mkv").is_file()
    ended = run(capsys, model, "d.mp4", "--list", "list.txt", "-o", "both")
    assert sorted(path.name for path in (folder / "both").iterdir()) == ["a.mkv", "d.mp4"]


def test_a_list_as_windows_writes_it(capsys, folder, model):
    (folder / "list.txt").write_bytes(b"\xef\xbb\xbfa.mkv\r\n# none\r\n\r\nb c.mp4\r\n")
    ended = run(capsys, model, "--list", "list.txt", "-o", "out")
    assert ended.code == 0, ended.err
    assert sorted(path.name for path in (folder / "out").iterdir()) == ["a.mkv", "b c.mp4"]


def test_names_of_all_kinds(capsys, folder, model):
    names = ["two\nlines.mkv", "n" * 250 + ".mkv", "-o.mkv", "umlaut ä.mkv", "a\x85\u2028.mkv", "link.mkv"]
    for name in names[:-1]:
        (folder / name).write_bytes((folder / "a.mkv").read_bytes())
    (folder / "link.mkv").symlink_to("a.mkv")
    (folder / "list.txt").write_text("a\x85\u2028.mkv\n")
    words = ["--list", "list.txt", "a.mkv", *(f"./{name}" for name in names if "\x85" not in name)]
    ended = run(capsys, model, *words, "-o", "out", "--skip-done", "--resume")
    assert ended.code == 0, ended.err
    made = {path.name for path in (folder / "out").iterdir() if not path.name.startswith(".")}
    assert made == {"a.mkv", *names}


def test_the_model_is_opened_once_for_a_size(capsys, folder, model, monkeypatch):
    sizes = []
    real = opened.open_backend

    def counting(*given, size, **options):
        sizes.append(size)
        return real(*given, size=size, **options)

    monkeypatch.setattr(opened, "open_backend", counting)
    assert run(capsys, model, "a.mkv", "d.mp4", "b c.mp4", "-o", "out").code == 0
    assert sizes == [(48, 64), (32, 48)]


def test_a_failure_stops_no_other(capsys, folder, model, monkeypatch):
    (folder / "bad.mp4").write_bytes(b"no video at all")
    ended = run(capsys, model, "a.mkv", "bad.mp4", "d.mp4", "-o", "out", "--json", "r.json")
    assert ended.code == 4
    assert "bad.mp4 failed: bad.mp4 cannot be read" in ended.err and "3 inputs: 2 done, 1 failed" in ended.err
    assert ended.err.splitlines()[-1] == "mtu-run: failed: bad.mp4"
    assert "Traceback" not in ended.err
    assert sorted(path.name for path in (folder / "out").iterdir()) == ["a.mkv", "d.mp4"]
    assert "cannot be read" in json.loads((folder / "r.json").read_text())["runs"][1]["error"]


def test_a_bug_keeps_its_traceback_and_stops_no_other(capsys, folder, model, monkeypatch):
    from mtu.runtime.console import runs

    real = runs.run_job

    def broken(job, **options):
        if job.source == "a.mkv":
            raise KeyError("a bug")
        return real(job, **options)

    monkeypatch.setattr(runs, "run_job", broken)
    ended = run(capsys, model, "a.mkv", "d.mp4", "-o", "out")
    assert ended.code == 4 and "Traceback" in ended.err and "KeyError: 'a bug'" in ended.err
    assert (folder / "out" / "d.mp4").is_file()


def test_what_the_system_refuses_is_no_bug(capsys, folder, model, monkeypatch):
    from mtu.runtime.console import runs

    def full(job, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(runs, "run_job", full)
    ended = run(capsys, model, "a.mkv", "d.mp4", "-o", "out")
    assert ended.code == 4 and "Traceback" not in ended.err and "d.mp4 failed: writing: No space left" in ended.err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("hidden", [False, True], ids=["plain", "hidden"])
def test_a_signal_ends_all(capsys, folder, model, monkeypatch, number, hidden):
    from mtu.runtime.console import runs

    sources = []

    def end(job, **options):
        sources.append(job.source)
        try:
            signal.raise_signal(number)
        except BaseException:
            if hidden:  # as some libraries do
                raise RuntimeError("an error of a library") from None
            raise

    monkeypatch.setattr(runs, "run_job", end)
    ended = run(capsys, model, "a.mkv", "d.mp4", "-o", "out")
    assert ended.code == 128 + number and sources == ["a.mkv"]
    assert "failed" not in ended.err and "Traceback" not in ended.err


def test_a_damaged_one_is_code_3(capsys, folder, model):
    whole = make_video(folder / "whole.mkv", moving(30), options={"g": "5"}).read_bytes()
    (folder / "cut.mkv").write_bytes(whole[: len(whole) * 2 // 3])
    ended = run(capsys, model, "a.mkv", "cut.mkv", "-o", "out")
    assert ended.code == 3, ended.err
    assert "damaged input: cut.mkv: " in ended.err and "2 inputs: 2 done" in ended.err


def test_notes_say_of_which_input(capsys, folder, model):
    make_video("ten.mkv", moving(3), codec="ffv1", pix_fmt="yuv420p10le")
    ended = run(capsys, model, "a.mkv", "ten.mkv", "-o", "out.mkv/")
    assert ended.code == 0 and "note: ten.mkv: the source has 10 bits" in ended.err, ended.err
    assert (folder / "out.mkv" / "ten.mkv").is_file()
    assert "note: the source has 10 bits" in run(capsys, model, "ten.mkv", "-o", "alone.mkv").err


class TestSkipDone:
    @pytest.fixture(autouse=True)
    def once(self, capsys, folder, model):
        self.again = lambda *words: run(capsys, model, "a.mkv", "d.mp4", "-o", "out", "--skip-done", *words)
        assert self.again().code == 0

    def test_what_is_done_is_left_out(self, folder):
        before = (folder / "out" / "a.mkv").stat().st_mtime_ns
        ended = self.again()
        assert ended.code == 0 and "2 inputs: 0 done, 2 done before" in ended.err
        assert (folder / "out" / "a.mkv").stat().st_mtime_ns == before

    def test_what_is_gone_is_made_again(self, folder):
        (folder / "out" / "d.mp4").unlink()
        assert "1 done, 1 done before" in self.again().err
        assert (folder / "out" / "d.mp4").is_file()

    def test_names_do_not_count(self, capsys, folder, model):
        (folder / "again").symlink_to(model.directory)
        words = [folder / "a.mkv", "./d.mp4", "-o", folder / "out", "--skip-done", "--model", "again"]
        ended = cli.run(capsys, "mtu-run", *words)
        assert ended.code == 0 and "2 done before" in ended.err, ended.err

    @pytest.mark.parametrize("what", ["source", "target", "option", "record", "no record"])
    def test_what_has_changed_is_no_longer_done(self, folder, what):
        words = []
        if what == "source":
            make_video("a.mkv", moving(5), codec="ffv1", pix_fmt="bgr0")
        elif what == "target":
            with (folder / "out" / "a.mkv").open("ab") as file:
                file.write(b"1")
        elif what == "option":
            words = ["--crf", "30"]
        else:
            record = folder / "out" / ".a.mkv.done"
            record.unlink() if what == "no record" else record.write_text("[")
        ended = self.again(*words)
        why = "nothing says what it was made of" if what == "no record" else "was not made by this source, model and op"
        assert ended.code == 4 and f"a.mkv exists, and {why}" in ended.err
        assert self.again(*words, "--overwrite").code == 0
        ended = self.again(*words)
        assert ended.code == 0 and "2 done before" in ended.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["a.mkv", "none.mp4", "-o", "out"], "none.mp4 does not exist"),
        (["a.mkv", "-", "-o", "out"], "only files and directories"),
        (["a.mkv", "http://example.org/a.mp4", "-o", "out"], "only files and directories"),
        (["a.mkv", "d.mp4", "-o", "-"], "need a directory"),
        (["a.mkv", "d.mp4", "-o", "all.mp4"], "-o all.mp4: is the directory in which"),
        (["a.mkv", "--suffix", "-x", "-o", "out/a-x.MKV"], "write out/a-x.MKV/ if it is to be called so"),
        (["a.mkv", "d.mp4", "./a.mkv", "-o", "out"], "./a.mkv is given twice: give it once"),
        (["a.mkv", "d.mp4", "-o", "a.mkv"], "need a directory"),
        (["a.mkv", "./a.mkv", "-o", "out"], "given twice"),
        (["a.mkv", "pictures", "-o", "out", "--suffix", "x/y"], "--suffix"),
        (["a.mkv", "d.mp4", "-o", "out", "--save-motion", "m"], "--save-motion is for one source"),
        (["a.mkv", "d.mp4", "-o", "out", "--save-maps", "m"], "--save-maps is for one source"),
        (["a.mkv", "d.mp4", "-o", "out", "--stream", "x=y"], "--stream is for one source"),
        (["--list", "none.txt", "-o", "out"], "--list none.txt does not exist"),
        (["--list", "pictures", "-o", "out"], "cannot be read"),
        (["--list", "empty.txt", "-o", "out"], "names no source"),
        (["a.mkv", "", "-o", "out"], "has no name"),
        (["a.mkv", "d.mp4", "-o", ".", "--overwrite"], "would take the place of the input a.mkv"),
        (["e/d.mp4", "d.mp4", "pictures", "-o", "e", "--skip-done"], "would both become"),
        (["e/d-x.mp4", "d.mp4", "-o", "e", "--suffix", "-x", "--overwrite"], "e/d-x.mp4, the output of d.mp4, would"),
        (["e/pictures", "pictures/", "-o", "e", "--suffix", "", "--overwrite"], "would both become"),
        (["pictures", "e/pictures/1.png", "-o", "e", "--overwrite"], "would take the place of the input"),
        (["a.mkv", "d.mp4", "-o", "out", "--json", "out/d.mp4"], "--json out/d.mp4"),
        (["--list", "list.txt", "-o", "out", "--json", "list.txt"], "--json list.txt"),
        (["-o", "out"], "INPUT is missing"),
    ],
)
def test_what_can_be_known_is_refused_before_the_first(capsys, folder, model, words, said):
    (folder / "empty.txt").write_text("# nothing\n\n")
    (folder / "list.txt").write_text("a.mkv\n")
    (folder / "e" / "pictures").mkdir(parents=True)
    for name in ("d.mp4", "d-x.mp4", "pictures/1.png"):
        (folder / "e" / name).write_text("mine")
    before = sorted(folder.iterdir())
    ended = run(capsys, model, *words)
    cli.refused(ended, folder, said)
    assert sorted(folder.iterdir()) == before


def test_targets_that_are_there_are_refused_before_the_first(capsys, folder, model):
    (folder / "out").mkdir()
    (folder / "out" / "d.mp4").write_text("mine")
    ended = run(capsys, model, "a.mkv", "d.mp4", "-o", "out")
    cli.refused(ended, folder, "out/d.mp4 exists: replace with --overwrite\n")
    (folder / "out" / ".d.mp4.done").write_text("{}")
    ended = run(capsys, model, "a.mkv", "d.mp4", "-o", "out")
    cli.refused(ended, folder, "out/d.mp4 exists: replace with --overwrite, or leave out what is done (--skip-done)\n")
    (folder / "out" / ".d.mp4.done").unlink()
    assert [path.name for path in (folder / "out").iterdir()] == ["d.mp4"]
    assert run(capsys, model, "a.mkv", "d.mp4", "-o", "out", "--overwrite").code == 0


def test_the_same_command_goes_on(capsys, folder, model, monkeypatch):
    from mtu.runtime.console import runs

    real = runs.run_job

    def interrupted(job, **options):
        if job.source == "d.mp4":
            raise KeyboardInterrupt
        return real(job, **options)

    command = "a.mkv", "d.mp4", "-o", "out", "--resume"
    with monkeypatch.context() as patched:
        patched.setattr(runs, "run_job", interrupted)
        assert run(capsys, model, *command).code == 130
    ended = run(capsys, model, *command)
    assert ended.code == 0 and "1 done, 1 done before" in ended.err, ended.err
    names = sorted(path.name for path in (folder / "out").iterdir())
    assert names == [".a.mkv.done", ".d.mp4.done", "a.mkv", "d.mp4"]
