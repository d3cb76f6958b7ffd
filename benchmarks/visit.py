"""One visit to a GPU: its tests, then everything that ``flux.py`` measures, in the order of what it is worth.

    PYTHONPATH=src:tests/support python benchmarks/visit.py                # what is missing, for at most nine minutes
    PYTHONPATH=src:tests/support python benchmarks/visit.py --table        # what was found, as Markdown
    PYTHONPATH=src:tests/support python benchmarks/visit.py --tiny         # a rehearsal on a CPU with a tiny model

Each stage is a process of its own with a limit of its own: one that fails, or runs out of memory or time, costs no
other. It leaves ``OUT/<stage>.json`` as soon as it ends (and what it had found by then, if it was cut short), and one
that has ended well is not run again; ``--again STAGE`` does so. So call it until it says that nothing is missing.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from page_parts import table

HERE = Path(__file__).resolve().parent
HALF = ("policy.norms=half",)
BOTH = ("lora", "casts")


@dataclass(frozen=True, slots=True)
class Stage:
    """One process."""

    command: tuple[str, ...]
    seconds: int
    """It gets no more."""
    worth: str
    """What its numbers decide."""
    tiny: tuple[str, ...] = ()
    """More arguments of a rehearsal."""


def flux(*stages: str, plain: Sequence[str] = (), keys: Sequence[str] = ()) -> tuple[str, ...]:
    """A call of ``flux.py``."""
    left_out = ["--plain", *plain] if plain else []
    return (sys.executable, str(HERE / "flux.py"), *keys, *left_out, "--json", "{json}", "--stages", *stages)


GPU_TESTS = (sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "gpu")
FINDABLE = ("--collect-only", "tests/integration/test_devices.py")
STAGES = {
    "tests": Stage(GPU_TESTS, 240, "whether the rest means anything", FINDABLE),
    "now": Stage(flux("forward", "replay"), 200, "the two uses as the package is"),
    "plain": Stage(flux("forward", "replay", plain=BOTH), 200, "the same as it was, on the same card"),
    "half": Stage(flux("forward", "replay", keys=HALF), 200, "the same with half norms"),
    "updates": Stage(flux("update", keys=HALF), 420, "whole updates, NFT's among them, with all gains"),
    "updates-plain": Stage(flux("update", plain=BOTH), 480, "whole updates as they were"),
    "compile": Stage(flux("compile", keys=HALF), 420, "compiled blocks: first call, the two uses, an update"),
    "attention": Stage(flux("attention", keys=HALF), 240, "FlashAttention 3, cuDNN and others"),
    "float8": Stage(flux("float8", keys=HALF), 120, "rollouts in float8, and the ratio's error"),
    "parts": Stage(flux("parts", keys=HALF), 120, "optimizer, decoder, CUDA graphs"),
    "lora-plain": Stage(flux("forward", "replay", plain=("lora",)), 200, "what joined products of a LoRA are worth"),
    "kernels": Stage(flux("kernels", keys=HALF), 120, "where the rest goes"),
    "overhead": Stage(flux("overhead", keys=HALF), 180, "what of an update is in no model"),
}


def run(name: str, stage: Stage, out: Path, seconds: float, *, tiny: bool) -> dict[str, Any]:
    """Run a stage and write what came of it."""
    part = out / f"{name}.part"
    part.unlink(missing_ok=True)
    given = [one.format(json=part) for one in stage.command]
    if tiny and name != "tests":
        given.append("--tiny")
    given += stage.tiny if tiny else ()
    began = time.perf_counter()
    with (out / f"{name}.log").open("w", encoding="utf-8") as log:
        process = subprocess.Popen(given, stdout=log, stderr=subprocess.STDOUT, cwd=HERE.parent, start_new_session=True)
        try:
            code = process.wait(min(stage.seconds, seconds))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            code = None
    text = (out / f"{name}.log").read_text(encoding="utf-8", errors="replace")
    found = json.loads(part.read_text(encoding="utf-8")) if part.is_file() else {}
    part.unlink(missing_ok=True)
    failed = code is None or code != 0 or "Traceback (most recent call last)" in text
    result = {
        "stage": name,
        "command": " ".join(one.replace(str(part), f"{name}.json") for one in given[1:]),
        "ended": "cut short" if code is None else f"exit {code}",
        "well": not failed,
        "seconds": round(time.perf_counter() - began, 1),
        "found": found,
        "last_lines": text.splitlines()[-8:] or ["it said nothing"],
    }
    aside = out / f"{name}.aside"
    aside.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    aside.replace(out / f"{name}.json")
    return result


def results(out: Path) -> dict[str, dict[str, Any]]:
    """What each stage found, those that were cut short included."""
    there = {name: out / f"{name}.json" for name in STAGES}
    return {name: json.loads(file.read_text(encoding="utf-8")) for name, file in there.items() if file.is_file()}


def missing(out: Path, again: Sequence[str]) -> list[str]:
    """Stages that have not ended well, or are to be run again."""
    done = {name for name, one in results(out).items() if one["well"]} - set(again)
    return [name for name in STAGES if name not in done]


def rows_of(found: Mapping[str, dict[str, Any]]) -> Iterator[list[str]]:
    """Lines of the table: each use and batch, and each update, in every variant."""
    for name in ("plain", "lora-plain", "now", "half"):
        one = found.get(name, {}).get("found", {})
        for use in ("forward", "replay"):
            for row in one.get(use, []):
                again = {0.0: "nothing", 0.5: "half"}.get(row.get("checkpointed"), "all")
                what = (
                    "" if use == "forward" else f", {again}{' cheap' if row.get('recompute') == 'cheap' else ''} again"
                )
                if "seconds" not in row:
                    yield [name, f"{use} of {row['n']}{what}", row.get("failed", "")[:40], "", ""]
                    continue
                each, share = row["seconds"] / row["n"], row.get("share_of_peak", 0.0)
                yield [name, f"{use} of {row['n']}{what}", f"{each:.4f}", f"{share:.0%}", f"{row['peak_gib']:.1f}"]
    for name in ("updates-plain", "updates"):
        for schedule, rows in found.get(name, {}).get("found", {}).get("update", {}).items():
            for row in rows[-1:]:
                yield [name, f"update, {schedule}", f"{row['time/step']:.2f}", "", f"{row['peak_gib']:.1f}"]
    compiled = found.get("compile", {}).get("found", {}).get("compile", {})
    for use, n in (("forward", 12), ("replay", 4)):
        if row := compiled.get(use):
            each, share = row["seconds"] / n, row.get("share_of_peak", 0.0)
            yield ["compile", f"{use} of {n}", f"{each:.4f}", f"{share:.0%}", f"{row['peak_gib']:.1f}"]


def shown(found: Mapping[str, dict[str, Any]]) -> str:
    """Everything that was found, as Markdown."""
    head = ["variant", "what", "seconds a sample, or an update", "share of the peak", "GiB"]
    ended = [
        [name, one["ended"], "yes" if one["well"] else "no", f"{one['seconds']:.0f}"] for name, one in found.items()
    ]
    machine: dict[str, Any] = next((one["found"]["machine"] for one in found.values() if "machine" in one["found"]), {})
    about = ", ".join(str(machine[key]) for key in ("device", "torch", "diffusers") if key in machine)
    stages = table(["stage", "ended", "well", "seconds"], ended)
    return f"{about}\n\n{table(head, list(rows_of(found)))}\n\n{stages}"


def main(arguments: Sequence[str]) -> None:
    """Run what is missing, or show what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--out", type=Path, help="folder of the results; default: runs/visit, of a rehearsal runs/visit-tiny"
    )
    parser.add_argument("--minutes", type=float, default=9.0, help="no call takes longer")
    parser.add_argument("--only", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--again", nargs="+", choices=STAGES, default=[])
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--copy-to", type=Path, help="also copy the results there, as to the folder that comes back")
    parser.add_argument("--tiny", action="store_true")
    given = parser.parse_args(arguments)
    out = given.out or HERE.parent / "runs" / ("visit-tiny" if given.tiny else "visit")
    out.mkdir(parents=True, exist_ok=True)
    if given.table:
        sys.stdout.write(f"{shown(results(out))}\n")
        return
    ends = time.perf_counter() + 60 * given.minutes
    for name in [one for one in missing(out, given.again) if one in given.only]:
        left = ends - time.perf_counter() - 5
        if left < min(30, STAGES[name].seconds):
            break
        sys.stdout.write(f"{name} ({STAGES[name].worth}): ")
        sys.stdout.flush()
        one = run(name, STAGES[name], out, left, tiny=given.tiny)
        sys.stdout.write(
            f"{one['ended']}, {one['seconds']:.0f} s{'' if one['well'] else '; ' + one['last_lines'][-1]}\n"
        )
        sys.stdout.flush()
        if given.copy_to is not None:
            given.copy_to.mkdir(parents=True, exist_ok=True)
            (given.copy_to / "visit.json").write_text(json.dumps(results(out)) + "\n", encoding="utf-8")
            shutil.copy(out / f"{name}.log", given.copy_to)
    rest = [one for one in missing(out, ()) if one in given.only]
    sys.stdout.write(f"missing: {', '.join(rest)}; call again\n" if rest else "nothing is missing\n")


if __name__ == "__main__":
    main(sys.argv[1:])
