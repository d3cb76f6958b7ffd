"""Trains the miniature on a judge that fails: does the run go through, mask what failed, and still learn?

    PYTHONPATH=src:tests python benchmarks/judge.py [RUN_FOLDER] [STEPS]

An endpoint on loopback grades by pixels: prompt following is how bright the image is, concept preservation how near
its tint is to the reference's. Of every five images one meets trouble: refusals, chatter, numbers out of range,
cut-off and empty answers, 500, 429, broken connections. A folder that is there already is gone on with. Prints a table
of the first and the last fifth of the steps; on a CPU a step takes some seconds.
"""

import hashlib
import json
import math
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np

from customized_grpo.recipe.loading import load_recipe
from customized_grpo.training.trainer import train
from judge_server import JudgeServer, Reply, Request, completion, error

FAILURES = {
    "refusal": completion(None, refusal="no"),
    "chatter": completion("What a nice picture!"),
    "out of range": completion('{"score": 9}'),
    "cut off": completion('{"sco', finish="length"),
    "empty": completion(""),
    "500": error(500, "internal"),
    "429": error(429, "slow down", retry_after="1"),
    "reset": Reply(how="reset"),
}
PORT = 48123  # the same when a run is gone on with
EVERY = 5
"""One image of so many fails."""


def grade(request: Request) -> float:
    """0 to 4, not rounded."""
    image = np.asarray(request.image, dtype=np.float64) / 255
    if len(request.images) == 1:
        return 4 * float(image.mean())
    reference = np.asarray(request.images[0], dtype=np.float64)
    ours, wanted = (one.mean((0, 1)) / (one.mean((0, 1)).sum() + 1e-9) for one in (image, reference))
    return max(0.0, 4 * (1 - float(np.abs(ours - wanted).sum())))


def graded(value: float) -> Reply:
    """The answer of a judge whose expectation is ``value``: the two scores around it, by their probabilities."""
    low = min(3, math.floor(value))
    share = min(max(value - low, 1e-6), 1 - 1e-6)
    written = str(low + (share > 0.5))
    alternatives = [
        {"token": str(low), "logprob": math.log(1 - share), "bytes": None},
        {"token": str(low + 1), "logprob": math.log(share), "bytes": None},
    ]
    pieces = ('{"score": ', written, "}")
    tokens = [{"token": one, "logprob": 0.0, "bytes": None, "top_logprobs": alternatives} for one in pieces]
    return completion("".join(pieces), logprobs={"content": tokens, "refusal": None})


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/judge")
    steps = int(sys.argv[2]) if len(sys.argv) > 2 else 30
    told: Counter[str] = Counter()

    def script(request: Request) -> Reply:
        digest = hashlib.sha256(request.image.tobytes() + bytes([len(request.images)])).digest()
        if digest[0] % EVERY:
            told["graded"] += 1
            return graded(grade(request))
        name = list(FAILURES)[digest[1] % len(FAILURES)]
        told[name] += 1
        return FAILURES[name]

    with JudgeServer(script, port=PORT) as server:
        common = {"type": "vlm", "preset": "vllm", "model": "pixels", "base_url": server.url, "retries": 1}
        common |= {"expected": True, "concurrency": 16, "cache": f"{folder}.sqlite"}
        judges = {
            "pf": common | {"axis": "prompt", "rubric": "prompt_following"},
            "cp": common | {"axis": "identity", "rubric": "concept_preservation"},
        }
        overrides = [
            f"run.dir={folder}", f"run.resume={'latest' if folder.exists() else 'null'}", "run.threads=1",
            f"rewards={json.dumps(judges)}", "advantage.max_failed_share=0.5",
            f"train.steps={steps}", "train.group_size=8", "train.groups_per_step=2", "train.microbatch=40",
            "train.schedule.name=constant", "train.checkpoint_every=5", "train.evaluate_every=0",
            "train.save_samples_every=0", "data.size=2",  # the same two prompts in every step, so that steps compare
        ]  # fmt: skip
        start = time.monotonic()
        train(load_recipe("mini_customized", overrides))
        seconds = time.monotonic() - start

    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    fifth = max(2, len(rows) // 5)

    def mean(name: str, part: list[dict[str, float]]) -> str:
        values = np.array([row[name] for row in part])
        return f"{values.mean():.3f} ± {values.std(ddof=1) / len(values) ** 0.5:.3f}"

    print(f"{len(rows)} steps of 16 images x 2 questions; this process {seconds:.0f} s")
    print(f"the endpoint's answers: {dict(told)}")
    print(f"{'mean ± its standard error':28} {f'first {fifth}':15}  {f'last {fifth}':15}")
    for name in ("reward/pf/mean", "reward/cp/mean", "reward/pf/failed_share", "reward/cp/failed_share"):
        print(f"{name:28} {mean(name, rows[:fifth]):15}  {mean(name, rows[-fifth:]):15}")


if __name__ == "__main__":
    main()
