"""Two replicas behind Ray Serve, one killed under load: what it was answering fails in a way that clients retry, nothing else does."""

from __future__ import annotations

import concurrent.futures
import gzip
import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from engines import PYTHON, ROOT, checkpoint, needs_vllm
from test_serving_http import free_port

openai = pytest.importorskip("openai")
pytest.importorskip("ray.serve")
pytest.importorskip("aiohttp")
pytestmark = [pytest.mark.slow, needs_vllm]


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
            stdout=file, stderr=subprocess.STDOUT, env=environment, start_new_session=True,
        )  # fmt: skip
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
            os.kill(pid, signal.SIGKILL)


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
