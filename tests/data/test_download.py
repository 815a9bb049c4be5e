"""Fetching named data from a server on this machine: what is right, wrong, broken, there already; and the command."""

import gzip
import hashlib
import io
import socket
import sys
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from raymtl.cli import main
from raymtl.data import download as fetching
from raymtl.data import named as named_data
from raymtl.data.download import fetch, missing
from raymtl.data.named import Archive, Named, Part, count_fault, known, size_fault
from raymtl.types import UserError

CONTENT = bytes(range(256)) * 4000  # a megabyte: several chunks


class Server(ThreadingHTTPServer):
    """Serves what `files` holds; breaks the connection after `breaks_after` bytes of a body."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.asked: list[tuple[str, str | None]] = []
        self.breaks_after: int | None = None
        self.takes_ranges = True

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/{name}"

    def archive(
        self, name: str, content: bytes, below: str = ".", md5: str | None = None
    ) -> Archive:
        self.files[name] = content
        return Archive(
            (self.url(name),), md5 or hashlib.md5(content).hexdigest(), len(content), below
        )


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        name, asked = self.path.removeprefix("/"), self.headers.get("Range")
        self.server.asked.append((name, asked))
        if name not in self.server.files:
            self.send_error(404)
            return
        body, start = self.server.files[name], 0
        if asked and self.server.takes_ranges:
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
            if start >= len(body):
                self.send_error(416)
                return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        self.wfile.write(body[start : start + (self.server.breaks_after or len(body))])
        if self.server.breaks_after:
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, *given: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    one = Server()
    thread = threading.Thread(target=one.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield one
    one.shutdown()
    one.server_close()
    thread.join()


def tar(files: dict[str, bytes]) -> bytes:
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w:gz") as archive:
        for name, content in files.items():
            about = tarfile.TarInfo(name)
            about.size = len(content)
            archive.addfile(about, io.BytesIO(content))
    return written.getvalue()


def of_size(size: int) -> partial[str | None]:
    return partial(size_fault, size)


def one_file(server: Server, **values: Any) -> Named:
    packed = server.archive("numbers.gz", gzip.compress(CONTENT, 0), "MNIST/raw", **values)
    return Named("small", "none", (Part("MNIST/raw/numbers", (packed,), of_size(len(CONTENT))),))


def fetched(named: Named, root: Path) -> list[tuple[str, int, int]]:
    said: list[tuple[str, int, int]] = []
    for part in missing(named, root):
        fetch(named, part, root, lambda *row: said.append(row))
    return said


def there(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}


def test_files_are_fetched_checked_and_unpacked(server: Server, tmp_path: Path) -> None:
    """Nothing else is left."""
    named = one_file(server)
    said = fetched(named, tmp_path / "new" / "root")
    assert there(tmp_path) == {"new/root/MNIST/raw/numbers"}
    assert (tmp_path / "new" / "root" / "MNIST/raw/numbers").read_bytes() == CONTENT
    size = len(server.files["numbers.gz"])
    assert (
        said[-2:] == [("numbers.gz", size, size), ("unpacking numbers.gz", 0, 0)] and len(said) > 3
    )
    assert missing(named, tmp_path / "new" / "root") == []


def test_right_files_are_not_fetched_again(server: Server, tmp_path: Path) -> None:
    named = one_file(server)
    other = Part("other", (server.archive("other.gz", gzip.compress(b"other")),), of_size(5))
    both = named._replace(parts=(*named.parts, other))
    fetched(named, tmp_path)
    assert fetched(both, tmp_path) and there(tmp_path) == {"MNIST/raw/numbers", "other"}
    assert fetched(both, tmp_path) == []
    assert [name for name, _ in server.asked] == ["numbers.gz", "other.gz"]


def test_two_archives_make_one_folder(server: Server, tmp_path: Path) -> None:
    first = server.archive("trainval.tar.gz", tar({"kit/a/1.jpg": b"1", "kit/b/1.xml": b"x"}))
    second = server.archive("test.tar.gz", tar({"kit/a/2.jpg": b"2", "kit/b/2.xml": b"y"}))
    counts = partial(count_fault, {"a/*.jpg": 2, "b/*.xml": 2})
    named = Named("kit", "none", (Part("kit", (first, second), counts),))
    (tmp_path / "beside").mkdir()
    fetched(named, tmp_path)
    assert there(tmp_path) == {"kit/a/1.jpg", "kit/a/2.jpg", "kit/b/1.xml", "kit/b/2.xml"}


def test_a_zip_is_unpacked_into_its_folder(server: Server, tmp_path: Path) -> None:
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w") as archive:
        archive.writestr("images/A/character01/1.png", b"")
    packed = server.archive("images.zip", written.getvalue(), "py")
    counts = partial(count_fault, {"*/character*/*.png": 1})
    fetched(Named("small", "none", (Part("py/images", (packed,), counts),)), tmp_path)
    assert there(tmp_path) == {"py/images/A/character01/1.png"}


def test_a_wrong_checksum_keeps_nothing(server: Server, tmp_path: Path) -> None:
    """It is told in one sentence."""
    named = one_file(server, md5="0" * 32)
    for _ in range(2):  # and it is not gone on with
        with pytest.raises(
            UserError, match=r"numbers.gz: expected the md5 sum 0{32}, got [0-9a-f]{32}\."
        ) as caught:
            fetched(named, tmp_path)
        assert "\n" not in str(caught.value) and there(tmp_path) == set()
    assert [asked for _, asked in server.asked] == [None, None]


@pytest.mark.parametrize("takes_ranges", [True, False])
def test_broken_connections_are_resumed(server: Server, tmp_path: Path, takes_ranges: bool) -> None:
    """Nothing stands under the final name until then."""
    named, server.takes_ranges = one_file(server), takes_ranges
    server.breaks_after = 400_000
    with pytest.raises(
        UserError,
        match=r"numbers.gz: .*connection broke after 400000 of \d+ bytes.*call this again",
    ):
        fetched(named, tmp_path)
    assert there(tmp_path) == {".small.fetching/numbers.gz.part"}
    server.breaks_after = None
    fetched(named, tmp_path)
    assert there(tmp_path) == {"MNIST/raw/numbers"}
    assert (tmp_path / "MNIST/raw/numbers").read_bytes() == CONTENT
    assert server.asked == [("numbers.gz", None), ("numbers.gz", "bytes=400000-")]


def test_downloaded_archives_are_unpacked_without_asking(server: Server, tmp_path: Path) -> None:
    named = one_file(server)
    (tmp_path / ".small.fetching" / "unpacked" / "half").mkdir(parents=True)
    (tmp_path / ".small.fetching" / "numbers.gz").write_bytes(server.files["numbers.gz"])
    fetched(named, tmp_path)
    assert server.asked == [] and there(tmp_path) == {"MNIST/raw/numbers"}


def test_a_wrong_beginning_is_fetched_anew(server: Server, tmp_path: Path) -> None:
    named = one_file(server)
    unfinished = tmp_path / ".small.fetching" / "numbers.gz.part"
    unfinished.parent.mkdir()
    unfinished.write_bytes(b"x" * (len(server.files["numbers.gz"]) + 1))
    fetched(named, tmp_path)
    assert (tmp_path / "MNIST/raw/numbers").read_bytes() == CONTENT


def test_an_unreachable_server_is_one_sentence(server: Server, tmp_path: Path) -> None:
    """So is one that lacks the file."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{free.getsockname()[1]}/numbers.gz"
    (part,) = one_file(server).parts
    for urls, says in (
        ((nobody,), r"^http://127.0.0.1:\d+/numbers.gz: .*refused\. Check the connection"),
        ((server.url("absent.gz"),), r"absent.gz: HTTP Error 404: Not Found\. Check"),
        ((nobody, server.url("absent.gz")), r"refused; http.*absent.gz: HTTP Error 404"),
    ):
        archive = part.archives[0]._replace(urls=urls)
        with pytest.raises(UserError, match=says) as caught:
            fetched(Named("small", "none", (part._replace(archives=(archive,)),)), tmp_path)
        assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())
    mirrored = part.archives[0]._replace(urls=(nobody, server.url("numbers.gz")))
    fetched(Named("small", "none", (part._replace(archives=(mirrored,)),)), tmp_path)
    assert there(tmp_path) == {"MNIST/raw/numbers"}


