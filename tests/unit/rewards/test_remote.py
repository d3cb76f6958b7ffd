"""The client of a reward server against a loopback server that misbehaves: what is sent and said.

The outcome of each fault is a row of ``reward_faults``, which ``tests/test_pages.py`` compares.
"""

import asyncio
import json
import logging
import socket
import threading
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from customized_grpo.recipe.server import TOKEN_ENV
from customized_grpo.rewards.base import RewardFailure
from customized_grpo.rewards.features import to_pil
from customized_grpo.rewards.remote import Remote
from customized_grpo.rewards.wire import ScoreRequest
from customized_grpo.scoring.scorer import Scorer
from reward_faults import (
    FAULTS,
    GOOD,
    MINE,
    OTHER,
    answer,
    client,
    observe,
    quick_pauses,
    refuse,
    reset,
    serving,
)
from tiny_rewards import example, pictures

TOKEN = "s3cret-" + "0" * 20


def options(**changes: Any) -> Remote.Config:
    section = {"type": "remote", "axis": "identity", "urls": ["http://host:8000"], "reward": "dino"}
    return Remote.Config.model_validate(section | changes)


def test_a_group_is_one_request_with_its_references_once() -> None:
    one = example(2)
    with (
        serving(GOOD) as server,
        Scorer({"dino": client(server.server_address[1])}, max_failed_share=0.0) as scorer,
    ):
        result = scorer.submit(one, pictures(2)).result()
    assert torch.equal(result, torch.tensor([[1.0], [2.0]]))
    (body,) = server.bodies
    request = ScoreRequest.model_validate_json(body)
    assert len(request.example.references) == 2
    assert len(request.images) == 2
    assert not request.shared, "the batch, and so the last bits, are the group's own"


def test_a_failed_group_is_masked_and_the_next_is_scored() -> None:
    with (
        quick_pauses(),
        serving(reset, reset, reset, GOOD) as server,
        Scorer({"dino": client(server.server_address[1])}, max_failed_share=1.0) as scorer,
    ):
        first = scorer.submit(example(), pictures(2)).result()
        second = scorer.submit(example(), pictures(2)).result()
        assert scorer.tally.failures == {"dino": 2}
    assert first.isnan().all()
    assert torch.equal(second[:, 0], torch.tensor([1.0, 2.0]))


def test_a_stop_names_the_reward_and_the_example() -> None:
    with (
        serving(refuse(422, "no reference")) as server,
        Scorer({"mine": client(server.server_address[1])}, max_failed_share=1.0) as scorer,
        pytest.raises(RewardFailure, match=r"'mine' stopped the run on example 'dog-1': .* 422: no reference"),
    ):
        scorer.submit(example(), pictures(2)).result()


def test_a_name_that_the_server_lacks_is_refused_with_the_nearest() -> None:
    with (
        serving(GOOD) as server,
        pytest.raises(RewardFailure, match="no reward 'dinno'; did you mean 'dino'"),
    ):
        client(server.server_address[1], reward="dinno")


def test_it_can_be_built_inside_an_event_loop() -> None:
    async def build() -> list[float]:
        with serving(GOOD) as server:
            return await client(server.server_address[1])(example(), to_pil(pictures(2)))

    assert asyncio.run(build()) == [1.0, 2.0]


def test_the_token_is_sent_and_never_shown(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv(TOKEN_ENV, TOKEN)
    with quick_pauses(), caplog.at_level(logging.DEBUG), serving(reset, GOOD) as server:
        reward = client(server.server_address[1])
        with Scorer({"dino": reward}, max_failed_share=1.0) as scorer:
            scorer.submit(example(), pictures(2)).result()
    assert server.tokens == [f"Bearer {TOKEN}"] * 2
    assert TOKEN not in caplog.text
    assert TOKEN not in repr(reward._config)


def test_a_token_that_no_header_can_carry_is_refused_unseen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TOKEN_ENV, "two words")
    with serving(GOOD) as server, pytest.raises(ValueError, match="spaces or characters") as caught:
        client(server.server_address[1])
    assert "two words" not in str(caught.value)


def test_a_pinned_fingerprint_is_checked_before_anything_is_drawn() -> None:
    with serving(GOOD) as server:
        port = server.server_address[1]
        client(port, fingerprint=MINE)
        with pytest.raises(RewardFailure, match=f"fingerprint is {MINE}, and the recipe's fingerprint is {OTHER}"):
            client(port, fingerprint=OTHER)
        assert server.bodies == []


