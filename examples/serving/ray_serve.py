"""Replicas of a routed server behind Ray Serve: each replica owns a `drllm serve` process and passes requests on.

    pip install '.[ray-serve]'                                                  # in a clone of drllm
    serve run examples.serving.ray_serve:app policy=runs/x/codebook replicas=2          # or: python examples/serving/ray_serve.py ...

A replica whose engine has died ends at once: what it was answering fails (a 5xx, which OpenAI's clients retry, or a cut stream), Ray sends
everything else to the other replicas and starts a new one.
"""

# No `from __future__ import annotations`: FastAPI cannot look names up in a class that Ray has pickled.
import argparse
import asyncio
import contextlib
import ctypes
import errno
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Sequence
from typing import Any

import aiohttp
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from ray import serve
from yarl import URL

api = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
HOST = "127.0.0.1"
HOP = {"connection", "keep-alive", "transfer-encoding", "te", "trailer", "upgrade", "host", "content-length"}  # of one connection only
START_S = 600


def engine_url(port: int, path: str, query: Sequence[tuple[str, str]] = ()) -> URL:
    """What a request asks of the engine on this port, and never of anyone else: a path such as `//host/x` names no host here."""
    return URL.build(scheme="http", host=HOST, port=port, path=f"/{path.lstrip('/')}").with_query(list(query))


def is_gone(error: aiohttp.ClientError, port: int) -> bool:
    """Whether a failed request means that the engine on this port listens no more; other failures are this replica's own, and pass."""
    refused = isinstance(error, aiohttp.ClientConnectorError) and error.os_error.errno == errno.ECONNREFUSED
    return refused and (error.host, error.port) == (HOST, port)


def _die_with_the_replica() -> None:
    """Linux ends the server when the process that started it is gone, however that ended."""
    PR_SET_PDEATHSIG = 1
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


@serve.deployment(health_check_period_s=2, health_check_timeout_s=20, graceful_shutdown_timeout_s=20, max_ongoing_requests=256)
@serve.ingress(api)
class RoutedServer:
    """One replica.

    Args:
        policy: what `drllm serve` is given: a saved policy, or "" with `--base` among the flags.
        flags: more of its flags, as one text.
        python: of the serving environment (docs/serve.md); default: this one.
    """

    def __init__(self, policy: str, flags: str = "", python: str = ""):
        with socket.socket() as probe:
            probe.bind((HOST, 0))
            self.port = probe.getsockname()[1]
        command = [
            python or sys.executable,
            "-m",
            "drllm",
            "serve",
            *([policy] if policy else []),
            "--port",
            str(self.port),
            *shlex.split(flags),
        ]
        self.process = subprocess.Popen(command, start_new_session=True, preexec_fn=_die_with_the_replica)
        self.session: aiohttp.ClientSession | None = None
        threading.Thread(target=self._end_with_the_engine, daemon=True).start()

    def _end_with_the_engine(self) -> None:
        self.process.wait()
        # A replica that stayed would refuse requests faster than the others answer them, and so draw them all.
        os._exit(1)

    async def _client(self) -> aiohttp.ClientSession:
        if self.session is None:
            # No limit of connections: a health check must not wait behind long answers.
            connector, patience = aiohttp.TCPConnector(limit=0), aiohttp.ClientTimeout(total=None)
            # What is packed, as /metrics is for those who ask, goes on packed, as its headers say.
            self.session = aiohttp.ClientSession(connector=connector, timeout=patience, auto_decompress=False)
        return self.session

    async def reconfigure(self, config: Any) -> None:
        """Called before the first request: wait until the engine answers."""
        client = await self._client()
        for _ in range(START_S):
            with contextlib.suppress(aiohttp.ClientError):
                async with client.get(engine_url(self.port, "health")) as answer:
                    if answer.status == 200:
                        return
            await asyncio.sleep(1)
        raise RuntimeError(f"drllm serve did not answer within {START_S} s")

    async def check_health(self) -> None:
        """Raises where the engine is not well, so that Ray replaces this replica."""
        async with (await self._client()).get(engine_url(self.port, "health")) as answer:
            if answer.status != 200:
                raise RuntimeError(f"the engine is not well: {answer.status}")

    @api.api_route("/{path:path}", methods=["GET", "POST"])
    async def forward(self, path: str, request: Request) -> Response:
        """Pass a request on, and its answer back as it comes."""
        client = await self._client()
        headers = {name: value for name, value in request.headers.items() if name.lower() not in HOP}
        url = engine_url(self.port, path, request.query_params.multi_items())
        try:
            answer = await client.request(request.method, url, data=await request.body(), headers=headers)
        except aiohttp.ClientError as error:
            if is_gone(error, self.port):
                # End now, not when the thread that waits for the engine gets its turn on a busy machine.
                os._exit(1)
            return JSONResponse({"error": {"message": "this replica could not ask its engine: try again"}}, 503, {"Retry-After": "1"})

        async def body() -> AsyncIterator[bytes]:
            try:
                async for part in answer.content.iter_any():
                    yield part
            finally:
                answer.close()  # a client that left: the engine is told by the closed connection

        kept = {name: value for name, value in answer.headers.items() if name.lower() not in HOP}
        return StreamingResponse(body(), answer.status, kept)

    def __del__(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError, AttributeError):  # the last: it never started
            os.killpg(self.process.pid, signal.SIGTERM)


def app(arguments: dict[str, str]) -> Any:
    """For `serve run`: `policy`, `flags`, `python` and `replicas`, as key=value."""
    replicas = int(arguments.get("replicas", "1"))
    deployment: Any = RoutedServer
    return deployment.options(num_replicas=replicas, user_config={}).bind(
        arguments.get("policy", ""), arguments.get("flags", ""), arguments.get("python", "")
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--policy", default="")
    parser.add_argument("--flags", default="", help="more flags of drllm serve, as one text")
    parser.add_argument("--python", default="", help="Python of the serving environment")
    parser.add_argument("--replicas", default="2")
    parser.add_argument("--port", type=int, default=8000)
    given = parser.parse_args()
    serve.start(http_options={"host": "127.0.0.1", "port": given.port})
    serve.run(app({"policy": given.policy, "flags": given.flags, "python": given.python, "replicas": given.replicas}))
    signal.pause()


if __name__ == "__main__":
    main()
