"""Worker of the reward server: decodes requests, scores them by training's scorer, and answers.

A request is a group, scored in its own batch unless it allows sharing (``shared``); then it joins waiting requests for
the same example. Dimensions: G images of a request, H x W pixels.
"""

import json
import logging
import math
import os
import sys
import threading
import time
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, final

import numpy as np
import psutil
import torch
from fastapi.responses import JSONResponse, Response
from jaxtyping import UInt8
from litserve import LitAPI
from litserve.loops.base import collate_requests
from litserve.loops.simple_loops import BatchedLoop
from litserve.transport.base import MessageTransport
from PIL import Image
from pydantic import BaseModel
from torch import Tensor
from transformers.utils.logging import disable_progress_bar

from customized_grpo import registry
from customized_grpo.data.images import ImageError, read_image
from customized_grpo.devices import open_device
from customized_grpo.identity.hashes import FileHashes
from customized_grpo.recipe.server import ServerConfig
from customized_grpo.rewards.base import RewardFailure
from customized_grpo.rewards.wire import ExampleMessage, ScoreRequest, ScoreResponse, fingerprint
from customized_grpo.scoring.scorer import Scorer
from customized_grpo.types import Example

log: Final = logging.getLogger(__name__)
IDLE_S: Final = 1.0
"""Seconds that a worker waits for a request before it returns to LitServe's loop."""


@final
@dataclass(slots=True)
class Job:
    """A request in progress: its decoded images, and its result or refusal."""

    request: ScoreRequest
    example: Example | None = None
    images: UInt8[Tensor, "g h w 3"] | None = None
    answer: Response = field(default_factory=lambda: refusal(500, "not answered"))


@final
class RewardAPI(LitAPI):
    """One reward at ``/rewards/<name>``."""

    def __init__(self, name: str, spec: BaseModel, config: ServerConfig, hashes: FileHashes) -> None:
        super().__init__(
            max_batch_size=config.batching.max_requests,
            batch_timeout=config.batching.wait_ms / 1000,
            api_path=f"/rewards/{name}",
            loop=WaitingLoop(),  # type: ignore[no-untyped-call]
        )
        self.name = name
        self._spec_of_reward = spec
        self._fingerprint = fingerprint(spec, hashes)
        self._max_pixels = config.limits.pixels
        self._threads = config.threads

    def setup(self, device: str) -> None:
        """Load the reward, in the worker's process."""
        logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(message)s")
        _die_with_the_server()
        if self._threads:
            torch.set_num_threads(self._threads)
        if not sys.stderr.isatty():
            disable_progress_bar()
        spec = self._spec_of_reward
        try:
            reward = registry.resolve("rewards", registry.type_of(spec))(spec, device=open_device(device))
            self._scorer = Scorer({self.name: reward}, max_failed_share=1.0)
        except (ValueError, RewardFailure) as error:
            log.error("error: rewards.%s: %s", self.name, error)
            logging.getLogger("litserve").setLevel(logging.CRITICAL)  # its traceback adds nothing
            raise

    # LitServe reads the types of requests and responses from these signatures.
    def decode_request(self, request: ScoreRequest) -> Job:  # type: ignore[override]
        """Defer decoding to ``predict``: an error here would fail the whole batch."""
        return Job(request)

    def batch(self, inputs: list[Job]) -> list[Job]:
        """Keep requests separate until they are decoded."""
        return inputs

    def predict(self, jobs: list[Job]) -> list[Response]:  # type: ignore[override]
        """Answer each request; a bad one doesn't affect the others."""
        groups: dict[Hashable, list[Job]] = {}
        for at, job in enumerate(jobs):
            try:
                self._decode(job)
            except ImageError as error:
                job.answer = refusal(422, str(error))
                continue
            assert job.images is not None
            key = (_identity(job.request.example), job.images.shape[1:]) if job.request.shared else at
            groups.setdefault(key, []).append(job)
        for group in groups.values():
            self._score(group)
        return [job.answer for job in jobs]

    def encode_response(self, output: Response) -> Response:  # type: ignore[override]
        """Pass on the response, which ``predict`` has made."""
        return output

    def _decode(self, job: Job) -> None:
        """Decode a request, with one pixel budget for all its images to bound memory."""
        left = self._max_pixels

        def read(content: bytes, name: str) -> Image.Image:
            nonlocal left
            image = read_image(content, name, left)
            left -= image.width * image.height
            return image

        message = job.request.example
        images = [read(content, f"images[{at}]") for at, content in enumerate(job.request.images)]
        for at, image in enumerate(images):
            if image.size != images[0].size:
                reason = f"is {image.size}, and the first image is {images[0].size}; a group has one size"
                raise ImageError(f"images[{at}]", "damaged", reason)
        job.images = torch.from_numpy(np.stack([np.asarray(image) for image in images]))
        job.example = Example(
            key=message.key,
            prompt=message.prompt,
            subject=message.subject,
            references=tuple(read(one, f"references[{at}]") for at, one in enumerate(message.references)),
            masks=tuple(
                None if one is None else read(one, f"masks[{at}]").convert("L") for at, one in enumerate(message.masks)
            ),
            extra=message.extra,
        )

    def _score(self, jobs: Sequence[Job]) -> None:
        """Score jobs of one example and size in one call."""
        start = time.perf_counter()
        images = torch.cat([job.images for job in jobs if job.images is not None])
        example = jobs[0].example
        assert example is not None
        try:
            pending = self._scorer.submit(example, images)
            scores = pending.result()[:, 0].tolist()
        except RewardFailure as error:
            # A reward's complaint about its input is a client error; anything else is a server error.
            status = 422 if isinstance(error.__cause__, ValueError) else 500
            log.warning("%s: %d: %s", self.name, status, error)
            for job in jobs:
                job.answer = refusal(status, str(error))
            return
        log.info(
            "%s: %d images, %d requests, %.3f s",
            self.name,
            len(images),
            len(jobs),
            time.perf_counter() - start,
        )
        if why := [reason for reason in pending.reasons[self.name] if reason]:
            log.warning(
                "%s: %d of %d images unscorable, last: %s (example %r)",
                self.name,
                len(why),
                len(images),
                why[-1],
                example.key,
            )
        at = 0
        for job in jobs:
            mine = scores[at : at + len(job.request.images)]
            at += len(mine)
            body = ScoreResponse(
                scores=tuple(None if math.isnan(score) else score for score in mine),
                fingerprint=self._fingerprint,
                batch=len(images),
            )
            job.answer = JSONResponse(body.model_dump())


