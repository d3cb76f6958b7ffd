"""How long a server asks to wait, in all the places where it says so."""

import time
from datetime import UTC, datetime, timedelta
from email.utils import formatdate
from typing import Any

import pytest

from customized_grpo.web.waits import asked_wait, duration


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        *(("34", 34), ("1.5", 1.5), ("34s", 34), ("34.074824224s", 34.074824224), ("1m30s", 90), ("6m0s", 360)),
        *(("859ms", 0.859), ("1h2m3.5s", 3723.5), ("2 minutes", 120), ("1 hour and 5 minutes", 3900), ("1d", 86400)),
        *(("20 seconds.", 20), ("500 milliseconds", 0.5), ("0", 0), ("-3", 0)),
        *(("soon", None), ("", None), ("34 apples", None), ("5s later", None)),
    ],
)
def test_durations(text: str, seconds: float | None) -> None:
    assert duration(text) == (seconds if seconds is None else pytest.approx(seconds))


def test_dates() -> None:
    then = datetime.now(UTC) + timedelta(seconds=600)
    for said in (formatdate(then.timestamp(), usegmt=True), then.isoformat(), then.strftime("%Y-%m-%dT%H:%M:%SZ")):
        assert duration(said) == pytest.approx(600, abs=30)
    assert duration(formatdate(0, usegmt=True)) == 0.0


RETRY_INFO = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "34s"}


@pytest.mark.parametrize(
    ("headers", "body", "seconds"),
    [
        ({}, "", None),
        ({"Retry-After": "7"}, "", 7),
        ({"retry-after-ms": "859"}, "", 0.859),
        ({"Retry-After": "soon"}, "", None),
        ({"Retry-After": "inf"}, "", None),
        ({}, [{"error": {"code": 429, "details": [{"@type": "Help"}, RETRY_INFO]}}], 34),
        ({}, {"error": {"details": [{"retry_delay": {"seconds": 34, "nanos": 500_000_000}}]}}, 34.5),
        ({}, {"error": {"message": "Quota exceeded. Please retry in 34.074824224s."}}, 34.074824224),
        ({}, {"error": {"message": "Limit 3 / min. Please try again in 20s. Contact us"}}, 20),
        ({}, {"error": {"message": "on tokens: Please try again in 1h2m3s."}}, 3723),
        ({}, {"error": {"message": "Please try again in 859ms."}}, 0.859),
        ({}, {"error": {"message": "Please retry after 10 seconds."}}, 10),
        ({}, {"error": {"message": "wait 2 minutes, then ask"}}, 120),
        ({}, {"error": {"message": "Please retry your request after about 4 seconds"}}, 4),
        ({}, {"message": "slow down", "retry_after": 12}, 12),
        ({}, {"retry_after_ms": 1200}, 1.2),
        ({}, {"retry_after": True}, None),
        ({}, "<p>Try again in 5 seconds</p>", 5),
        ({"Retry-After": "1"}, {"error": {"message": "try again in 6m0s"}}, 360),
        ({}, {"error": {"message": "the limit is 20 requests in 60 s"}}, None),
        ({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "1m30s"}, "", 90),
        ({"x-ratelimit-remaining-requests": "9", "x-ratelimit-reset-requests": "1m30s"}, "", None),
        ({"x-ratelimit-reset-requests": "1m30s"}, "", None),
        ({"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "6ms", "Retry-After": "2"}, "", 2),
        ({"ratelimit-remaining": "0", "ratelimit-reset": "30"}, "", 30),
        ({"RateLimit": '"api";r=0;t=83'}, "", 83),
        ({"RateLimit": '"api";r=5;t=83'}, "", None),
    ],
)  # fmt: skip
def test_every_place_is_read(headers: dict[str, str], body: Any, seconds: float | None) -> None:
    assert asked_wait(headers, body) == (seconds if seconds is None else pytest.approx(seconds))


def test_clocks_that_count_from_1970_and_dates_of_resets() -> None:
    in_a_minute = time.time() + 60
    metadata = {"headers": {"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": str(int(in_a_minute * 1000))}}
    assert asked_wait({}, {"error": {"code": 429, "metadata": metadata}}) == pytest.approx(60, abs=5)
    whole = {"x-ratelimit-remaining": "0", "x-ratelimit-reset": str(int(in_a_minute))}
    assert asked_wait(whole, "") == pytest.approx(60, abs=5)
    date = datetime.fromtimestamp(in_a_minute, UTC).isoformat()
    anthropic = {"anthropic-ratelimit-requests-remaining": "0", "anthropic-ratelimit-requests-reset": date}
    assert asked_wait(anthropic, "") == pytest.approx(60, abs=5)
