"""Identity of a run by content, kept in its checkpoints: its examples, what the recipe names, and its formula.

A resumed run visits examples by their place. On other data, other frozen weights or another formula it would go on as
another run, so that is refused; the same content under another path is the same run.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any, Final, final

from customized_grpo import registry
from customized_grpo.advantages.aggregators import FORMULAS
from customized_grpo.data.base import Dataset, FromFiles
from customized_grpo.data.content import contents
from customized_grpo.identity.hashes import FileHashes, short_hash
from customized_grpo.identity.sections import named, revision_of, source_hash
from customized_grpo.recipe.config import Recipe
from customized_grpo.rewards.base import AnyReward, fingerprint_of, transport_of

FILE: Final = "identity.json"
"""Its name in a checkpoint's ``state``."""
_PROBES: Final = 32
"""Number of examples that stand for a data set which can't say what they are made of."""
_SHOWN: Final = 3
_SOURCE: Final = " (source)"

Examples = list[list[str]]
"""[id, hash of the content] in the data's order."""


@final
class RunIdentity:
    """What a run stands on. Files are hashed in a thread from the beginning, and waited for when they are needed."""

    def __init__(self, recipe: Recipe, dataset: Dataset, rewards: Mapping[str, AnyReward], hashes: FileHashes) -> None:
        self._recipe, self._dataset, self._hashes = recipe, dataset, hashes
        self._named: dict[str, str] = {}
        self._servers = {
            f"rewards.{name}.fingerprint": known
            for name, reward in rewards.items()
            if (known := fingerprint_of(reward)) is not None
        }
        pool = ThreadPoolExecutor(1)
        # Only files are read in a thread: a data set may not bear two at once.
        self._read_ahead = pool.submit(_of_files, dataset, hashes)
        pool.shutdown(wait=False)

    def look(self) -> None:
        """Look at what the recipe names, once models are loaded: a hub id's commit is then the one that was read."""
        self._named = named_in(self._recipe, self._hashes) | self._servers

    @cached_property
    def content(self) -> dict[str, Any]:
        """The content of ``identity.json``, as it was when the run began."""
        aggregator = registry.type_of(self._recipe.advantage.aggregator)
        objective = registry.type_of(self._recipe.objective)
        return {
            "formula": [aggregator, FORMULAS.get(aggregator, 1)],
            "objective": [objective, registry.resolve("objectives", objective).formula],
            "named": self._named,
            "examples": self._read_ahead.result() or _of_probes(self._dataset, self._hashes),
        }

    def write(self, folder: Path) -> None:
        """Write it into a checkpoint's ``state``."""
        (folder / FILE).write_text(json.dumps(self.content, indent=0, sort_keys=True) + "\n", encoding="utf-8")

    def same_as(self, checkpoint: Path, before: Recipe, given: Recipe, warn: Callable[[str], None]) -> set[str]:
        """Compare with a checkpoint.

        Args:
            checkpoint: its folder.
            before: its recipe.
            given: the recipe that goes on.
            warn: is told what can't be compared, or may change.

        Returns:
            Beginnings of the recipe's keys whose content is the same, whatever they say.

        Raises:
            ValueError: the content differs; the message says in what, and what to do.
        """
        now = self.content
        if not (file := checkpoint / "state" / FILE).is_file():
            warn(f"{checkpoint}: is of a version that didn't keep what data and weights it stands on: not compared")
            return _same_formula([registry.type_of(before.advantage.aggregator), 1], now["formula"], given)
        saved = json.loads(file.read_text(encoding="utf-8"))
        if changed := difference(saved["examples"], now["examples"]):
            raise ValueError(
                f"run.resume: data holds other examples than those of the checkpoint: {changed}. They are visited by "
                "their place, so this run can't go on with them: put the data back as it was, or start a new run "
                "(another run.dir), which may begin with these weights (policy.lora.path or policy.full.path)"
            )
        _same_objective(saved.get("objective", [now["objective"][0], 1]), now["objective"])
        common = saved["named"].keys() & now["named"].keys()
        others = {key for key in common if saved["named"][key] != now["named"][key]}
        if sources := sorted(key for key in others if key.endswith(_SOURCE)):
            warn(f"resuming with a changed module: {', '.join(sources)}")
        if files := sorted(key for key in others if not key.endswith(_SOURCE)):
            shown = "; ".join(f"{key}: was {saved['named'][key]}, is {now['named'][key]}" for key in files)
            raise ValueError(
                f"run.resume: the recipe names other files than those of the checkpoint - {shown}. Put them back (a "
                "model on the hub is pinned by its revision), or start a new run"
            )
        return {"data.", *common} | _same_formula(saved["formula"], now["formula"], given)


