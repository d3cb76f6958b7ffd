"""DreamBench from its folder to its report, by the real commands: the same result every time, whatever happens.

    python benchmarks/dreambench.py --data ../shared/data/dreambench

Import, check, and the whole evaluation of 750 prompts - base and an adapter, by the embedded miniature and the recipe's
metrics on tiny random weights - in four folders of its own: once, a second time, on two processes, and killed by -9 in
the middle of the base and continued. All files of ``evaluation/`` must be the same bytes. The images of the first are
then scored anew under the other protocol; the rows of real photos and copied references of both are kept. The table
goes to stdout and all of it to benchmarks/results/dreambench.json. The numbers of random models mean nothing.
"""

import argparse
import hashlib
import json
import os
import platform
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml
from page_parts import table

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tests" / "support")]
os.environ.setdefault("OMP_NUM_THREADS", "1")

RESULT = ROOT / "benchmarks" / "results" / "dreambench.json"
PROGRAM = ("-m", "customized_grpo")
ONE = (sys.executable, *PROGRAM)
TWO = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", *PROGRAM)
PROTOCOLS = ("dreambench/uno-all-references", "dreambench/input-reference")
BASELINES = ("real_photos", "copy_reference")


def timed(work: Callable[[], Any]) -> dict[str, float]:
    """Wall and CPU seconds of the processes that ``work`` starts and waits for."""

    def cpu() -> float:
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime

    began, spent = time.monotonic(), cpu()
    work()
    return {"seconds": round(time.monotonic() - began, 1), "cpu_seconds": round(cpu() - spent, 1)}


def run(*command: str) -> None:
    """A command that must end well."""
    ended = subprocess.run(command, env=variables(), capture_output=True, text=True, check=False)
    if ended.returncode:
        raise RuntimeError(f"{' '.join(command)}: exit code {ended.returncode}\n{ended.stderr[-3000:]}")


