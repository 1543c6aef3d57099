"""A chat server on loopback whose behaviour a test scripts, failures included.

`with Server(behave) as server:` serves OpenAI's chat completions at `server.base_url` over real HTTP. `behave(call)`
decides each answer: one of the functions below (`said`, `status`, `breaks_off` ...), or plain text for a proper reply.

    def behave(call: Call) -> Answer | str:
        return status(429, {"Retry-After": "0.1"}) if call.number == 0 else "[happy]"
"""

import json
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from time import monotonic
from types import TracebackType
from typing import Any


@dataclass(frozen=True)
class Call:
    """One request as the server sees it.

    Attributes:
        number: 0 for the first request, 1 for the next ...
        body: The JSON that was sent.
        headers: Names in lower case.
        moment: When it came, on the monotonic clock.
    """

    number: int
    body: dict[str, Any]
    headers: dict[str, str]
    moment: float

    @property
    def text(self) -> str:
        """All text of the last turn."""
        content = self.body["messages"][-1]["content"]
        if isinstance(content, str):
            return content
        return "\n".join(part["text"] for part in content if part["type"] == "text")


@dataclass(frozen=True)
class Answer:
    """What goes over the wire: `body` after `headers`, of which only the first `sent` bytes (None: all)."""

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    sent: int | None = None
    hang_up: bool = False


Behaviour = Callable[[Call], "Answer | str"]


def said(text: Any, read: int = 10, written: int = 5, finish_reason: str = "stop", **message: Any) -> Answer:
    """A proper reply with a count of tokens."""
    choice = {"index": 0, "finish_reason": finish_reason, "message": {"role": "assistant", "content": text, **message}}
    usage = {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}
    return as_json({"id": "r", "object": "chat.completion", "model": "m", "choices": [choice], "usage": usage})


def as_json(value: Any, code: int = 200, headers: Mapping[str, str] | None = None) -> Answer:
    return Answer(code, json.dumps(value).encode(), {"Content-Type": "application/json", **(headers or {})})


def status(code: int, /, headers: Mapping[str, str] | None = None, message: str = "no", **error: Any) -> Answer:
    """An error in OpenAI's form."""
    return as_json({"error": {"message": message, **error}}, code, headers)


def rubbish(body: bytes = b"<html>Bad gateway</html>", kind: str = "text/html") -> Answer:
    """A success by its status, but no JSON."""
    return Answer(200, body, {"Content-Type": kind})


def no_choices() -> Answer:
    return as_json({"object": "chat.completion", "choices": [], "usage": {"prompt_tokens": 3}})


def breaks_off(text: str = "[happy, sad]") -> Answer:
    """The connection ends in the middle of the reply."""
    whole = said(text)
    return Answer(200, whole.body, whole.headers, sent=len(whole.body) // 2)


def hangs_up() -> Answer:
    """The connection ends before a single byte of the reply."""
    return Answer(hang_up=True)


class Server:
    """Serves on a free port of loopback while it is entered; remembers every call."""

    def __init__(self, behave: Behaviour) -> None:
        self.behave = behave
        self.calls: list[Call] = []
        self.at_once = self.most_at_once = 0
        self._lock = threading.Lock()
        owner = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                owner._handle(self)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self._http.block_on_close = False
        self.base_url = f"http://127.0.0.1:{self._http.server_address[1]}/v1"

    def __enter__(self) -> "Server":
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.shutdown()
        self._http.server_close()

    def texts(self) -> list[str]:
        """The last turn of every call, in the order of arrival."""
        return [call.text for call in self.calls]

    def _handle(self, handler: BaseHTTPRequestHandler) -> None:
        body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        headers = {name.lower(): value for name, value in handler.headers.items()}
        with self._lock:
            call = Call(len(self.calls), body, headers, monotonic())
            self.calls.append(call)
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            answer = self.behave(call)
        finally:
            with self._lock:
                self.at_once -= 1
        answer = said(answer) if isinstance(answer, str) else answer
        try:
            self._send(handler, answer)
        except OSError:  # the client has gone
            handler.close_connection = True

    @staticmethod
    def _send(handler: BaseHTTPRequestHandler, answer: Answer) -> None:
        if answer.hang_up:
            handler.close_connection = True
            handler.connection.close()
            return
        handler.send_response(answer.status)
        for name, value in answer.headers.items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(answer.body)))
        handler.end_headers()
        handler.wfile.write(answer.body[: answer.sent])
        handler.wfile.flush()
        if answer.sent is not None:
            handler.close_connection = True