@final
class WaitingLoop(BatchedLoop):
    """Batching loop that sleeps until a request comes, and collects others from then on.

    LitServe's own loop (0.2.19) polls an empty queue a thousand times per second, and its batching timeout starts
    before the first request arrives, so it may end just after.
    """

    def get_batch_requests(
        self, lit_api: LitAPI, request_queue: Any, transport: MessageTransport
    ) -> tuple[list[Any], list[Any]]:
        """Requests of one batch, and those that timed out."""
        first = self.get_request(request_queue, timeout=IDLE_S)
        if first is None:
            return [], []
        return collate_requests(self, lit_api, _Begun(first, request_queue), transport)  # type: ignore[arg-type]


@final
class _Begun:
    """A queue whose first item was already taken."""

    def __init__(self, first: Any, queue: Any) -> None:
        self._first: list[Any] = [first]
        self._queue = queue

    def get(self, timeout: float) -> Any:
        return self._first.pop() if self._first else self._queue.get(timeout=timeout)


def refusal(status: int, reason: str) -> JSONResponse:
    """An error in FastAPI's form."""
    return JSONResponse({"detail": reason}, status_code=status)


def _identity(example: ExampleMessage) -> Hashable:
    extra = json.dumps(example.extra, sort_keys=True)
    return (example.key, example.prompt, example.subject, example.references, example.masks, extra)


def _die_with_the_server() -> None:
    """End this process and its siblings if the server is killed; else they would keep GPU and port."""
    server = psutil.Process(os.getppid())
    siblings = [process for process in server.children() if process.pid != os.getpid()]

    def watch() -> None:
        while os.getppid() == server.pid:
            time.sleep(IDLE_S / 2)
        for process in siblings:
            if process.is_running():
                process.kill()
        os._exit(1)

    threading.Thread(target=watch, name="watch-the-server", daemon=True).start()
