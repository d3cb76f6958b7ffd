"""Where rewards work, or wait for their answers, while sampling goes on."""

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Any, TypeVar, final

import torch

T = TypeVar("T")


@final
class Inline(Executor):
    """Does what it is given at once, in the caller's thread, where an error is raised too."""

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> "Future[T]":
        """A future that is done."""
        done: Future[T] = Future()
        done.set_result(fn(*args, **kwargs))
        return done


def worker(device: torch.device) -> ThreadPoolExecutor:
    """One thread. On a GPU it has a stream of its own: in the default one its work would queue behind sampling's."""
    if device.type != "cuda":
        return ThreadPoolExecutor(1, "local-rewards")
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))  # which the models were loaded in
    return ThreadPoolExecutor(1, "local-rewards", torch.cuda.set_stream, (stream,))


@final
class LoopThread:
    """One event loop in one daemon thread."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="rewards", daemon=True)
        self._thread.start()

    def start(self, coroutine: Coroutine[Any, Any, T]) -> "Future[T]":
        """Put ``coroutine`` in flight."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def close(self) -> None:
        """Cancel what is in flight and end the thread."""
        asyncio.run_coroutine_threadsafe(self._cancel_all(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _cancel_all(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._loop.shutdown_asyncgens()
