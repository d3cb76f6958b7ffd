"""Main process of the reward server: LitServe with our admission, plain errors, and restart of dead workers."""

import contextlib
import logging
import multiprocessing
import os
import signal
import socket
import time
from collections import deque
from collections.abc import Callable
from queue import Empty
from typing import Any, Final, Literal, final

import psutil
import torch
from fastapi import HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from litserve import LitAPI, LitServer
from litserve.utils import LitAPIStatus, WorkerSetupStatus

from customized_grpo import __version__, registry
from customized_grpo.identity.hashes import FileHashes
from customized_grpo.recipe.server import ServerConfig
from customized_grpo.rewards.wire import fingerprint, read_token
from customized_grpo.serve.admission import Admission
from customized_grpo.serve.api import IDLE_S, RewardAPI, refusal

MAX_DEATHS: Final = 5
"""Limit on worker deaths within ``PERIOD_S``; beyond it, a restart won't help."""
PERIOD_S: Final = 600.0
_LOOPBACK: Final = "127.0.0.1"


class ServerError(RuntimeError):
    """The server can't go on; its supervisor may restart it."""


def serve(config: ServerConfig, say: Callable[[str], None]) -> None:
    """Serve until a signal comes.

    Raises:
        ValueError: other machines would have access without a token, the port is taken, or there is no such GPU.
        ServerError: a reward can't be loaded.
    """
    token = read_token(config.token_env)
    if config.host != _LOOPBACK and token is None:
        raise ValueError(
            f"host: {config.host} lets other machines in, and that takes a token: set the environment variable "
            f"{config.token_env} here and for the clients, to what 'openssl rand -hex 32' prints, say"
        )
    _check_port(config)
    server = RewardServer(config, token, say)

    def stop(signum: int, frame: object) -> None:
        logging.getLogger("litserve").setLevel(logging.CRITICAL + 1)  # its messages at shutdown are not errors
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    try:
        server.run(
            host=config.host,
            port=config.port,
            num_api_servers=1,
            api_server_worker_type="thread",  # only the main process can answer a dead worker's requests
            generate_client_file=False,
            log_level="warning",
        )
    except KeyboardInterrupt:  # while rewards are being loaded; later LitServe catches it
        pass
    except (OSError, EOFError) as error:  # a LitServe process is gone, and its HTTP thread would live on
        say(f"error: the server broke down ({type(error).__name__}: {error}); start it again")
        _end_children()
        os._exit(1)
    finally:
        _end_children()
    # LitServe leaves its HTTP server's thread running, and with it the process.
    say("stopped")
    os._exit(0)