def killed(folder: Path, rows: int, *command: str) -> int:
    """Kill a command by -9 when the base has so many rows; how many it had in the end."""
    job = subprocess.Popen(
        command,
        env=variables(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )

    def written() -> int:
        parts = (folder / "evaluation" / ".parts" / "base").glob("*.jsonl")
        return sum(path.read_bytes().count(b'"fingerprint"') for path in parts)

    while written() < rows:
        if job.poll() is not None:
            raise RuntimeError(f"it ended ({job.returncode}) before {rows} rows of the base were written")
        time.sleep(0.01)
    os.killpg(job.pid, signal.SIGKILL)
    job.wait()
    return written()


def variables() -> dict[str, str]:
    """Of the processes: this checkout, no GPU, no hub."""
    from runs import environment

    return environment(CUDA_VISIBLE_DEVICES="")


def digests(run_folder: Path) -> dict[str, str]:
    """Every file that an evaluation leaves in its folder, the images too."""
    folder = run_folder / "evaluation"
    files = sorted(path for path in folder.rglob("*") if path.is_file() and ".parts" not in path.parts)
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def differing(one: Path, other: Path) -> list[str]:
    """Files that are not the same bytes in both, or only in one."""
    a, b = digests(one), digests(other)
    return sorted(name for name in a.keys() | b.keys() if a.get(name) != b.get(name))


def import_and_check(data: Path, out: Path) -> dict[str, Any]:
    """DreamBench as a manifest, and whether its rows are the data set's own."""
    from customized_grpo.data.dreambench import DreamBench
    from customized_grpo.data.manifest import ManifestDataset

    brought = timed(lambda: run(*ONE, "data", "import", "dreambench", str(data), "--out", str(out)))
    facts = out / "check.json"
    checked = timed(lambda: run(*ONE, "data", "check", str(out), "--json", str(facts)))
    manifest = ManifestDataset(ManifestDataset.Config(type="manifest", path=str(out / "manifest.jsonl")))
    own = DreamBench(DreamBench.Config(type="dreambench", path=str(data)))
    differ = sum(
        (a.key, a.prompt, [one.tobytes() for one in a.references])
        != (b.key, b.prompt, [one.tobytes() for one in b.references])
        for a, b in ((manifest[i], own[i]) for i in range(max(len(manifest), len(own))))
    )
    found = json.loads(facts.read_text())
    counts = {key: found[key] for key in ("rows", "images", "subjects", "usable", "ok")}
    return {"import": brought, "check": checked | counts, "rows_unlike_the_data_set": differ}


def baselines(run_folder: Path) -> dict[str, Any]:
    """The oracle and the copied reference: metric to mean, interval and number of subjects."""
    summary = json.loads((run_folder / "evaluation" / "summary.json").read_text())
    return {row["name"]: row["metrics"] for row in summary["rows"] if row["name"] in BASELINES}


def measured(data: Path, folder: Path, limit: int | None, steps: int) -> dict[str, Any]:
    """All of it, in ``folder``."""
    from dreambench_evaluation import evaluation, make_models

    models = make_models(folder / "models")
    total = min(limit or 750, 750)
    recipe = folder / "recipe.yaml"
    more = {"save_images": total} | ({} if limit is None else {"limit": limit})
    made = evaluation(models, data, folder / "once", steps=steps, **more)
    recipe.write_text(yaml.safe_dump(made, sort_keys=False), encoding="utf-8")

    def command(program: tuple[str, ...], name: str, *overrides: str) -> tuple[str, ...]:
        return (*program, "evaluate", str(recipe), f"run.dir={folder / name}", *overrides)

    result: dict[str, Any] = {"prompts": total, "steps": steps, "machine": machine()}
    result |= import_and_check(data, folder / "manifest")
    said(f"imported and checked: {result['check']}")
    runs = result["runs"] = {"once": timed(lambda: run(*command(ONE, "once")))}
    said(f"once: {runs['once']}")
    rows: list[int] = []

    def kill_and_go_on() -> None:
        rows.append(killed(folder / "killed", max(1, total // 2), *command(ONE, "killed")))
        run(*command(ONE, "killed"))

    for name, work in (
        ("again", lambda: run(*command(ONE, "again"))),
        ("two_processes", lambda: run(*command(TWO, "two_processes"))),
        ("killed", kill_and_go_on),
    ):
        runs[name] = timed(work)
        runs[name]["differing_files"] = differing(folder / "once", folder / name)
        said(f"{name}: {runs[name]}")
    result["killed_after_rows_of_the_base"] = rows[0]
    result["files_compared"] = len(digests(folder / "once"))
    shutil.copytree(folder / "once", folder / "input")
    runs["other_protocol"] = timed(lambda: run(*command(ONE, "input", f"evaluate.protocol={PROTOCOLS[1]}")))
    result["baselines"] = dict(zip(PROTOCOLS, (baselines(folder / name) for name in ("once", "input")), strict=True))
    return result


def machine() -> dict[str, Any]:
    """What the times are of."""
    return {"cores": os.cpu_count(), "python": platform.python_version(), "system": platform.platform()}


def said(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def page(result: dict[str, Any]) -> str:
    """The runs, and the baselines of both protocols."""
    runs = [
        [
            name.replace("_", " "),
            f"{one['seconds']:.0f}",
            f"{one['cpu_seconds']:.0f}",
            "-" if "differing_files" not in one else str(len(one["differing_files"])),
        ]
        for name, one in result["runs"].items()
    ]
    text = table(["Run", "Wall seconds", "CPU seconds", f"Other files of {result['files_compared']}"], runs)
    for protocol, rows in result["baselines"].items():
        columns = list(dict.fromkeys(column for metrics in rows.values() for column in metrics))
        lines = [
            [
                name,
                *(f"{metrics[c]['mean']:.2f} (n = {metrics[c]['n']})" if c in metrics else "-" for c in columns),
            ]
            for name, metrics in rows.items()
        ]
        text += f"\n\n{table([protocol, *columns], lines)}"
    return text


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data" / "dreambench")
    parser.add_argument("--limit", type=int, help="only so many prompts, for a trial; all 750 otherwise")
    parser.add_argument("--steps", type=int, default=2, help="of the sampler")
    parser.add_argument("--out", type=Path, default=RESULT)
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name:
        result = measured(given.data.resolve(), Path(name), given.limit, given.steps)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    said(page(result))
    same = not any(one.get("differing_files") for one in result["runs"].values())
    return int(not (same and result["check"]["ok"] and result["rows_unlike_the_data_set"] == 0))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