def _of_files(dataset: Dataset, hashes: FileHashes) -> Examples:
    """All examples; none where the data set can't say what they are made of."""
    if not isinstance(dataset, FromFiles):
        return []
    sources = [dataset.sources(index) for index in range(len(dataset))]
    ids = [one.key for one in sources if one is not None]
    if len(ids) < len(sources):
        return []
    found = contents(dataset, range(len(ids)), hashes)
    return [[key, short_hash(dict(found[index]))] for index, key in enumerate(ids)]


def _of_probes(dataset: Dataset, hashes: FileHashes) -> Examples:
    """Some examples at even distances: to look at all of them would be to decode or to make them."""
    size = len(dataset)
    probes = dict.fromkeys(at * size // _PROBES for at in range(_PROBES))
    rows = [[f"example {index}", _probe(dataset, index, hashes)] for index in probes]
    return [["number of examples", str(size)], *rows]


def _probe(dataset: Dataset, index: int, hashes: FileHashes) -> str:
    try:
        return short_hash(dict(contents(dataset, [index], hashes)[index]))
    except Exception as error:  # a run that never visits it doesn't stop for it
        return short_hash(type(error).__name__)


def named_in(recipe: Recipe, hashes: FileHashes) -> dict[str, str]:
    """Key of a recipe's policy, rewards and other plug-ins to the content of what it names: files, hub ids, modules."""
    rewards = {
        name: spec.model_dump(mode="json", exclude=set(transport_of(spec))) for name, spec in recipe.rewards.items()
    }
    section = {"policy": recipe.policy.model_dump(mode="json"), "rewards": rewards}
    section |= recipe.model_dump(mode="json", include={"sampling", "advantage", "objective"})
    return dict(_named(section, "", hashes))


def difference(saved: Examples, now: Examples) -> str:
    """How two lists of examples differ, in words; empty if they don't."""
    if saved == now:
        return ""
    before, after = ({key: content for key, content in rows} for rows in (saved, now))
    kinds = {
        "changed": [key for key in before if key in after and before[key] != after[key]],
        "added": [key for key in after if key not in before],
        "removed": [key for key in before if key not in after],
    }
    found = [f"{len(keys)} {kind} ({_some(keys)})" for kind, keys in kinds.items() if keys]
    if [key for key in before if key in after] != [key for key in after if key in before] or not found:
        found.append("their order is another")
    return ", ".join(found)


def _some(keys: Sequence[str]) -> str:
    return ", ".join([*keys[:_SHOWN], *(["..."] if len(keys) > _SHOWN else [])])


def _named(section: Mapping[str, Any], place: str, hashes: FileHashes) -> Iterator[tuple[str, str]]:
    """(key, content) of everything that a section names."""
    for name, value in section.items():
        key = f"{place}.{name}" if place else name
        if isinstance(value, dict):
            yield from _named(value, key, hashes)
        elif name == "type" and isinstance(value, str) and ":" in value:
            yield f"{key}{_SOURCE}", source_hash(value.partition(":")[0], hashes) or ""
        elif (
            name != "type" and isinstance(value, str) and (content := named(value, hashes, revision_of(section, name)))
        ):
            yield key, ", ".join(f"{what} {which}" for what, which in content.items())


def _same_objective(saved: Sequence[Any], now: Sequence[Any]) -> None:
    """Refuse to go on by a loss that changed under its name; another name is a changed key of the recipe."""
    if saved[0] == now[0] and saved[1] != now[1]:
        raise ValueError(
            f"run.resume: objective.type {now[0]} has another loss than in the version of the checkpoint (its formula "
            f"was number {saved[1]}, and is {now[1]}); go on with that version of customized-grpo, or start a new run"
        )


def _same_formula(saved: Sequence[Any], now: Sequence[Any], given: Recipe) -> set[str]:
    """Refuse to go on by a formula that changed under its name; ``weighted_minimum`` is what ``minimum`` was."""
    (before, old), (name, new) = saved, now
    if old == 1 and name == f"weighted_{before}":
        return {"advantage.aggregator."}
    even = given.time_weights() == 1 / len(given.axes)
    if before == name and old != new and not bool(even.all()):
        raise ValueError(
            f"run.resume: advantage.aggregator: {name} ignores the time weights now, as published, and the version of "
            f"the checkpoint multiplied by them; go on as it began by advantage.aggregator.type=weighted_{name}, or "
            "start a new run"
        )
    return set()
