"""One question to each judge and reward server before a model is loaded: by the commands, on loopback servers."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

from customized_grpo import console
from customized_grpo.commands.app import app
from customized_grpo.evaluation import evaluator
from customized_grpo.identity.runs import name_of
from customized_grpo.rewards.judge.cache import Cache
from customized_grpo.scoring import folder as scoring
from customized_grpo.training import setup
from judge_cases import KEY, KEY_ENV
from judge_server import JudgeServer, Reply, Request, completion, error, score
from loopback import listening
from runs import metrics_of, tiny_dict

NOWHERE = "http://127.0.0.1:9"


def judge(url: str, **more: Any) -> dict[str, Any]:
    return {
        "type": "vlm", "preset": "vllm", "model": "m", "base_url": url, "rubric": "prompt_following", "axis": "prompt",
        "key_env": KEY_ENV, **more,
    }  # fmt: skip


def served(url: str) -> dict[str, Any]:
    return {"type": "remote", "urls": [url], "reward": "dino", "axis": "prompt"}


@contextmanager
def reward_server(status: int = 200, **answers: Any) -> Iterator[str]:
    """A reward server by its wire alone: /info and scores, or the same refusal to everything."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            info = {"model": {"rewards": {"dino": {"fingerprint": "0" * 16}}}}
            self.reply(info if status == 200 else {"detail": "the token is not this server's"})

        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            scores = [0.5] * len(asked["images"])
            self.reply({"scores": scores, "fingerprint": "0" * 16, "batch": len(scores)} | answers)

        def reply(self, body: dict[str, Any]) -> None:
            data = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *arguments: object) -> None: ...

    with listening(Handler) as url:
        yield url


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_ENV, KEY)


@pytest.fixture
def nothing_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    def loads(*_: object, **__: object) -> None:
        pytest.fail("a model would be loaded")

    monkeypatch.setattr(setup, "load_rewards", loads)
    monkeypatch.setattr(setup, "open_for_training", loads)
    monkeypatch.setattr(evaluator, "open_policy", loads)
    monkeypatch.setattr(scoring, "load_rewards", loads)


def training(world: Path, folder: Path, reward: dict[str, Any], **more: Any) -> Path:
    rewards = {"pf": reward, "warm": {"type": "runs:Warmth", "axis": "identity"}}
    small = {"train__group_size": 2, "sampling__steps": 3, "train__steps": 1, "run__threads": 1}
    data = tiny_dict(world, folder, rewards=rewards, **(small | more))
    file = folder.with_suffix(".yaml")
    file.write_text(json.dumps(data))
    return file


def evaluation(folder: Path, metric: dict[str, Any]) -> list[str]:
    return [
        "evaluate", "mini", f"run.dir={folder}", "run.device=cpu", "evaluate.data.size=2", "sampling.steps=2",
        f"evaluate.metrics={json.dumps({'pf': {k: v for k, v in metric.items() if k != 'axis'}})}",
    ]  # fmt: skip


def run(*words: str) -> Any:
    return CliRunner().invoke(app, words, env={"COLUMNS": "400"})


def one_line(done: Any) -> str:
    (line,) = [one for one in done.stderr.splitlines() if one.startswith("error")]
    assert done.exit_code == 2, done.output
    return str(line)


REFUSALS: list[tuple[Any, tuple[str, ...]]] = [
    (error(401, "Incorrect API key provided"), ("HTTP 401: Incorrect API key", f"environment variable {KEY_ENV}")),
    (error(404, "no model 'm'"), ("HTTP 404: no model 'm'", "give a model that it serves (model)")),
    (error(429, "You exceeded your quota", "insufficient_quota"), ("account is empty",)),
    (completion("a fine one"), ("there is no score", "'a fine one'", "take a judge that sees pictures")),
    (Reply(503), ("HTTP 503", "at every attempt")),
]


@pytest.mark.parametrize(("reply", "says"), REFUSALS)
@pytest.mark.usefixtures("nothing_loads")
def test_a_judge_that_can_not_answer_stops_a_training_before_anything_is_loaded(
    tiny_world: Path, tmp_path: Path, reply: Reply, says: tuple[str, ...]
) -> None:
    with JudgeServer(lambda _: reply) as server:
        line = one_line(run("train", str(training(tiny_world, tmp_path / "run", judge(server.url)))))
        assert line.startswith(f"error: rewards.pf: m at {server.url} has no answer to a first question: ")
        assert [part for part in says if part not in line] == []
        assert line.endswith("or begin without asking: run.ask_first=false")
        assert 1 <= len(server.requests) <= 3
        assert KEY not in line


@pytest.mark.usefixtures("nothing_loads")
def test_it_stops_evaluate_and_score_too(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "one.png")
    with JudgeServer(lambda _: error(401, "Incorrect API key")) as server:
        line = one_line(run(*evaluation(tmp_path / "run", judge(server.url))))
        assert line.startswith("error: evaluate.metrics.pf: m at ")
        options = [f"pf.{key}={value}" for key, value in judge(server.url).items() if key not in ("type", "axis")]
        line = one_line(run("score", str(tmp_path / "one.png"), "--reward", "pf=vlm", "--prompt", "a cat", *options))
        assert line.startswith("error: --reward pf: m at ")
        assert line.endswith("or begin without asking: --no-ask-first")


