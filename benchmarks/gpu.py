"""All that needs a GPU, in one command: ceilings, checks, benchmarks, and the fast CIFAR-10 recipe.

    python benchmarks/gpu.py --seconds 520 --out gpu.json --data FOLDER     # on a machine with an NVIDIA GPU
    python benchmarks/gpu.py --device cpu --seconds 60                      # dry run with small sizes

It needs torch, Lightning and the other core dependencies of flatbayes, no network, and no installation of flatbayes.
The file is rewritten after every result; what does not fit into the time is recorded as skipped, with the reason.
"""

import argparse
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

from gpu_report import Report
from gpu_runner import START_SECONDS, STOP_SECONDS, Task, Worker, run_sections

SECTIONS: dict[str, tuple[float, tuple[Task, ...]]] = {
    "ceilings": (
        10,
        (
            Task("copy", "gpu_ceilings:measure_copy"),
            Task("launch", "gpu_ceilings:measure_launch"),
            Task("matmul", "gpu_ceilings:measure_matmul"),
            Task("convolution", "gpu_ceilings:measure_convolution"),
        ),
    ),
    "checks": (
        150,
        (
            Task("host waits", "gpu_step_checks:check_host_waits"),
            Task("memory", "gpu_step_checks:check_memory"),
            Task("random state", "gpu_fit_checks:check_random_state"),
            Task("resume", "gpu_fit_checks:check_resume"),
            Task("mixed precision", "gpu_fit_checks:check_mixed_precision"),
            Task("overflow", "gpu_fit_checks:check_overflow"),
            Task("channels last", "gpu_fit_checks:check_channels_last"),
            Task("save and load", "gpu_fit_checks:check_save_and_load"),
            Task("recurrent network", "gpu_hessian_checks:check_recurrent_network"),
            Task("attention", "gpu_hessian_checks:check_attention"),
            Task("graph capture", "gpu_step_checks:check_graph_capture"),
            Task("process group", "gpu_fit_checks:check_process_group", 30),
            Task("gpu tests", "gpu_pairs:run_gpu_tests", 60),
            Task("pairs", "gpu_pairs:check_pairs", 70),
            Task("compilation", "gpu_fit_checks:check_compilation", 60),
        ),
    ),
    "benchmarks": (
        200,
        (
            Task("steps", "gpu_benchmarks:measure_steps", 80),
            Task("draws", "gpu_benchmarks:measure_draws", 40),
            Task("Laplace", "gpu_benchmarks:measure_laplace", 40),
            Task("scaling", "gpu_benchmarks:measure_scaling", 40),
        ),
    ),
    "recipe": (
        150,
        (Task("fast CIFAR-10", "gpu_recipe:run_recipe", 600),),
    ),
}
"""Seconds of each section if the command has 520, and its tasks."""
DRY_BUDGETS = {"ceilings": 5, "checks": 33, "benchmarks": 9, "recipe": 13}
"""Seconds of each section of a dry run, if the command has 60."""
DRY_RUN_SHARE = 0.115
"""Time limit of a task of a dry run, in that of `SECTIONS`."""
MACHINE = Task("machine", "gpu_ceilings:describe_machine", 60)


def main(arguments: list[str] | None = None) -> int:
    """Run the selected sections.

    Returns:
        0 if no task failed, 1 if one failed, 2 if there is no such device.
    """
    started = time.monotonic()
    options = parse_arguments(arguments)
    report = Report(
        options.out,
        {
            "date": time.strftime("%Y-%m-%d"),
            "command": {"seconds": options.seconds, "device": options.device, "data": bool(options.data)},
            "status": "running",
            "machine": {},
            "sections": {},
        },
    )
    settings = {"device": options.device, "data": options.data, "seconds": options.seconds}
    if options.out:
        settings["log"] = str(options.out.with_suffix(".log"))
    worker = Worker(settings)
    sections = {name: SECTIONS[name] for name in options.only}
    if options.device == "cpu":
        sections = {
            name: (DRY_BUDGETS[name], tuple(replace(task, limit=DRY_RUN_SHARE * task.limit) for task in tasks))
            for name, (_, tasks) in sections.items()
        }
    failures = 0
    try:
        last = started + options.seconds - STOP_SECONDS - START_SECONDS
        machine = worker.run(MACHINE, last, report.content["machine"].update, last)
        if machine["status"] != "passed":
            report.content["status"] = "no device"
            report.write()
            print(machine.get("message") or machine["reason"], file=sys.stderr)
            return 2
        left = options.seconds - (time.monotonic() - started)
        for section, name, record in run_sections(sections, worker, report, left):
            failures += record["status"] == "failed"
            print(format_record(section, name, record), flush=True)
        report.content |= {"status": "complete", "failures": failures}
        report.write()
    finally:
        worker.stop()
    return int(failures > 0)


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=520.0, help="limit of the whole command (default 520)")
    parser.add_argument("--out", type=Path, help="JSON file")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu is a dry run with small sizes")
    parser.add_argument("--only", nargs="+", default=list(SECTIONS), choices=list(SECTIONS), help="sections to run")
    parser.add_argument("--data", help="CIFAR-10: a folder or .npz file, see gpu_data.py (default: random images)")
    options = parser.parse_args(arguments)
    if options.seconds < 5:
        parser.error(f"--seconds must be at least 5, got {options.seconds:g}")
    if options.data and not Path(options.data).exists():
        parser.error(f"--data: there is nothing at {options.data}")
    return options


def format_record(section: str, name: str, record: dict) -> str:
    """A line on a task that ended."""
    status = record["status"]
    details = (
        record.get("reason") or record.get("message", "").partition("\n")[0] or record["result"].get("summary", "")
    )
    seconds = f" {record['seconds']:.1f} s" if "seconds" in record else ""
    return f"{section}: {name}: {status}{seconds}{': ' + details if details else ''}"


if __name__ == "__main__":
    root = Path(__file__).parents[1]
    sys.path[:0] = [str(root / "src"), str(root)]  # a worker gets the path of this process
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    sys.exit(main())
