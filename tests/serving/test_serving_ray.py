"""Two replicas behind Ray Serve, one killed under load: what it was answering fails in a way that clients retry, nothing else does.

And a replica asks its own engine alone, whatever the path of a request names.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import errno
import gzip
import http.client
import http.server
import importlib.util
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engines import PYTHON, ROOT, checkpoint, free_port, needs_vllm

openai = pytest.importorskip("openai")
pytest.importorskip("ray.serve")
aiohttp = pytest.importorskip("aiohttp")
pytestmark = pytest.mark.slow  # all of it: only `make test-slow` installs Ray Serve


@pytest.fixture
def example() -> Any:
    """The example, as a module."""
    spec = importlib.util.spec_from_file_location("ray_serve", ROOT / "examples/serving/ray_serve.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("path", "asked"),
    [
        ("v1/models", "/v1/models"),
        ("", "/"),
        ("/other:1/x", "/other:1/x"),
        ("//other:1/x", "/other:1/x"),
        ("http://other:1/x", "/http://other:1/x"),
        ("@other/x", "/@other/x"),
        (":1/x", "/:1/x"),
        ("\\\\other/x", "/%5C%5Cother/x"),
        ("../../x", "/x"),
        ("a?b#c", "/a%3Fb%23c"),
        ("x\r\nHost: other", "/x%0D%0AHost:%20other"),
    ],
)
def test_a_path_names_no_other_server(example, path: str, asked: str):
    url = example.engine_url(5, path, [("a", "1"), ("a", "é&"), ("b", "")])
    assert (url.scheme, url.host, url.port) == ("http", "127.0.0.1", 5)
    assert url.raw_path_qs == f"{asked}?a=1&a=%C3%A9%26&b="


def test_which_failures_mean_that_the_engine_is_gone(example):
    """A replica ends for nothing else: neither for another port, nor for lack of files or time."""
    port = free_port()

    async def ask() -> Any:
        async with aiohttp.ClientSession() as session:
            with pytest.raises(aiohttp.ClientError) as caught:
                await session.get(example.engine_url(port, "x"))
        return caught.value

    error = asyncio.run(ask())
    assert example.is_gone(error, port)
    assert not example.is_gone(error, port + 1)
    no_files = aiohttp.ClientConnectorError(error._conn_key, OSError(errno.EMFILE, "too many open files"))
    assert not example.is_gone(no_files, port)
    assert not example.is_gone(aiohttp.ServerDisconnectedError(), port)


@contextlib.contextmanager
def another_server() -> Iterator[tuple[int, list[str]]]:
    """(port, what it was asked for) of a server that no replica has a business with."""
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_port, asked
        finally:
            server.shutdown()
            thread.join()


def status_of(port: int, path: str) -> int:
    """Of a GET with exactly this path, as no client of good manners would send it."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.putrequest("GET", path)
    connection.endheaders()
    try:
        return connection.getresponse().status
    finally:
        connection.close()


def children(command: str) -> list[int]:
    """Processes whose command line holds a text."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if command in path.read_bytes().replace(b"\0", b" ").decode(errors="replace"):
                found.append(int(path.parent.name))
        except OSError:
            continue
    return sorted(found)


@needs_vllm
def test_a_replica_killed_under_load(tmp_path):
    base = checkpoint(tmp_path / "base", "llama")
    port = free_port()
    flags = f"--base {base} --eager --dtype float32 --repeatable all --name tiny --max-model-len 512"
    log = tmp_path / "log.txt"
    environment = os.environ | {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}
    environment |= {"HF_HUB_OFFLINE": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    with log.open("w") as file:
        cluster = subprocess.Popen(
            [sys.executable, str(ROOT / "examples/serving/ray_serve.py"), "--flags", flags, "--python", str(PYTHON), "--port", str(port)],
            stdout=file,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
    try:
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="-", max_retries=0, timeout=60)
        for _ in range(400):
            assert cluster.poll() is None, log.read_text()[-3000:]
            try:
                client.models.list()
                break
            except openai.APIError:
                time.sleep(1)
        wanted = [_answer(client, number) for number in range(12)]
        servers = children(f"--model {base} ")
        assert len(servers) >= 2, log.read_text()[-3000:]
        with another_server() as (other, asked_of_it):
            named = [f"//127.0.0.1:{other}/x", f"/http://127.0.0.1:{other}/x", f"/%2F127.0.0.1:{other}/x", f"//127.0.0.1:{free_port()}/x"]
            assert [status_of(port, path) for path in named] == [404] * 4, "the engine's own answer: it serves no such path"
            assert asked_of_it == []
        assert children(f"--model {base} ") == servers, "and no replica ended"
        patient = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="-", max_retries=8, timeout=60)
        with concurrent.futures.ThreadPoolExecutor(8) as pool, concurrent.futures.ThreadPoolExecutor(8) as others:
            asked = [pool.submit(_answer_or_error, client, number) for number in range(240)]
            again = [others.submit(_answer, patient, number) for number in range(240)]
            while sum(one.done() for one in asked) < 40:
                time.sleep(0.1)
            assert not all(one.done() for one in again)
            os.killpg(os.getpgid(servers[0]), signal.SIGKILL)
            waiting = [one for one in (*asked, *again) if not one.done()]
            outcomes = [one.result() for one in asked]
            assert [one.result() for one in again] == wanted * 20, "a client that retries notices nothing"
        assert len(waiting) > 16, "the survivor answered more than what was in flight"
        assert {one == wanted[number % 12] for number, one in enumerate(outcomes) if isinstance(one, str)} == {True}
        failed = [one for one in outcomes if isinstance(one, Exception)]
        assert len(failed) <= 8, failed  # what was in flight
        for error in failed:
            status = getattr(error, "status_code", None)
            assert status is None or status >= 500, error  # a cut connection, or a status that OpenAI's client retries
        asking = urllib.request.Request(f"http://127.0.0.1:{port}/metrics", headers={"Accept-Encoding": "gzip"})
        with urllib.request.urlopen(asking, timeout=60) as packed:  # as Prometheus asks
            body = packed.read()
        assert b"drllm_requests_total" in (gzip.decompress(body) if packed.headers["content-encoding"] == "gzip" else body)
        for _ in range(120):  # and the lost replica is replaced
            if len(children(f"--model {base} ")) >= len(servers):
                break
            time.sleep(1)
        else:
            raise AssertionError("the lost replica was not replaced")
    finally:
        os.killpg(cluster.pid, signal.SIGINT)
        try:
            cluster.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(cluster.pid, signal.SIGKILL)
            cluster.wait()
        for pid in children(f"--model {base} "):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(os.getpgid(pid), signal.SIGKILL)  # its engine, too


def _answer(client: Any, number: int) -> str:
    route = ["111111", "110111", "112110", "211111"][number % 4]
    made = client.completions.create(
        model="tiny", prompt=f"prompt {number % 12}", max_tokens=24, temperature=0, extra_body={"vllm_xargs": {"drllm_route": route}}
    )
    assert made.model_extra["drllm"][0]["route"] == route
    return made.choices[0].text


def _answer_or_error(client: Any, number: int) -> Any:
    try:
        return _answer(client, number)
    except openai.APIError as error:
        return error