@pytest.mark.usefixtures("nothing_loads")
def test_nothing_that_listens_no_key_and_no_token(
    tiny_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def said(reward: dict[str, Any]) -> str:
        return one_line(run("train", str(training(tiny_world, tmp_path / "run", reward))))

    assert "no connection" in (line := said(judge(f"{NOWHERE}/v1")))
    assert "start it, or give its address (base_url)" in line
    assert "start it (customized-grpo serve), or give its address (urls)" in said(served(NOWHERE))
    with reward_server(401) as url:
        line = said(served(url))
        assert "answers 401: the token is not this server's; set the environment variable" in line
    with reward_server(scores=[0.5]) as url:
        assert "1 scores for 2 images" in said(served(url))
    monkeypatch.delenv(KEY_ENV)
    assert f"rewards.pf: the environment variable {KEY_ENV} is not set" in said(judge(f"{NOWHERE}/v1"))


def test_an_answer_is_told_counted_kept_and_may_be_left_out(tiny_world: Path, tmp_path: Path) -> None:
    cache = tmp_path / "judges.sqlite"
    with JudgeServer(lambda _: score(3)) as server:
        file = training(tiny_world, tmp_path / "run", judge(server.url, cache=str(cache), budget_requests=100))
        done = run("train", str(file))
        assert done.exit_code == 0, done.output
        assert f"rewards.pf: m at {server.url} answers a first question (score 3)\n" in done.stderr
        first, asked = server.requests[0], len(server.requests)
        assert first.image.size == (64, 64)
        assert '"a red ball"' in first.text
        counted = Cache(cache, "m for prompt_following", budget_requests=None, budget_tokens=None)
        counted.begin(f"rewards.pf of run {name_of(tmp_path / 'run')}")
        assert counted.spent()[0] == asked
        counted.close()
        assert len(metrics_of(tmp_path / "run")) == 1
        again = run("train", str(file), "run.resume=latest")
        assert "answers a first question (score 3, an answer that the cache has)" in again.stderr
        assert len(server.requests) == asked
        other = training(tiny_world, tmp_path / "other", judge(server.url))
        assert "first question" not in run("train", str(other), "run.ask_first=false").stderr
        assert all(one.image.size != (64, 64) for one in server.requests[asked:])


def test_an_unreadable_answer_is_asked_for_once_more(tiny_world: Path, tmp_path: Path) -> None:
    def script(request: Request) -> Reply:
        return completion("hm") if request.attempt == 0 and request.image.size == (64, 64) else score(2)

    with JudgeServer(script) as server:
        done = run("train", str(training(tiny_world, tmp_path / "run", judge(server.url))))
        assert done.exit_code == 0, done.output
        assert "answers a first question (score 2)" in done.stderr


def test_a_comparison_and_a_reward_server_answer(tiny_world: Path, tmp_path: Path) -> None:
    with JudgeServer(lambda _: completion('{"winner": "first"}')) as server, reward_server() as url:
        pair = judge(server.url, type="vlm_pairwise", rubric=next(iter(_pairwise())))
        file = training(tiny_world, tmp_path / "run", pair, rewards__served=served(url))
        done = run("train", str(file))
    assert "rewards.pf: m at " in done.stderr, done.output
    assert len(server.requests[0].images) >= 2
    assert f"rewards.served: 'dino' at {url} answers a first question (scores 0.5, 0.5)" in done.stderr


def _pairwise() -> Any:
    from customized_grpo.rewards.judge.builtin import PAIRWISE

    return {name: one for name, one in PAIRWISE.items() if one.rubric.axis == "prompt"}


def test_validate_and_doctor_say_what_is_missing(
    tiny_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("customized_grpo.commands.doctor.examine", lambda folder: [])
    monkeypatch.delenv(KEY_ENV)
    monkeypatch.setattr(console.out, "_width", 400)  # rich reads COLUMNS when it is imported, maybe by another test

    def said(command: str, reward: dict[str, Any]) -> str:
        done = run(command, str(training(tiny_world, tmp_path / "run", reward)))
        return " ".join((done.output).replace("│", " ").split())

    for command in ("validate", "doctor"):
        text = said(command, judge(f"{NOWHERE}/v1"))
        assert f"the environment variable {KEY_ENV} is not set" in text
        assert f"export {KEY_ENV}=" in text
    monkeypatch.setenv(KEY_ENV, KEY)
    assert "doesn't answer" not in said("validate", judge(f"{NOWHERE}/v1")), "it stays offline"
    assert "doesn't answer" in said("doctor", judge(f"{NOWHERE}/v1"))
    assert "start it (customized-grpo serve)" in said("doctor", served(NOWHERE))
    with reward_server() as url:
        assert "doesn't answer" not in said("doctor", served(url))
    monkeypatch.setattr("customized_grpo.rewards.judge.section.find_spec", lambda name: None)
    assert "pip install 'customized-grpo[judge]'" in said("validate", judge(f"{NOWHERE}/v1"))
