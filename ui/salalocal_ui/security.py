"""Who may talk to the window: this machine's browser, on pages the window itself served. Plain ASGI.

Knows HTTP headers and paths; knows no engine and no Gradio component. It stands outside the web framework, so a
refused request reaches no handler and no byte of its body is stored. Gradio alone would run a handler for any
Host (DNS rebinding) and store an upload from any Origin, withholding only the answer.

- Host must name this machine, else 403. A page that rebinds its own name to 127.0.0.1 still sends its own name.
- Origin, where a browser sends one, must be exactly the page's own address, else 403; "null" is foreign. Requests
  that change something must carry it.
- Sec-Fetch-Site keeps foreign pages from embedding or fetching anything; following a link to the page is allowed.
- Only the routes that the page uses exist. Gradio's `file=http://...` and `proxy=` would fetch from other machines
  on behalf of an image address that a model wrote; they are not reachable.
- A body may not exceed `max_body_bytes`, whether it declares its length or not: 413.
- The page may load nothing from other machines (Content-Security-Policy), so an answer or a document cannot send
  text away inside an image address.
"""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOOPBACK_NAMES = frozenset({"127.0.0.1", "localhost", "::1"})

CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'self'",
        # Gradio's page starts from inline scripts and compiles its HTML component's template.
        "script-src 'self' 'unsafe-inline' 'unsafe-eval'",
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:",
        "font-src 'self' data:",
        "connect-src 'self'",
        "worker-src 'self' blob:",
        "object-src 'none'",
        "base-uri 'self'",
        "form-action 'self'",
        "frame-ancestors 'none'",
    )
)

RESPONSE_HEADERS: Mapping[str, str] = {
    "content-security-policy": CONTENT_SECURITY_POLICY,
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}

_API = "/gradio_api"
_EXACT_PATHS = frozenset(
    {
        "/",
        "/config",
        "/theme.css",
        "/favicon.ico",
        "/manifest.json",
        "/robots.txt",
        f"{_API}/theme.css",
        f"{_API}/app_id",
        f"{_API}/cancel",
        f"{_API}/queue/join",
        f"{_API}/queue/data",
        f"{_API}/reset",
        f"{_API}/run/predict",
        f"{_API}/startup-events",
        f"{_API}/upload",
        f"{_API}/upload_progress",
    }
)
_PREFIXES = ("/assets/", "/static/", "/svelte/", f"{_API}/heartbeat/")
_SAFE_METHODS = frozenset({"GET", "HEAD"})


class LocalOnly:
    """ASGI middleware that admits only this machine's own page.

    `hosts`: names (without port) accepted in the Host header. Any port is accepted there, so that a forwarded
    port works; Origin is compared with the port. `max_body_bytes`: the most one request may carry.
    """

    def __init__(self, app: ASGIApp, *, max_body_bytes: int, hosts: frozenset[str] = LOOPBACK_NAMES) -> None:
        self._app = app
        self._hosts = hosts
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        reason = self._refusal(scope, headers)
        if scope["type"] == "websocket":
            # The page uses none; closing before accept is a 403 on the wire.
            await send({"type": "websocket.close", "code": 1008, "reason": reason or "no websocket here"})
            return
        if reason is not None:
            await PlainTextResponse(f"{reason}\n", status_code=403)(scope, receive, send)
            return
        if not _is_open_path(scope["path"]):
            await PlainTextResponse("no such page\n", status_code=404)(scope, receive, send)
            return
        declared = headers.get("content-length", "0")
        if not declared.isdecimal() or int(declared) > self._max_body_bytes:
            await self._too_large()(scope, receive, send)
            return
        await self._pass_on(scope, receive, send)

    def _refusal(self, scope: Scope, headers: Headers) -> str | None:
        """Why this request is not from the page, or None."""
        hosts = headers.getlist("host")
        if len(hosts) != 1 or _host_name(hosts[0]) not in self._hosts:
            return "403: open this page as http://127.0.0.1 with its port; other host names are refused."
        own_origin = f"http://{hosts[0]}".lower()
        origins = headers.getlist("origin")
        if any(origin.lower() != own_origin for origin in origins):
            return "403: another web page tried to use this one; that is refused."
        if scope["type"] == "websocket":
            return None
        if scope["method"] not in _SAFE_METHODS and not origins:
            return "403: only the page itself may send; this request names no origin."
        if headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
            followed_link = (
                scope["method"] == "GET"
                and headers.get("sec-fetch-mode") == "navigate"
                and headers.get("sec-fetch-dest") == "document"
            )
            if not followed_link:
                return "403: another web page tried to use this one; that is refused."
        return None

    def _too_large(self) -> PlainTextResponse:
        limit = self._max_body_bytes // 2**20
        return PlainTextResponse(
            f"413: one upload may hold {limit:,} MiB; type the file's path instead.\n", status_code=413
        )

    async def _pass_on(self, scope: Scope, receive: Receive, send: Send) -> None:
        received_bytes = 0
        over = False
        started = False

        async def counted() -> Message:
            nonlocal received_bytes, over
            message = await receive()
            if message["type"] == "http.request":
                received_bytes += len(message.get("body", b""))
                if received_bytes > self._max_body_bytes:
                    over = True
                    # To the application the sender has gone away, which ends every parser.
                    return {"type": "http.disconnect"}
            return message

        async def guarded(message: Message) -> None:
            nonlocal started
            if over and not started:
                return
            if message["type"] == "http.response.start":
                started = True
                response = MutableHeaders(scope=message)
                for name, value in RESPONSE_HEADERS.items():
                    response[name] = value
            await send(message)

        try:
            await self._app(scope, counted, guarded)
        except ClientDisconnect:
            # Raised by the form parser, which we told that the sender has gone; ours to answer then.
            if not over:
                raise
        if over and not started:
            await self._too_large()(scope, receive, send)


def _host_name(host: str) -> str:
    """The name in a Host header without its port; an empty string where it is malformed."""
    try:
        parts = urlsplit(f"//{host}")
        _ = parts.port  # raises on a port that is no number
    except ValueError:
        return ""
    if parts.username is not None or parts.path or parts.query or parts.fragment:
        return ""
    return (parts.hostname or "").lower()


def _is_open_path(path: str) -> bool:
    return path in _EXACT_PATHS or path.startswith(_PREFIXES)
