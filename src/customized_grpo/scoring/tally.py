"""Tally of unscorable samples: counts, reasons, and the share at which a run stops."""

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, Final, final

from customized_grpo.rewards.base import RewardFailure

WINDOW: Final = 512
"""Number of a reward's samples over which its failed share is taken."""
MIN_WINDOW: Final = 32
"""Smallest denominator of the share, unseen samples counting as scored: one early failure is not an outage."""


@final
class Tally:
    """Failures of every reward.

    Args:
        max_failed_share: largest allowed share of unscorable samples among a reward's last ``WINDOW``.

    Attributes:
        failures: number of samples that each reward could not score, over the whole run.
    """

    def __init__(self, names: Sequence[str], *, max_failed_share: float) -> None:
        self.failures = dict.fromkeys(names, 0)
        self._max_failed_share = max_failed_share
        self._recent: dict[str, deque[bool]] = {name: deque(maxlen=WINDOW) for name in names}
        self._last_error = dict.fromkeys(names, "")
        self._scored = dict.fromkeys(names, 0)
        self._failed = dict.fromkeys(names, 0)
        self._news: list[str] = []

    def count(self, name: str, key: str, reasons: Sequence[str]) -> None:
        """Add a group's samples by the reason why each has no score, empty if it has one."""
        failed = [bool(reason) for reason in reasons]
        if any(failed):
            self._last_error[name] = f"{[why for why in reasons if why][-1]} (example {key!r})"
        self._recent[name].extend(failed)
        self._scored[name] += len(failed)
        self._failed[name] += sum(failed)
        self.failures[name] += sum(failed)

    def check(self) -> None:
        """Raise if too many samples fail.

        Raises:
            RewardFailure: a reward failed on more than the allowed share of recent samples.
        """
        for name, recent in self._recent.items():
            if sum(recent) / max(len(recent), MIN_WINDOW) > self._max_failed_share:
                raise RewardFailure(
                    f"reward {name!r} failed on {sum(recent)} of its last {len(recent)} samples, over the "
                    f"allowed share (advantage.max_failed_share: {self._max_failed_share:g}); last error: "
                    f"{self._last_error[name]}"
                )

    def drain(self) -> dict[str, float]:
        """``reward/<name>/failed_share`` since the last drain; failures become news."""
        shares = {}
        for name, count in self._scored.items():
            failed = self._failed[name]
            if count:
                shares[f"reward/{name}/failed_share"] = failed / count
            if failed:
                self._news.append(f"reward {name}: {failed} of {count} unscorable, last: {self._last_error[name]}")
        for totals in (self._scored, self._failed):
            totals.update(dict.fromkeys(totals, 0))
        return shares

    def drain_news(self) -> list[str]:
        """One message per reward that failed between two drains, given once."""
        texts, self._news = self._news, []
        return texts

    def state_dict(self) -> dict[str, Any]:
        """JSON state by which a resumed run stops where the uninterrupted one would."""
        return {
            name: {"recent": [int(failed) for failed in recent], "failures": self.failures[name]}
            for name, recent in self._recent.items()
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state of ``state_dict``.

        Raises:
            ValueError: the state belongs to other rewards.
        """
        if set(state) != set(self.failures):
            raise ValueError(
                f"the checkpoint's rewards are {', '.join(sorted(state))} but the recipe's are "
                f"{', '.join(sorted(self.failures))}; resume with the recipe that the run began with"
            )
        for name, recent in self._recent.items():
            self.failures[name] = int(state[name]["failures"])
            recent.clear()
            recent.extend(bool(failed) for failed in state[name]["recent"])
