"""The server: what it answers, what it refuses, and that nobody can keep it busy or make it run anything."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from html.parser import HTMLParser
from typing import Any

import httpx2 as httpx
import pytest
import torch
import tyro
import uvicorn
from starlette.testclient import TestClient

from fusedlstm.charlm import serve
from fusedlstm.charlm.draw import Filters
from fusedlstm.charlm.model import CharLM
from fusedlstm.charlm.sample import write
from fusedlstm.charlm.serve import PAGE, Limits, app, likeliest
from fusedlstm.charlm.settings import CharLMError
from fusedlstm.charlm.vocab import Vocab
from fusedlstm.commands.serve import Serve, _is_local, _listener

LETTERS = Vocab("bytes", "\nabcde")
DEADLINE_SECONDS = 20.0


def new_model(vocab: Vocab = LETTERS) -> CharLM:
    made = CharLM(len(vocab), 8, 2).eval()
    with torch.no_grad():
        made.decoder.weight.normal_(std=2.0)
    return made


@pytest.fixture
def model() -> CharLM:
    return new_model()


@pytest.fixture
def client(model: CharLM) -> TestClient:
    return TestClient(app(model, LETTERS, Limits(length=300, body=2000)))


# What it answers


def test_it_streams_what_write_makes_without_the_prime(client: TestClient, model: CharLM) -> None:
    asked = {
        "prime": "bad",
        "length": 150,
        "temperature": 1.5,
        "top_k": 4,
        "top_p": 0.95,
        "min_p": 0.01,
        "seed": 3,
    }
    answer = client.post("/generate", json=asked)
    expected = "".join(write(model, LETTERS, "bad", 150, 1.5, 3, Filters(4, 0.95, 0.01)))
    assert answer.status_code == 200
    assert "bad" + answer.text == expected
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert answer.headers["cache-control"] == "no-store"


def test_all_fields_may_be_left_out(client: TestClient) -> None:
    first, second = (client.post("/generate", content="{}").text for _ in range(2))
    assert len(first) == len(second) == 300
    assert first != second


def test_utf8_comes_whole() -> None:
    vocab = Vocab("chars", "é😀")
    text = TestClient(app(new_model(vocab), vocab)).post("/generate", json={"length": 50}).text
    assert len(text) == 50
    assert set(text) <= set("é😀")


def test_it_tells_of_the_model_and_of_itself(client: TestClient, model: CharLM) -> None:
    assert client.get("/healthz").json() == {"status": "ok"}
    told = client.get("/model").json()
    assert told["parameters"] == sum(p.numel() for p in model.parameters())
    assert (told["vocabulary"], told["of"], told["max_length"]) == (6, "bytes", 300)


def test_the_likeliest_next_characters(client: TestClient, model: CharLM) -> None:
    ids = torch.from_numpy(LETTERS.encode("dab").astype("int64"))[:, None]
    with torch.no_grad():
        p = (model(ids)[0][-1, 0].double() / 0.5).softmax(0)
    found = client.post("/next", json={"prime": "dab", "temperature": 0.5}).json()["next"]
    best = p.argsort(descending=True)[:5].tolist()
    assert [character for character, _ in found] == [LETTERS.symbols[i] for i in best]
    assert [share for _, share in found] == pytest.approx(p[best].tolist(), rel=1e-5)
    sure = client.post("/next", json={"prime": "dab", "temperature": 0}).json()["next"]
    assert sure == [[LETTERS.symbols[best[0]], 1.0]]
    assert len(client.post("/next", json={"prime": "dab", "top_k": 2}).json()["next"]) == 2


def test_the_likeliest_are_told_from_the_last_characters_and_whatever_they_are(
    model: CharLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    def told(prime: str) -> list[tuple[str, float]]:
        return likeliest(model, LETTERS, prime, 1.0, Filters())

    assert told("ba\ufffdcdé") == told("bacd") != told("acd")
    assert told("") == told("\n")
    monkeypatch.setattr(serve, "CONTEXT", 3)
    assert told("bacd") == told("acd")


def test_bytes_that_are_no_character_have_a_number() -> None:
    vocab = Vocab("bytes", "a\xc3\xe2")
    assert {name for name, _ in likeliest(new_model(vocab), vocab, "a", 1.0, Filters())} == {
        "a",
        "byte 0xc3",
        "byte 0xe2",
    }


# What it refuses


@pytest.mark.parametrize(
    ("asked", "status", "message"),
    [
        ("", 400, "the body must be JSON"),
        ("{", 400, "the body must be JSON"),
        (b"\xff", 400, "the body must be JSON"),
        ("[" * 1900, 400, "the body must be JSON"),
        ("[1]", 400, "the body must be a JSON object, got [1]"),
        (
            {"color": 1},
            422,
            "'color' is none of the fields prime, temperature, top_k, top_p, min_p, length, seed",
        ),
        ({"prime": 7}, 422, "prime must be a text in Unicode, got 7"),
        ('{"prime": "\\ud800"}', 422, "prime must be a text in Unicode, got"),
        ({"prime": "zebra"}, 422, "prime: the text must use characters of the training text"),
        ({"length": 0}, 422, "length must be a whole number, 1 to 300, got 0"),
        ({"length": 301}, 422, "length must be a whole number, 1 to 300, got 301"),
        ({"length": 1.5}, 422, "length must be a whole number, 1 to 300, got 1.5"),
        ({"length": True}, 422, "length must be a whole number, 1 to 300, got True"),
        ({"temperature": -1}, 422, "temperature must be a finite number, at least 0, got -1"),
        ({"temperature": "hot"}, 422, "temperature must be a finite number, at least 0, got 'hot'"),
        ({"temperature": True}, 422, "temperature must be a finite number, at least 0, got True"),
        ({"temperature": None}, 422, "temperature must be a finite number, at least 0, got None"),
        ('{"temperature": NaN}', 422, "temperature must be a finite number, at least 0, got nan"),
        ('{"temperature": 1e999}', 422, "temperature must be a finite number, at least 0, got inf"),
        ({"top_k": 1.5}, 422, "top_k must be a whole number, at least 0 and below 2**31, got 1.5"),
        ({"top_k": 10**30}, 422, "top_k must be a whole number, at least 0 and below 2**31, got 1000000"),
        ({"top_p": 0}, 422, "top_p must be above 0 and at most 1, got 0"),
        ({"min_p": [1]}, 422, "min_p must be at least 0 and at most 1, got [1]"),
        ({"seed": "one"}, 422, "seed must be a whole number of 64 bits, or null, got 'one'"),
        ({"seed": 2**63}, 422, "seed must be a whole number of 64 bits, or null, got 9223372036854775808"),
        ({"prime": "a" * 3000}, 413, "the body must have at most 2000 bytes"),
    ],
)
def test_what_is_wrong_is_named_in_one_line(
    client: TestClient, asked: Any, status: int, message: str
) -> None:
    content = asked if isinstance(asked, (str, bytes)) else json.dumps(asked)
    answer = client.post("/generate", content=content)
    assert (answer.status_code, list(answer.json())) == (status, ["error"])
    assert answer.json()["error"].startswith(message)
    assert "\n" not in answer.json()["error"]
    assert len(answer.text) < 300


def test_an_error_shows_little_of_what_was_sent(client: TestClient) -> None:
    for asked in ({"x" * 1500: 1}, {"length": "y" * 1500}):
        assert len(client.post("/generate", json=asked).text) < 200


def test_what_is_not_there_is_json_too(client: TestClient) -> None:
    assert (client.get("/nowhere").status_code, client.get("/nowhere").json()) == (
        404,
        {"error": "Not Found"},
    )
    assert (client.get("/generate").status_code, client.post("/").status_code) == (405, 405)
    assert client.get("/generate").json() == {"error": "Method Not Allowed"}
    assert client.post("/next", json={"length": 3}).status_code == 422


def test_the_length_by_default_is_within_the_limit(model: CharLM) -> None:
    assert len(TestClient(app(model, LETTERS)).post("/generate", json={}).text) == 1000
    assert len(TestClient(app(model, LETTERS, Limits(length=7))).post("/generate", json={}).text) == 7


# The page


class Parts(HTMLParser):
    """The contents of a page's elements of each kind, and all their attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.contents: dict[str, list[str]] = {"script": [], "style": []}
        self.attributes: list[tuple[str, str | None]] = []
        self.labelled, self.fields = set[str | None](), set[str | None]()
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.attributes += attributes
        named = dict(attributes)
        if tag == "label":
            self.labelled.add(named["for"])
        if tag in ("input", "textarea"):
            self.fields.add(named["id"])

    def handle_data(self, text: str) -> None:
        if self.lasttag in self.contents and text.strip() and not self.contents[self.lasttag]:
            self.contents[self.lasttag].append(text)


