"""Who is let in: a table of browsers' requests against the real page, and what may never reach it.

The page behind the guard is the real Gradio application, so "refused" means that nothing was stored or run.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_engine import FakeEngine
from starlette.testclient import TestClient
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocketDisconnect

from salalocal_ui.app import application, temporary_uploads
from salalocal_ui.security import LocalOnly
from salalocal_ui.session import Desk

HOME = "127.0.0.1:7860"
UPLOAD = "/gradio_api/upload"


@pytest.fixture(scope="module")
def uploads() -> Iterator[Path]:
    with temporary_uploads() as folder:
        yield folder


@pytest.fixture(scope="module")
def client(uploads: Path) -> Iterator[TestClient]:
    assert stored(uploads) == []
    desk = Desk(FakeEngine(), model_name="scripted")
    with TestClient(application(desk), base_url=f"http://{HOME}") as client:
        yield client
    desk.close()


def stored(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob("*") if path.is_file()]


def send_file(client: TestClient, **headers: str) -> int:
    return client.post(UPLOAD, files={"files": ("secret.txt", b"my book")}, headers=headers).status_code


def test_the_page_itself_is_served_and_its_upload_is_stored(client, uploads):
    assert client.get("/").status_code == 200
    assert client.get("/config").status_code == 200
    assert send_file(client, origin=f"http://{HOME}") == 200
    assert stored(uploads) == ["secret.txt"]
    for path in uploads.rglob("secret.txt"):
        path.unlink()


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param({"host": "attacker.example", "origin": "http://attacker.example"}, id="rebinding"),
        pytest.param({"host": "attacker.example:7860"}, id="rebinding-with-port"),
        pytest.param({"host": "127.0.0.1.attacker.example"}, id="name-that-begins-like-us"),
        pytest.param({"host": "127.0.0.1@attacker.example"}, id="user-info"),
        pytest.param({"host": "0.0.0.0:7860", "origin": "http://0.0.0.0:7860"}, id="any-address"),
        pytest.param({"host": "192.168.1.5:7860"}, id="address-in-the-local-network"),
        pytest.param({"host": "localhost:x"}, id="malformed-port"),
        pytest.param({"host": ""}, id="empty-host"),
        pytest.param({"origin": "http://evil.example"}, id="foreign-origin"),
        pytest.param({"origin": "null"}, id="null-origin"),
        pytest.param({"origin": "http://127.0.0.1:3000"}, id="another-local-port"),
        pytest.param({"origin": "http://localhost:7860"}, id="another-name-for-us"),
        pytest.param({"origin": f"https://{HOME}"}, id="another-scheme"),
        pytest.param({"origin": f"http://{HOME}.evil.example"}, id="origin-that-begins-like-us"),
        pytest.param({}, id="post-without-origin"),
        pytest.param({"origin": f"http://{HOME}", "sec-fetch-site": "cross-site"}, id="cross-site"),
        pytest.param({"origin": f"http://{HOME}", "sec-fetch-site": "same-site"}, id="same-site-other-port"),
    ],
)
def test_a_foreign_upload_is_403_and_nothing_is_stored(client, uploads, headers):
    assert send_file(client, **headers) == 403
    assert stored(uploads) == []


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param({"host": "attacker.example"}, id="rebinding"),
        pytest.param({"origin": "http://evil.example"}, id="foreign-origin"),
        pytest.param({"origin": "null"}, id="null-origin"),
        pytest.param(
            {"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors", "sec-fetch-dest": "image"}, id="img"
        ),
        pytest.param(
            {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "iframe"}, id="iframe"
        ),
    ],
)
@pytest.mark.parametrize("path", ["/", "/config", "/gradio_api/queue/data?session_hash=x"])
def test_a_foreign_look_is_403_without_permission_to_read_it(client, path, headers):
    response = client.get(path, headers=headers)
    assert response.status_code == 403
    assert "access-control-allow-origin" not in response.headers


def test_a_form_posted_by_another_page_runs_nothing(client):
    headers = {"origin": "http://evil.example", "content-type": "text/plain"}
    assert client.post("/gradio_api/run/predict", content=b'{"fn_index": 0}', headers=headers).status_code == 403
    assert client.post("/gradio_api/queue/join", content=b"{}", headers=headers).status_code == 403


def test_following_a_link_to_the_page_is_allowed(client):
    headers = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}
    assert client.get("/", headers=headers).status_code == 200


@pytest.mark.parametrize("host", ["localhost:7860", "LOCALHOST:7860", "[::1]:7860", "127.0.0.1", "localhost:9000"])
def test_every_name_of_this_machine_is_allowed(client, host):
    assert client.get("/config", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/file=http://evil.example/?q=secret",
        "/gradio_api/file=/etc/passwd",
        "/gradio_api/proxy=http://evil.example/",
        "/gradio_api/info",
        "/gradio_api/openapi.json",
        "/gradio_api/runs",
        "/gradio_api/run-history/buckets",
        "/gradio_api/vibe-code/",
        "/monitoring",
        "/docs",
    ],
)
def test_routes_that_the_page_does_not_use_do_not_exist(client, path):
    assert client.get(path).status_code == 404


@pytest.mark.parametrize(
    "headers", [{"host": "attacker.example"}, {"origin": "http://evil.example"}, {"origin": f"http://{HOME}"}]
)
def test_a_websocket_is_refused(client, headers):
    with (
        pytest.raises(WebSocketDisconnect),
        client.websocket_connect(f"ws://{HOME}/gradio_api/queue/join", headers=headers),
    ):
        pass


def test_the_page_may_load_nothing_from_other_machines(client):
    policy = client.get("/").headers["content-security-policy"]
    directives = dict(part.split(" ", 1) for part in policy.split("; "))
    assert directives["default-src"] == "'self'"
    assert directives["img-src"] == "'self' data: blob:"
    assert directives["connect-src"] == "'self'"
    assert directives["frame-ancestors"] == "'none'"


def test_the_page_offers_no_public_function_and_no_run_history(client):
    config = client.get("/config").json()
    assert config["dependencies"]
    assert {dependency["api_visibility"] for dependency in config["dependencies"]} == {"private"}
    assert config["footer_links"] == []
    assert config["run_history"] is False
    assert config["analytics_enabled"] is False


async def _hungry(_scope: Scope, receive: Receive, send: Send) -> None:
    """An application that reads its whole body, as a parser of forms does."""
    body = b""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        body += message["body"]
        if not message.get("more_body"):
            break
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": str(len(body)).encode()})


@pytest.mark.parametrize(("size", "status"), [(100, 200), (101, 413)])
@pytest.mark.parametrize("declared", [True, False], ids=["declared", "chunked"])
def test_a_body_over_the_limit_is_413_whether_or_not_it_says_so(size, status, declared):
    client = TestClient(LocalOnly(_hungry, max_body_bytes=100), base_url=f"http://{HOME}")
    body = b"x" * size
    content = body if declared else iter([body[:60], body[60:]])
    response = client.post(UPLOAD, content=content, headers={"origin": f"http://{HOME}"})
    assert response.status_code == status


@pytest.mark.parametrize("declared", [True, False], ids=["declared", "chunked"])
def test_an_upload_over_the_limit_is_413_from_the_real_form_parser_too(uploads, declared):
    desk = Desk(FakeEngine(), model_name="scripted")
    inner = application(desk)._app
    head = b'--b\r\nContent-Disposition: form-data; name="files"; filename="big.txt"\r\n\r\n'
    parts = [head, b"x" * 600, b"x" * 600]
    headers = {"origin": f"http://{HOME}", "content-type": "multipart/form-data; boundary=b"}
    with TestClient(LocalOnly(inner, max_body_bytes=1000), base_url=f"http://{HOME}") as client:
        response = client.post(UPLOAD, content=b"".join(parts) if declared else iter(parts), headers=headers)
    desk.close()
    assert response.status_code == 413
    assert stored(uploads) == []


@pytest.mark.parametrize("length", ["-1", "1e9", "99999999999999999999", "nonsense"])
def test_a_content_length_that_is_no_sensible_number_is_413(client, length):
    response = client.post(UPLOAD, content=b"x", headers={"origin": f"http://{HOME}", "content-length": length})
    assert response.status_code == 413
