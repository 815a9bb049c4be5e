"""A small object storage on this machine that speaks what Arrow needs of S3: buckets of objects,
read in ranges, written in parts, copied, listed and deleted. Signatures are not checked.
"""

import hashlib
import io
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.etree import ElementTree
from xml.sax.saxutils import escape

TIME = "2020-01-01T00:00:00.000Z"


class ObjectStorage(ThreadingHTTPServer):
    """Objects by their paths, `/bucket/key`; the room that they may take can be set."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.objects: dict[str, bytes] = {}
        self.uploads: dict[str, dict[int, bytes]] = {}
        self.room: int | None = None
        self.written: list[str] = []
        """The paths of all objects in the order in which they were written or copied to."""
        self.most_read = 0
        """The most bytes that one request has read."""

    def url(self, folder: str) -> str:
        """The URL of a folder of a bucket, `bucket/folder`."""
        return f"s3://{folder}?endpoint_override=127.0.0.1:{self.server_port}&scheme=http"

    def put(self, path: str, content: bytes) -> bool:
        """Whether there was room for an object."""
        taken = sum(len(value) for key, value in self.objects.items() if key != path)
        if self.room is not None and taken + len(content) > self.room:
            return False
        self.objects[path] = content
        self.written.append(path)
        return True


class _Handler(BaseHTTPRequestHandler):
    server: ObjectStorage
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1

    def _parse(self) -> tuple[str, Mapping[str, str]]:
        split = urlsplit(self.path)
        query = parse_qs(split.query, keep_blank_values=True)
        return unquote(split.path), {key: values[0] for key, values in query.items()}

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            content = b"".join(_chunks(self.rfile))
        else:
            content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if "aws-chunked" in self.headers.get("Content-Encoding", ""):
            content = b"".join(_chunks(io.BytesIO(content)))
        return content

    def _answer(
        self, status: int, body: bytes | str = b"", headers: Mapping[str, str] | None = None
    ) -> None:
        if isinstance(body, str):
            body = body.encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _refuse(self, status: int, code: str) -> None:
        self._answer(status, f"<Error><Code>{code}</Code><Message>{code}</Message></Error>")

    def _store(self, path: str, content: bytes, answer: str = "") -> None:
        if self.server.put(path, content):
            self._answer(200, answer, {"ETag": _tag(content)})
        else:
            self._refuse(400, "QuotaExceeded")

    def do_HEAD(self) -> None:
        path, _ = self._parse()
        is_bucket = path.strip("/").count("/") == 0
        if not is_bucket and path not in self.server.objects:
            self._answer(404)
            return
        content = self.server.objects.get(path, b"")
        self._answer(200, b"", {**_about(content), "Content-Length": str(len(content))})

    def do_GET(self) -> None:
        path, query = self._parse()
        if "list-type" in query:
            self._answer(200, self._listed(path.strip("/"), query))
        elif path not in self.server.objects:
            self._refuse(404, "NoSuchKey")
        else:
            content, status = self.server.objects[path], 200
            asked = self.headers.get("Range")
            if asked:
                first, _, last = asked.removeprefix("bytes=").partition("-")
                content, status = content[int(first) : int(last) + 1], 206
            self.server.most_read = max(self.server.most_read, len(content))
            self._answer(status, content, _about(self.server.objects[path]))

    def _listed(self, bucket: str, query: Mapping[str, str]) -> str:
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter")
        entries: dict[str, None] = {}
        for path in sorted(self.server.objects):
            key = path.removeprefix(f"/{bucket}/")
            if not path.startswith(f"/{bucket}/") or not key.startswith(prefix):
                continue
            below = key[len(prefix) :]
            if delimiter and delimiter in below:
                common = prefix + below.split(delimiter)[0] + delimiter
                entry = f"<CommonPrefixes><Prefix>{escape(common)}</Prefix></CommonPrefixes>"
            else:
                size = len(self.server.objects[path])
                entry = (
                    f"<Contents><Key>{escape(key)}</Key><Size>{size}</Size>"
                    f"<LastModified>{TIME}</LastModified></Contents>"
                )
            entries[entry] = None
        most = int(query.get("max-keys", 1000))
        count = f"<KeyCount>{len(entries)}</KeyCount><IsTruncated>false</IsTruncated>"
        return f"<ListBucketResult>{count}{''.join(list(entries)[:most])}</ListBucketResult>"

    def do_PUT(self) -> None:
        path, query = self._parse()
        content = self._body()
        source = self.headers.get("x-amz-copy-source")
        if source is not None:
            copied = self.server.objects["/" + unquote(source).lstrip("/")]
            answer = f"<CopyObjectResult><ETag>{_tag(copied)}</ETag></CopyObjectResult>"
            self._store(path, copied, answer)
        elif "uploadId" in query:
            self.server.uploads[query["uploadId"]][int(query["partNumber"])] = content
            self._answer(200, b"", {"ETag": _tag(content)})
        else:
            self._store(path, content)

    def do_POST(self) -> None:
        path, query = self._parse()
        content = self._body()
        if "uploads" in query:
            name = f"upload-{len(self.server.uploads)}"
            self.server.uploads[name] = {}
            upload = f"<UploadId>{name}</UploadId>"
            answer = f"<InitiateMultipartUploadResult>{upload}</InitiateMultipartUploadResult>"
            self._answer(200, answer)
        elif "uploadId" in query:
            parts = self.server.uploads.pop(query["uploadId"])
            whole = b"".join(parts[number] for number in sorted(parts))
            tag = f"<ETag>{escape(_tag(whole))}</ETag>"
            result = f"<CompleteMultipartUploadResult>{tag}</CompleteMultipartUploadResult>"
            self._store(path, whole, result)
        else:  # ?delete
            for key in ElementTree.fromstring(content).iter():
                if key.tag.endswith("Key"):
                    self.server.objects.pop(f"/{path.strip('/')}/{key.text}", None)
            self._answer(200, "<DeleteResult></DeleteResult>")

    def do_DELETE(self) -> None:
        path, query = self._parse()
        if "uploadId" in query:
            self.server.uploads.pop(query["uploadId"], None)
        else:
            self.server.objects.pop(path, None)
        self._answer(204)

    def log_message(self, *given: Any) -> None:
        pass


def _chunks(stream: io.BufferedIOBase) -> Iterator[bytes]:
    """The chunks `SIZE[;signature] CRLF bytes CRLF` up to one of size 0 and the lines after it."""
    while size := int(stream.readline().split(b";")[0], 16):
        yield stream.read(size)
        stream.readline()
    while stream.readline().strip():
        continue


def _tag(content: bytes) -> str:
    return f'"{hashlib.md5(content).hexdigest()}"'


def _about(content: bytes) -> dict[str, str]:
    return {"ETag": _tag(content), "Last-Modified": "Wed, 01 Jan 2020 00:00:00 GMT"}


@contextmanager
def object_storage() -> Iterator[ObjectStorage]:
    """An object storage that ends with the block."""
    storage = ObjectStorage()
    thread = threading.Thread(target=storage.serve_forever, daemon=True)
    thread.start()
    try:
        yield storage
    finally:
        storage.shutdown()
        storage.server_close()
        thread.join()