def test_the_page_is_whole_in_itself_and_runs_only_its_own_script(client: TestClient) -> None:
    answer = client.get("/")
    assert answer.text == PAGE
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    parts = Parts(PAGE)
    policy = dict(rule.split(" ", 1) for rule in answer.headers["content-security-policy"].split("; "))
    for kind in ("script", "style"):
        (content,) = parts.contents[kind]
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert policy[f"{kind}-src"] == f"'sha256-{digest}'"
    assert (policy["default-src"], policy["connect-src"]) == ("'none'", "'self'")
    assert "http" not in PAGE.replace("http-equiv", "")
    names = {name for name, _ in parts.attributes}
    assert not {name for name in names if name.startswith("on")} | names & {"src", "style", "action"}


def test_what_the_model_writes_is_never_html() -> None:
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacent|document\.write|eval|DOMParser|Function\(", PAGE
    )
    assert "textContent" in PAGE


def test_every_field_has_a_label() -> None:
    parts = Parts(PAGE)
    assert parts.fields == parts.labelled == {"prime", "temperature", "top_p", "length", "seed"}


@pytest.mark.parametrize("path", ["/", "/healthz", "/nowhere", "/generate"])
def test_every_answer_is_safe_to_show(client: TestClient, path: str) -> None:
    headers = client.get(path).headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["cross-origin-resource-policy"] == "same-origin"
    assert "frame-ancestors 'none'" in headers["content-security-policy"]


