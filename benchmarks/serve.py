"""A reward server under load on loopback: batch sizes, times, a killed worker, a killed server; as a table and JSON.

    PYTHONPATH=src:tests python benchmarks/serve.py [--clients 64] [--out FILE.json]

The reward is DINO on the embedded miniature model; images have 64 px. Every score is compared with the local reward's.
"""

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import torch

from customized_grpo.recipe.server import TOKEN_ENV
from customized_grpo.rewards.dino import Dino
from customized_grpo.rewards.features import to_pil
from customized_grpo.rewards.remote import Remote
from customized_grpo.rewards.wire import request_body
from customized_grpo.types import Example
from reward_server import DINO, STARTS_IN_S, TOKEN, Server
from tiny_rewards import example, pictures

GROUP, SIDE, LIMIT_MB = 12, 64, 16


def quantile(values: list[float], share: float) -> float:
    return sorted(values)[min(int(share * len(values)), len(values) - 1)]


def singles(server: Server, clients: int, local: Dino) -> dict[str, Any]:
    """Requests of one image each that may share a batch: what other clients send."""
    one, images = example(2), pictures(clients, 1, SIDE, SIDE)
    bodies = []
    for image in to_pil(images):
        body = json.loads(request_body(one, [image]))
        bodies.append(json.dumps({**body, "shared": True}).encode())
    headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}

    async def ask(client: httpx2.AsyncClient, body: bytes) -> tuple[float, dict[str, Any]]:
        start = time.perf_counter()
        answer = await client.post(f"{server.url}/rewards/dino", content=body, headers=headers)
        assert answer.status_code == 200, answer.text
        return time.perf_counter() - start, answer.json()

    async def all_at_once() -> list[tuple[float, dict[str, Any]]]:
        limits = httpx2.Limits(max_connections=clients)
        async with httpx2.AsyncClient(trust_env=False, timeout=120, limits=limits) as client:
            return await asyncio.gather(*(ask(client, body) for body in bodies))

    start = time.perf_counter()
    answers = asyncio.run(all_at_once())
    seconds = time.perf_counter() - start
    scores = torch.tensor([answer["scores"][0] for _, answer in answers])
    calls = Counter(answer["batch"] for _, answer in answers)
    return {
        "requests": clients,
        "images": clients,
        "batches": {size: images // size for size, images in sorted(calls.items())},
        **times(seconds, [taken for taken, _ in answers], clients),
        "largest difference from local": float((scores - local(one, images)).abs().max()),
    }


def groups(server: Server, clients: int, local: Dino, act: Callable[[], None] | None = None) -> dict[str, Any]:
    """Whole groups by the reward ``remote``, each with its own example; ``act`` happens while they are under way."""
    config = {"type": "remote", "axis": "identity", "urls": [server.url], "reward": "dino", "retries": 8}
    reward = Remote(Remote.Config.model_validate({**config, "wait_s": STARTS_IN_S}), device=torch.device("cpu"))
    examples = [example(2, key=f"dog-{at}") for at in range(clients)]
    images = [pictures(GROUP, at, SIDE, SIDE) for at in range(clients)]
    statuses: Counter[str] = Counter()
    inner = reward._request

    async def counting(method: str, url: str, body: bytes | None = None) -> httpx2.Response:
        try:
            answer = await inner(method, url, body)
        except Exception as error:
            text = str(error)
            statuses[text.split("answers ")[1][:3] if "answers " in text else "connection"] += 1
            raise
        statuses["200"] += 1
        return answer

    reward._request = counting  # type: ignore[method-assign]

    async def ask(one: Example, pixels: torch.Tensor) -> tuple[float, list[float]]:
        start = time.perf_counter()
        scores = await reward(one, to_pil(pixels))
        return time.perf_counter() - start, scores

    async def all_at_once() -> list[tuple[float, list[float]]]:
        asked = [asyncio.create_task(ask(one, pixels)) for one, pixels in zip(examples, images, strict=True)]
        if act is not None:
            while not statuses["200"]:  # the first group is back, the others are not
                await asyncio.sleep(0.001)
            act()
        return await asyncio.gather(*asked)

    start = time.perf_counter()
    answers = asyncio.run(all_at_once())
    seconds = time.perf_counter() - start
    equal = all(
        torch.equal(torch.tensor(scores), local(one, pixels))
        for (_, scores), one, pixels in zip(answers, examples, images, strict=True)
    )
    return {
        "requests": clients,
        "images": clients * GROUP,
        "batches": {GROUP: clients},
        **times(seconds, [taken for taken, _ in answers], clients * GROUP),
        "answers": dict(statuses),
        "equal to local, bit for bit": equal,
    }


def times(seconds: float, taken: list[float], images: int) -> dict[str, float]:
    return {
        "seconds": round(seconds, 2),
        "images a second": round(images / seconds, 1),
        "median s": round(quantile(taken, 0.5), 3),
        "slowest s": round(max(taken), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    os.environ[TOKEN_ENV] = TOKEN
    local = Dino(Dino.Config.model_validate(DINO), device=torch.device("cpu"))
    results: dict[str, Any] = {"cores": os.cpu_count(), "load": round(os.getloadavg()[0], 1)}
    with tempfile.TemporaryDirectory() as scratch:
        start = time.perf_counter()
        server = Server(Path(scratch), body_mb=LIMIT_MB)
        try:
            server.wait()
            results["start s"] = round(time.perf_counter() - start, 1)
            singles(server, 4, local)  # warms up
            measures: dict[str, Callable[[], dict[str, Any]]] = {
                "single images, one example": lambda: singles(server, options.clients, local),
                "groups of 12": lambda: groups(server, options.clients, local),
                "groups, worker killed": lambda: groups(server, options.clients, local, server.kill_worker),
                "groups, server killed and started": lambda: groups(
                    server, options.clients, local, server.kill_and_start
                ),
            }
            for name, measure in measures.items():
                results[name] = measure()
                sys.stdout.write(f"{name}\n")
                for key, value in results[name].items():
                    sys.stdout.write(f"    {key:32s} {value}\n")
                sys.stdout.flush()
            start = time.perf_counter()
            server.process.terminate()
            results["exit code"] = server.process.wait(60)
        finally:
            if server.process.poll() is None:
                server.process.kill()
    sys.stdout.write(json.dumps(results) + "\n")
    if options.out is not None:
        options.out.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