def test_silent_servers_are_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "TIMEOUT_S", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/numbers.gz"
        part = Part("numbers", (Archive((url,), "0" * 32, 1, "."),), of_size(1))
        with pytest.raises(UserError, match=r"numbers.gz: timed out\. Check the connection"):
            fetched(Named("small", "none", (part,)), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_wrong_copy_is_named_and_left(server: Server, tmp_path: Path) -> None:
    named = one_file(server)
    (tmp_path / "MNIST/raw").mkdir(parents=True)
    (tmp_path / "MNIST/raw/numbers").write_bytes(b"mine")
    with pytest.raises(
        UserError,
        match=r"MNIST/raw/numbers: expected 1024000 bytes, got 4\. What is there is never ov",
    ):
        fetched(named, tmp_path)
    assert (tmp_path / "MNIST/raw/numbers").read_bytes() == b"mine" and not server.asked


def test_an_unwritable_folder_is_one_sentence(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(
        UserError, match=r"file.*: cannot be written \(.+\)\. Free space or name another --root"
    ):
        fetched(one_file(server), tmp_path / "file" / "below")


def test_sums_and_addresses_are_those_of_torchvision() -> None:
    from torchvision.datasets import CIFAR100, MNIST, Omniglot
    from torchvision.datasets.voc import DATASET_YEAR_DICT

    names = known()
    assert list(names) == ["mnist", "omniglot", "cifar100", "voc2007", "nyuv2"]
    sums = {
        name: [a.md5 for part in named.parts for a in part.archives]
        for name, named in names.items()
    }
    assert sums == {
        "mnist": [md5 for _, md5 in MNIST.resources],
        "omniglot": list(Omniglot.zips_md5.values()),
        "cifar100": [CIFAR100.tgz_md5],
        "voc2007": [DATASET_YEAR_DICT["2007"]["md5"], DATASET_YEAR_DICT["2007-test"]["md5"]],
        "nyuv2": [],
    }
    urls = [a.urls for named in names.values() for part in named.parts for a in part.archives]
    assert urls[0] == tuple(f"{mirror}train-images-idx3-ubyte.gz" for mirror in MNIST.mirrors)
    assert urls[4] == (f"{Omniglot.download_url_prefix}/images_background.zip",)
    assert all(url.startswith("https://") for mirrors in urls for url in mirrors[:1])
    assert sum(a.num_bytes for p in names["voc2007"].parts for a in p.archives) == 911_052_800


def test_cifar_checksums_are_torchvisions(tmp_path: Path) -> None:
    for file in ("train", "test", "meta"):
        (tmp_path / "cifar-100-python").mkdir(exist_ok=True)
        (tmp_path / "cifar-100-python" / file).write_bytes(b"other")
    with pytest.raises(
        UserError,
        match="train with the md5 sum 16019d7e3df5f24257cddd939b257f8d, got 795f3202b17cb6bc",
    ):
        missing(known()["cifar100"], tmp_path)
    (tmp_path / "cifar-100-python" / "train").unlink()
    with pytest.raises(UserError, match="expected the file train, got none"):
        missing(known()["cifar100"], tmp_path)


def test_nyuv2s_layout_is_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is had by hand alone."""
    nyuv2 = known()["nyuv2"]
    with pytest.raises(
        UserError,
        match=r"nyuv2: expected nyuv2, got nothing.*no command fetches it: .*lorenmt/mtan",
    ):
        missing(nyuv2, tmp_path)
    for split, number in (("train", 795), ("val", 654)):
        for kind in ("image", "label", "depth", "normal"):
            folder = tmp_path / "nyuv2" / split / kind
            folder.mkdir(parents=True)
            for index in range(number):
                (folder / f"{index}.npy").touch()
    assert missing(nyuv2, tmp_path) == []
    (tmp_path / "nyuv2" / "val" / "depth" / "3.npy").unlink()
    with pytest.raises(UserError, match=r"expected 654 files val/depth/\*.npy, got 653"):
        missing(nyuv2, tmp_path)


def command(monkeypatch: pytest.MonkeyPatch, *given: str) -> int:
    monkeypatch.setattr(sys, "argv", ["raymtl", "data", "fetch", *given])
    with pytest.raises(SystemExit) as caught:
        main()
    return int(caught.value.code or 0)


@pytest.fixture
def small(server: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    named = one_file(server)
    monkeypatch.setattr(named_data, "known", lambda: {"small": named})
    return server


def test_the_command_says_what_it_fetches(
    small: Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """And from where, and then checks it."""
    monkeypatch.setenv("RAYMTL_DATA", str(tmp_path))
    assert command(monkeypatch, "small", "--yes") == 0
    said = capsys.readouterr().out
    md5 = hashlib.md5(small.files["numbers.gz"]).hexdigest()
    assert f"1.02 MB  {small.url('numbers.gz')} (md5 {md5})" in said
    assert f"to {tmp_path}: MNIST/raw/numbers" in said and "licence: none" in said
    assert there(tmp_path) == {"MNIST/raw/numbers"}
    assert command(monkeypatch, "small", "--root", str(tmp_path)) == 0
    assert "complete and right" in capsys.readouterr().out and len(small.asked) == 1


def test_a_no_fetches_nothing(
    small: Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    for answer, status, files in (("n\n", 1, set()), ("y\n", 0, {"MNIST/raw/numbers"})):
        monkeypatch.setattr(sys, "stdin", Terminal(answer))
        assert command(monkeypatch, "small", "--root", str(tmp_path)) == status
        assert "Fetch 1.0 MB?" in capsys.readouterr().out
        assert there(tmp_path) == files


def test_the_commands_mistakes_exit_with_2(
    small: Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Each is one sentence."""
    monkeypatch.delenv("RAYMTL_DATA", raising=False)
    small.breaks_after = 1000
    root = ("--root", str(tmp_path))
    for given, says in (
        (("mnits", *root), "raymtl: NAME: expected one of small, got 'mnits'."),
        (("small",), "raymtl: --root: expected the folder of the data, got none."),
        (("small", *root), "raymtl: --yes: expected it where nobody can be asked"),
        (("small", *root, "--yes"), "the connection broke after 1000 of"),
    ):
        monkeypatch.setattr(sys, "stdin", io.StringIO())
        assert command(monkeypatch, *given) == 2
        last = capsys.readouterr().err.strip().splitlines()[-1]
        assert says in last and last.startswith("raymtl: ")
    assert there(tmp_path) == {".small.fetching/numbers.gz.part"}
