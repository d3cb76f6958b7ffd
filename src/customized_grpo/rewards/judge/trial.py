"""The first question to a judge, before any model is loaded: what its endpoint says, and what to do about it."""

from customized_grpo.rewards.base import RewardFailure
from customized_grpo.rewards.judge.asker import Judge
from customized_grpo.rewards.judge.choice import Reader
from customized_grpo.rewards.judge.section import JudgeSection
from customized_grpo.rewards.judge.unscorable import Unscorable
from customized_grpo.rewards.trial import LIMIT_S, first_example, first_images, waited_for


def first_answer(config: JudgeSection, reader: Reader, account: str) -> str:
    """Ask a judge once; an unreadable answer, which a judge may give now and then, is asked for once more.

    Raises:
        ValueError: it can't be asked, or gives no score.
    """
    hurried = {"timeout_s": min(config.timeout_s, LIMIT_S), "deadline_s": min(config.deadline_s, LIMIT_S)}
    judge = Judge(config.model_copy(update=hurried | {"retries": min(config.retries, 2)}), reader)
    try:
        judge.begin(account)
        before, _ = judge.spent()
        score = _asked(judge, config.compared)
        asked, _ = judge.spent()
    except (RewardFailure, Unscorable) as error:
        said = " ".join(str(error).split()).rstrip(".")
        raise ValueError(
            f"{config.model} at {config.base_url} has no answer to a first question: {said}{_advice(said, config)}"
        ) from None
    finally:
        judge.close()
    kept = "" if asked > before else ", an answer that the cache has"
    return f"{config.model} at {config.base_url} answers a first question (score {score:g}{kept})"


def _asked(judge: Judge, images: int) -> float:
    example, shown = judge.prepared(first_example()), first_images()[:images]
    try:
        return waited_for(judge.score(example, shown))
    except Unscorable as error:
        if "no connection" in str(error) or "at every attempt" in str(error):
            raise
    return waited_for(judge.score(example, shown))


def _advice(said: str, config: JudgeSection) -> str:
    """What to do, by what the endpoint or the connection says."""
    key = f"put its key into the environment variable {config.key_env}" if config.key_env else "name its key by key_env"
    known = {
        "no connection": "start it, or give its address (base_url)",
        "can't be asked": "give its address (base_url)",
        "HTTP 401": key,
        "HTTP 404": "give a model that it serves (model), and its address (base_url)",
        "no score": "take a judge that sees pictures (model), or a form that it keeps to (output)",
        "can't be read": "give the address up to /chat/completions (base_url)",
    }
    return "".join(f"; {text}" for sign, text in known.items() if sign in said)