@final
class RewardServer(LitServer):
    """LitServe server with one API per reward; overridden methods are public in 0.2.19."""

    def __init__(self, config: ServerConfig, token: str | None, say: Callable[[str], None]) -> None:
        accelerator, gpus = _devices(config)
        max_bytes = config.limits.body_mb * 1_000_000
        admission = {"token": token, "max_bytes": max_bytes, "is_ready": self._is_ready}
        hashes = FileHashes()
        self._about = _about(config, hashes)
        super().__init__(
            [RewardAPI(name, spec, config, hashes) for name, spec in config.rewards.items()],
            accelerator=accelerator,
            devices=gpus,
            timeout=config.limits.queue_s,
            max_payload_size=max_bytes,  # limits what arrives; the admission checks what is announced
            middlewares=[(Admission, admission)],
            model_metadata={"version": __version__, "rewards": self._about},
            disable_openapi_url=True,
            restart_workers=True,
        )
        self.app.add_exception_handler(RequestValidationError, _malformed)
        self.response_buffer = _Snapshots()
        self.monitor_internal = 1  # seconds between checks of the workers
        self._config, self._say = config, say
        self._deaths: deque[float] = deque(maxlen=MAX_DEATHS)

    def verify_worker_status(self) -> None:
        """Wait until every worker is ready; LitServe's own method waits for only one.

        Raises:
            ServerError: a reward can't be loaded; the worker has logged why.
        """
        while not all(status == WorkerSetupStatus.READY for status in self.workers_setup_status.values()):
            if any(not worker.is_alive() for worker in self.inference_workers):
                raise ServerError("a reward can't be loaded (see above), so nothing is served")
            time.sleep(0.05)
        for name, about in self._about.items():
            self._say(f"{name}: {about['type']}, fingerprint {about['fingerprint']}")
        self._say(f"serving at http://{self._config.host}:{self._config.port}")

    def launch_single_inference_worker(self, lit_api: LitAPI, worker_id: int) -> Any:
        """Start a worker in place of one that died; called by LitServe's monitor."""
        endpoint = lit_api.api_path.split("/")[-1]
        status = self.workers_setup_status[f"{endpoint}_{worker_id}"]
        self._deaths.append(time.monotonic())
        often = len(self._deaths) == MAX_DEATHS and self._deaths[-1] - self._deaths[0] < PERIOD_S
        if often or status == WorkerSetupStatus.ERROR:
            why = f"{MAX_DEATHS} workers died in {PERIOD_S:g} s" if often else "it can't be loaded any more"
            self._say(f"error: {endpoint}: {why}; the server ends, so that its supervisor sees it")
            _end_children()
            os._exit(1)
        self._say(f"{endpoint}: a worker died; starting another")
        started = super().launch_single_inference_worker(lit_api, worker_id)
        self._send_back()
        return started

    def _send_back(self) -> None:
        """Answer all waiting requests with 503, so that their clients retry.

        The dead worker's requests are unknown (LitServe knows only some of them), and the queue may hand it one more
        until its last ``get`` is over.
        """
        time.sleep(IDLE_S)
        for queue in self.litapi_request_queues.values():
            with contextlib.suppress(Empty):
                while True:
                    queue.get_nowait()
        for _, item in self.response_buffer.items():
            item.response = (HTTPException(503, "a worker died; ask again"), LitAPIStatus.ERROR)
            item.event.set()

    def _is_ready(self, path: str) -> bool:
        """True if the reward of a path has a worker; always true for other paths."""
        prefix = path.split("/")[-1] + "_"
        statuses = [status for name, status in self.workers_setup_status.items() if name.startswith(prefix)]
        return not statuses or WorkerSetupStatus.READY in statuses


@final
class _Snapshots(dict[str, Any]):
    """Requests in flight, safe to iterate in LitServe's monitor while another thread adds and removes."""

    def items(self) -> Any:
        return self.copy().items()


def _about(config: ServerConfig, hashes: FileHashes) -> dict[str, dict[str, Any]]:
    return {
        name: {
            "type": registry.type_of(spec),
            "fingerprint": fingerprint(spec, hashes),
            "options": spec.model_dump(mode="json", exclude={"type", "axis", "weight"}),
        }
        for name, spec in config.rewards.items()
    }


def _devices(config: ServerConfig) -> tuple[Literal["cpu", "cuda"], Any]:
    """LitServe's accelerator and devices."""
    count = 0 if config.device == "cpu" else torch.cuda.device_count()
    if config.device == "cuda" or (config.device == "auto" and count):
        if absent := [gpu for gpu in config.gpus if gpu >= count]:
            raise ValueError(
                f"gpus: given {absent[0]}, but torch finds {count} GPUs, numbered from 0; use device: cpu, or others"
            )
        return "cuda", list(config.gpus)
    return "cpu", 1


async def _malformed(request: Request, error: Exception) -> Response:
    """Answer to a malformed request; FastAPI's own would send the whole request back."""
    assert isinstance(error, RequestValidationError)
    problems = [f"{_place(one['loc'])}: {one['msg']}" for one in error.errors()]
    return refusal(422, "; ".join(problems[:5]))


def _place(location: tuple[int | str, ...]) -> str:
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location[1:])
    return text.removeprefix(".") or "body"


def _check_port(config: ServerConfig) -> None:
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((config.host, config.port))
        except OSError as error:
            raise ValueError(
                f"port: {config.port} can't be used ({error.strerror}); stop what listens there, or give another one"
            ) from error


def _end_children() -> None:
    for process in psutil.Process().children(recursive=True):
        process.kill()
    multiprocessing.active_children()  # reaps dead processes
