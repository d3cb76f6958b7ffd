"""Background threads in which rewards compute, or await responses, during sampling."""

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Any, TypeVar, final

import torch

T = TypeVar("T")


@final
class Inline(Executor):
    """Executor that runs each call at once in the caller's thread, and raises errors there."""

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> "Future[T]":
        """Run the call; the returned future is done."""
        done: Future[T] = Future()
        done.set_result(fn(*args, **kwargs))
        return done


def worker(device: torch.device) -> ThreadPoolExecutor:
    """One-thread executor. On a GPU it has its own stream: in the default one its work would queue behind sampling."""
    if device.type != "cuda":
        return ThreadPoolExecutor(1, "local-rewards")
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))  # in which the models were loaded
    return ThreadPoolExecutor(1, "local-rewards", torch.cuda.set_stream, (stream,))


@final
class LoopThread:
    """An event loop in a daemon thread."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="rewards", daemon=True)
        self._thread.start()

    def start(self, coroutine: Coroutine[Any, Any, T]) -> "Future[T]":
        """Start ``coroutine``."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def close(self) -> None:
        """Cancel running coroutines and end the thread."""
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