# A real server


@contextmanager
def serving(model: CharLM, limits: Limits) -> Iterator[str]:
    """The address of a server in a thread."""
    with _listener("127.0.0.1", 0) as listener:
        server = uvicorn.Server(uvicorn.Config(app(model, LETTERS, limits), log_level="error"))
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(DEADLINE_SECONDS)
            assert not thread.is_alive()


class Tap:
    """Stands for write: lets through as many pieces as it is told to, and counts those that were made."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ready = threading.Semaphore(0)
        self.made = 0
        monkeypatch.setattr(serve, "write", lambda *args: self.pieces())

    def pieces(self) -> Iterator[str]:
        yield "the prime"
        for _ in range(100):
            assert self.ready.acquire(timeout=DEADLINE_SECONDS)
            self.made += 1
            yield "ab"


def until(happens: Any) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not happens():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_text_arrives_while_it_is_made_and_others_are_answered(
    model: CharLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    tap = Tap(monkeypatch)
    with (
        serving(model, Limits(streams=2)) as address,
        httpx.Client(base_url=address, timeout=DEADLINE_SECONDS) as client,
        client.stream("POST", "/generate", json={}) as first,
        client.stream("POST", "/generate", json={}) as second,
    ):
        assert first.headers["transfer-encoding"] == "chunked"
        texts = first.iter_text()
        tap.ready.release()
        tap.ready.release()  # one for either
        until(lambda: tap.made == 2)
        assert client.get("/healthz").json() == {"status": "ok"}
        assert client.post("/next", json={"prime": "abc"}).status_code == 200
        refused = client.post("/generate", json={})
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        assert "2 texts are in the making" in refused.json()["error"]
        assert next(texts) == "ab"  # 198 more are yet to be made
        tap.ready.release(198)
        assert "".join(texts) == "ab" * 99
        assert second.read() == b"ab" * 100
        tap.ready.release(100)
        assert client.post("/generate", json={}).text == "ab" * 100


def test_who_is_gone_is_written_for_no_more(model: CharLM) -> None:
    endless = 10**9

    def served() -> bool:
        with (
            httpx.Client(base_url=address, timeout=DEADLINE_SECONDS) as client,
            client.stream("POST", "/generate", json={"length": endless}) as answer,
        ):
            return answer.status_code == 200 and bool(next(answer.iter_text()))

    with serving(model, Limits(length=endless, streams=1)) as address:
        assert served()
        until(served)  # while the first text were in the making, there would be no room


def test_a_body_is_not_read_beyond_its_limit(model: CharLM) -> None:
    with serving(model, Limits()) as address:
        host, port = address.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=DEADLINE_SECONDS) as peer:
            peer.sendall(b"POST /generate HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
            part = b"8000\r\n" + b" " * 0x8000 + b"\r\n"
            peer.sendall(part * 3)  # and no end
            assert peer.recv(1000).startswith(b"HTTP/1.1 413 ")


def test_several_texts_at_a_time_are_what_each_would_be_alone(model: CharLM) -> None:
    found: dict[int, str] = {}

    def ask(seed: int) -> None:
        asked = {"length": 400, "seed": seed}
        found[seed] = httpx.post(f"{address}/generate", json=asked, timeout=DEADLINE_SECONDS).text

    with serving(model, Limits()) as address:
        threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for seed in range(4):
        assert found[seed] == "".join(write(model, LETTERS, "", 400, 0.8, seed))


# The command

PROGRAM = """
import sys, torch, tyro
from fusedlstm.charlm.model import CharLM
from fusedlstm.charlm.vocab import Vocab
from fusedlstm.commands import serve
serve.load_model = lambda run, which: (CharLM(6, 8, 2).eval(), Vocab("bytes", "\\nabcde"))
tyro.cli(serve.Serve, args=sys.argv[1:])()
"""


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")
def test_the_command_serves_until_ctrl_c_also_in_the_middle_of_a_text() -> None:
    args = [sys.executable, "-c", PROGRAM, "RUN", "--port", "0", "--max-length", "100000000"]
    with subprocess.Popen(args, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        line = process.stdout.readline()
        found = re.fullmatch(r"serving RUN at (http://127\.0\.0\.1:\d+) \(Ctrl-C ends\)\n", line)
        assert found, line + process.stderr.read()
        with httpx.Client(base_url=found[1], timeout=DEADLINE_SECONDS) as client:
            assert client.get("/model").json()["max_length"] == 100000000
            with client.stream("POST", "/generate", json={"length": 100000000}) as answer:
                texts = answer.iter_text()
                assert next(texts)
                process.send_signal(signal.SIGINT)
                with pytest.raises(httpx.RemoteProtocolError):
                    list(texts)
        error = process.communicate(timeout=DEADLINE_SECONDS)[1]
    assert process.returncode == 0
    assert "Traceback" not in error


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--port", "65536"], "--port must be a whole number from 0 (any free one) to 65535, got 65536"),
        (["--max-length", "0"], "--max-length must be a whole number, at least 1, got 0"),
        (["--max-streams", "0"], "--max-streams must be a whole number, at least 1, got 0"),
    ],
)
def test_flags_out_of_range_are_named(words: list[str], message: str) -> None:
    with pytest.raises(CharLMError) as caught:
        tyro.cli(Serve, args=["RUN", *words])
    assert str(caught.value) == message


def test_an_address_that_is_taken_is_said() -> None:
    with _listener("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(
            CharLMError, match=f"cannot listen at --host 127.0.0.1 --port {port}: Address already"
        ):
            _listener("127.0.0.1", port)


def test_only_this_machine_is_told_apart() -> None:
    assert [_is_local(host) for host in ("127.0.0.1", "127.1.2.3", "::1", "localhost")] == [True] * 4
    assert [_is_local(host) for host in ("0.0.0.0", "::", "192.0.2.7", "example.org", "")] == [False] * 5


@pytest.mark.parametrize("missing", ["starlette.applications", "uvicorn"])
def test_without_the_extra_the_error_says_what_to_install(
    missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    monkeypatch.delitem(sys.modules, "fusedlstm.charlm.serve")
    with pytest.raises(
        CharLMError, match=rf"serving needs {missing.partition('.')[0]}: pip install fusedlstm\[serve\]"
    ):
        Serve("RUN")()