def test_groups_go_to_several_servers_in_turn_and_a_dead_one_is_passed_over() -> None:
    with quick_pauses(), serving(GOOD) as one, serving(GOOD) as two:
        ports = [one.server_address[1], two.server_address[1]]
        with Scorer({"dino": client(*ports, wait_s=0)}, max_failed_share=0.0) as scorer:
            for _ in range(4):
                scorer.submit(example(), pictures(2)).result()
            assert [len(one.bodies), len(two.bodies)] == [2, 2]


def test_a_dead_server_costs_nothing_while_another_lives() -> None:
    with quick_pauses(), serving(GOOD) as one, serving(GOOD) as two:
        reward = client(one.server_address[1], two.server_address[1])
        one.stop()
        with Scorer({"dino": reward}, max_failed_share=0.0) as scorer:
            for _ in range(4):
                scorer.submit(example(), pictures(2)).result()
        assert len(two.bodies) == 4


def test_waiting_is_said_once_and_so_is_its_end(caplog: pytest.LogCaptureFixture) -> None:
    fault = next(fault for fault in FAULTS if fault.down_s == 0.3)
    with quick_pauses(), caplog.at_level(logging.WARNING):
        observe(fault)
    said = [record.getMessage() for record in caplog.records if "customized_grpo" in record.name]
    assert len(said) == 2
    assert "waiting up to 1.5 s" in said[0]
    assert "going on" in said[1]


def test_what_is_no_reward_server_is_refused() -> None:
    with serving(GOOD) as server, pytest.MonkeyPatch.context() as patch:
        patch.setattr("reward_faults._Handler.do_GET", lambda self: self.send_error(404))
        with pytest.raises(RewardFailure, match="answers 404"):
            client(server.server_address[1])
        patch.setattr("reward_faults._Handler.do_GET", GOOD)
        with pytest.raises(RewardFailure, match="is not a reward server"):
            client(server.server_address[1])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"urls": []}, "at least 1 item"),
        ({"urls": ["host:8000"]}, "write it as http://host:8000"),
        ({"urls": ["ftp://host"]}, "write it as http://host:8000"),
        ({"urls": ["http://host:8000/?token=word"]}, "must hold no user, password, query or fragment"),
        ({"urls": ["http://host:8000?token=word"]}, "must hold no user, password, query or fragment"),
        ({"urls": ["host:8000#word"]}, "must hold no user, password, query or fragment"),
        ({"urls": ["http://me:word@host:8000"]}, "must hold no user, password, query or fragment"),
        ({"reward": "a/b"}, "pattern"),
        ({"fingerprint": "1234"}, "pattern"),
        ({"token_env": "s3cret-!"}, "pattern"),
        ({"timeout_s": 0}, "greater than 0"),
        ({"retries": -1}, "greater than or equal to 0"),
    ],
)
def test_bad_options_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError) as caught:
        options(**changes)
    message = json.loads(caught.value.json())[0]["msg"]
    assert words in message
    assert "word" not in message.replace("password", "")


def test_a_url_is_read_as_it_is_pasted() -> None:
    for url in ("http://host:8000/", " http://host:8000// ", "HTTP://host:8000"):
        assert options(urls=[url]).urls == ("http://host:8000",)


def test_no_proxy_of_the_environment_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "socks://unreadable")
    with serving(GOOD) as server:
        reward = client(server.server_address[1])
        with Scorer({"dino": reward}, max_failed_share=0.0) as scorer:
            assert scorer.submit(example(), pictures(2)).result()[:, 0].tolist() == [1.0, 2.0]


@pytest.mark.parametrize("scheme", ["https", "HTTPS"])
def test_https_at_a_port_of_plain_http_stops_at_once(scheme: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as plain:
        threading.Thread(target=refuse_tls, args=[plain], daemon=True).start()
        url = f"{scheme}://127.0.0.1:{plain.getsockname()[1]}"
        with pytest.raises(RewardFailure, match=r"can't be asked: it speaks plain HTTP; .*http://"):
            Remote(options(urls=[url], wait_s=60), device=torch.device("cpu"))


def refuse_tls(listening: socket.socket) -> None:
    with listening.accept()[0] as connection:
        connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")


@pytest.mark.parametrize("wrong", ["true", '"1.0"', "[1.0]"])
def test_what_is_no_number_is_no_score(wrong: str) -> None:
    body = f'{{"scores": [{wrong}, 2.0], "fingerprint": "{MINE}", "batch": 2}}'
    with quick_pauses(), serving(answer(200, body)) as server:
        reward = client(server.server_address[1])
        with Scorer({"dino": reward}, max_failed_share=1.0) as scorer:
            pending = scorer.submit(example(), pictures(2))
            assert pending.result().isnan().all()
            assert "isn't understood" in pending.reasons["dino"][0]
