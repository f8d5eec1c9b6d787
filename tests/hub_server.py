"""A Hugging Face Hub on this machine, for tests and notebooks: everything that pushing and pulling a model asks of it.

>>> with HubServer() as hub:
...     api = HfApi(endpoint=hub.endpoint, token=hub.token)
...     hub.fail("PUT", "/lfs/", status=503, times=2)   # the next two uploads of large files
...     push_folder("my-model", "alice/model", endpoint=hub.endpoint, token=hub.token)
...     hub.repos["alice/model"].files()
...     hub.seen("PUT", "/lfs/")

huggingface_hub reads its environment once, when it is imported: a fresh process gets ``env=hub.environment(home)``; a
test in a process that is offline takes the fixture ``hub`` of ``hub_fixtures``.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import unquote, urlsplit

import hub_routes
from hub_store import RefusedError, Repo, User


@dataclass(frozen=True)
class Request:
    """A request that arrived.

    Attributes:
        method: of HTTP.
        path: unquoted, with the query.
        headers: by lower-case name; of the authorization only that there was one.
        size: bytes of the body that arrived.
        status: what was answered; 0 where the connection was dropped.
        user: whom the token belongs to.
    """

    method: str
    path: str
    headers: dict[str, str]
    size: int
    status: int
    user: str | None


@dataclass
class Fault:
    """What goes wrong with the next requests of a kind.

    Attributes:
        method: of HTTP.
        part: of the path.
        times: how many requests; -1 for all.
        status: answered instead of acting; 0 for the ways of ``how``.
        how: ``drop``: half of the body is read, then the connection closed. ``lose``: acted on, but not answered.
            ``cut``: acted on, and half of the answer sent. ``hang``: neither read nor answered, until the end.
        headers: of the answer.
        message: of the answer.
    """

    method: str
    part: str
    times: int = 1
    status: int = 0
    how: str = "drop"
    headers: dict[str, str] = field(default_factory=dict)
    message: str = "Something went wrong on purpose"


class HubServer:
    """The Hub. Use as a context manager.

    Attributes:
        endpoint: URL for ``HF_ENDPOINT`` or ``HfApi(endpoint=...)``.
        token: of ``alice``, who may write to her own repositories and to those of ``acme``.
        read_token, narrow_token: of ``alice`` too; one says that it may only read, one may write nowhere.
        stranger_token: of ``mallory``.
        repos: by id.
        requests: all that arrived, in their order.
    """

    token = "hf_loopbackWriteTokenOfAliceNotASecret"
    read_token = "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1"
    narrow_token = "hf_loopbackNarrowTokenOfAliceNotASecret"
    stranger_token = "hf_loopbackTokenOfMalloryNotASecret123"

    def __init__(self) -> None:
        self.users = {
            self.token: User("alice", orgs=("acme",)),
            self.read_token: User("alice", "read", ("acme",)),
            self.narrow_token: User("alice", "fineGrained", ("acme",)),
            self.stranger_token: User("mallory"),
        }
        self.namespaces = {"alice", "mallory", "acme", "closed"}
        self.repos: dict[str, Repo] = {}
        self.requests: list[Request] = []
        self.faults: list[Fault] = []
        self.lock = threading.RLock()
        self.over = threading.Event()
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> HubServer:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.over.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def fail(self, method: str, part: str, **how: Any) -> Fault:
        """Let the next requests of a kind go wrong; see :class:`Fault`. ``times=-1`` until ``faults.clear()``."""
        made = Fault(method, part, **how)
        self.faults.append(made)
        return made

    def seen(self, method: str = "", part: str = "") -> list[Request]:
        """The requests with this method and this in their path, as far as answered or dropped."""
        with self.lock:
            return [r for r in self.requests if method in ("", r.method) and part in r.path]

    def environment(self, home: Path, token: str | None = None) -> dict[str, str]:
        """The environment of a fresh process that uses this Hub.

        Args:
            home: its ``HF_HOME``; fresh, so that nothing comes from a cache.
            token: alice's by default; an empty one for none.
        """
        kept = {k: v for k, v in os.environ.items() if not k.startswith("HF_") and k != "TRANSFORMERS_OFFLINE"}
        given = self.token if token is None else token
        return {
            **kept,
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(home),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            **({"HF_TOKEN": given} if given else {"HF_HUB_DISABLE_IMPLICIT_TOKEN": "1"}),
        }

    def take_fault(self, method: str, path: str) -> Fault | None:
        """The fault that this request meets, counted off."""
        with self.lock:
            for fault in self.faults:
                if fault.times != 0 and fault.method == method and fault.part in path:
                    fault.times -= 1
                    return fault
        return None


class _Handler(BaseHTTPRequestHandler):
    """One connection."""

    hub: HubServer
    protocol_version = "HTTP/1.1"
    wbufsize = 65536  # head and body of an answer in one go

    def do_GET(self) -> None:
        self._handle()

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET  # noqa: N815

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing on stderr."""

    def _handle(self) -> None:
        path = unquote(self.path)
        fault = self.hub.take_fault(self.command, path)
        how = fault.how if fault and not fault.status else ""
        length = int(self.headers.get("Content-Length") or 0)
        if how == "hang":
            self.hub.over.wait(30)
            length = 0
        elif how == "drop":
            length //= 2
        body = self._chunks() if self.headers.get("Transfer-Encoding") == "chunked" else self.rfile.read(length)
        if how in ("hang", "drop") or len(body) < length:  # or the client went away
            self._drop(len(body))
            return
        answer = self._answer(fault, body)
        if how == "lose":
            self._drop(len(body))
            return
        self._record(len(body), answer.status)
        self._send(answer, cut=how == "cut")

    def _answer(self, fault: Fault | None, body: bytes) -> hub_routes.Answer:
        try:
            if fault and fault.status:
                raise RefusedError(fault.status, fault.message)
            url = urlsplit(self.path)
            with self.hub.lock:
                asked = hub_routes.Asked(self.hub, self.command, url.path, url.query, body, self.headers, self._user())
                return hub_routes.answer(asked)
        except RefusedError as refusal:
            headers = {"X-Error-Message": refusal.message, **(fault.headers if fault else {})}
            if refusal.code:
                headers["X-Error-Code"] = refusal.code
            return hub_routes.json_answer({"error": refusal.message, **refusal.more}, refusal.status, headers)

    def _user(self) -> User | None:
        given = self.headers.get("Authorization")
        if given is None:
            return None
        user = self.hub.users.get(given.removeprefix("Bearer "))
        if user is None:
            raise RefusedError(401, "Invalid credentials in Authorization header")
        return user

    def _chunks(self) -> bytes:
        found = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            found += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return found

    def _record(self, size: int, status: int) -> None:
        headers = {k.lower(): v for k, v in self.headers.items()}
        user = self.hub.users.get(headers.get("authorization", "").removeprefix("Bearer "))
        if "authorization" in headers:
            headers["authorization"] = "given"
        made = Request(self.command, unquote(self.path), headers, size, status, user and user.name)
        with self.hub.lock:
            self.hub.requests.append(made)

    def _drop(self, size: int) -> None:
        self._record(size, 0)
        self.close_connection = True
        with contextlib.suppress(OSError):  # the client was faster
            self.connection.shutdown(socket.SHUT_RDWR)

    def _send(self, answer: hub_routes.Answer, cut: bool) -> None:
        self.send_response(answer.status)
        for name, value in {"Content-Length": str(len(answer.body)), **answer.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body[: len(answer.body) // 2] if cut else answer.body)
        self.wfile.flush()
        if cut:
            self.close_connection = True
