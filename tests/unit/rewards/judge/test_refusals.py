"""The meaning of refusals as services word them: their codes and words stand in public reports and on their pages."""

from typing import Any

import pytest

from customized_grpo.rewards.judge.refusals import error_in, refusal, said


def worded(message: str, code: Any = None, **more: Any) -> dict[str, Any]:
    return {"error": {"message": message, "code": code, **more}}


def google(*quotas: str) -> list[dict[str, Any]]:
    violations = [{"quotaId": quota} for quota in quotas]
    return [
        worded(
            "You exceeded your current quota", 429, status="RESOURCE_EXHAUSTED", details=[{"violations": violations}]
        )
    ]


PER_DAY, PER_MINUTE = "GenerateRequestsPerDayPerProjectPerModel-FreeTier", "GenerateContentInputTokensPerModelPerMinute"


@pytest.mark.parametrize(
    ("status", "body", "kind", "words"),
    [
        (429, worded("You exceeded your current quota", "insufficient_quota"), "stop", "account is empty"),
        (429, worded("You exceeded your current quota", None, type="insufficient_quota"), "stop", "account is empty"),
        (429, worded("余额不足或无可用资源包,请充值。", "1113"), "stop", "account is empty"),
        (429, worded("suspended", "exceeded_current_quota_error"), "stop", "account is empty"),
        (429, worded("Free allocated quota exceeded.", "Throttling.AllocationQuota"), "stop", "account is empty"),
        (400, worded("Your credit balance is too low to access the API."), "stop", "account is empty"),
        (403, worded("The free quota has been exhausted", "AllocationQuota.FreeTierOnly"), "stop", "account is empty"),
        (400, {"code": "Arrearage", "message": "Access denied"}, "stop", "account is empty"),
        (402, worded("Insufficient Balance"), "stop", "account is empty"),
        (500, worded("no quota left", "insufficient_user_quota"), "stop", "account is empty"),
        (429, google(PER_DAY), "stop", "quota for the day"),
        (429, google(PER_DAY, PER_MINUTE), "stop", "quota for the day"),
        (429, worded("Rate limit exceeded: free-models-per-day-high-balance. "), "stop", "quota for the day"),
        (429, worded("busy", 429, metadata={"limit_source": "openrouter_free_tier_daily"}), "stop", "for the day"),
        (429, worded("on tokens per day (TPD): Limit 100000. Please try again in 4m"), "stop", "quota for the day"),
        (429, worded("You have reached your daily request limit"), "stop", "quota for the day"),
        (429, google(PER_MINUTE), "again", "exceeded your current quota"),
        (429, worded("free-models-per-min. Add 10 credits to unlock 1000 free model requests per day"),
         "again", "per-min"),
        (429, worded("on tokens per min (TPM): Limit 30000"), "again", "TPM"),
        (429, worded("Allocated quota exceeded, please increase your quota limit.", "insufficient_quota"), "again", ""),
        (429, worded("exceeded", "insufficient_quota", type="Throttling.AllocationQuota"), "again", "exceeded"),
        (429, worded("limited", 429, metadata={"raw": "upstream is busy"}), "again", "limited: upstream is busy"),
        (498, worded("capacity exceeded"), "again", "HTTP 498"),
        (529, worded("Overloaded", type="overloaded_error"), "again", "Overloaded"),
        (503, "<html><style>p{}</style><h1>Service</h1> unavailable</html>", "again", "HTTP 503: Service unavailable"),
        (400, worded("inappropriate", "data_inspection_failed"), "image", "content filter"),
        (400, worded("x", "", innererror={"code": "ResponsibleAIPolicyViolation"}), "image", "content filter"),
        (400, worded("系统检测到输入或生成内容可能包含不安全或敏感内容", "1301"), "image", "content filter"),
        (403, worded("requires moderation", 403, metadata={"flagged_input": "a bag"}), "image", "content filter"),
        (0, worded("overloaded"), "image", "an error with HTTP 200: overloaded"),
        (401, worded("Incorrect API key", "invalid_api_key"), "stop", "would refuse again"),
        (404, worded("The model `x` does not exist", "model_not_found"), "stop", "would refuse again"),
        (400, worded("API key not valid", 400, status="INVALID_ARGUMENT"), "stop", "would refuse again"),
        (413, "Request Entity Too Large", "stop", "would refuse again"),
    ],
)  # fmt: skip
def test_what_follows_from_a_refusal(status: int, body: Any, kind: str, words: str) -> None:
    found = refusal(status, {}, body)
    assert (found.kind, words in found.message) == (kind, True), found.message


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"choices": [{"message": {"content": "x"}}]}, None),
        ({"choices": [{"message": {}}], "error": None}, None),
        ({"choices": [{"message": {}}], "error": {"message": "", "code": 0}}, None),
        ({"choices": [{"message": {}, "finish_reason": "stop", "error": {"message": "x"}}]}, None),
        ({"choices": [{"message": {}, "finish_reason": "error", "error": {"code": 502, "message": "x"}}]}, 502),
        ({"error": {"code": 429, "message": "x"}}, 429),
        ({"error": {"code": "503", "message": "x"}}, 503),
        ({"error": {"code": "rate_limit", "message": "x"}}, 0),
        ({"error": "overloaded", "choices": []}, 0),
        ({"object": "error", "message": "x", "code": 404}, 404),
        ({"choices": []}, None),
    ],
)
def test_errors_in_the_body_of_a_200(body: dict[str, Any], status: int | None) -> None:
    found = error_in(body)
    assert (found and found[0]) == status


def test_the_words_of_an_error() -> None:
    assert said([worded("of Google")]) == "of Google"
    assert said({"error": "in short"}) == "in short"
    assert said({"detail": "Not Found"}) == "{'detail': 'Not Found'}"
    assert said({"message": "plain", "code": "X"}) == "plain"
    assert said("") == ""
