r"""Defaults of posteriors, estimators and command line on 25 data sets, against the models of scikit-learn.

    FLATBAYES_DATA=... python -m studies.defaults runs/defaults
    FLATBAYES_DATA=... python -m studies.defaults runs/defaults --half choice --only SWAG estimator
    python -m studies.defaults runs/defaults --summary docs/results/defaults-after.json \
        --page docs/defaults.md --before docs/results/defaults-before.json --readme README.md

The same command resumes an interrupted run: what has a record is not fitted again.
"""

import argparse
from pathlib import Path

from studies.defaults.page import restore_results, write_page, write_summary
from studies.defaults.runner import TIMEOUT_SECONDS, Job, run_jobs
from studies.defaults.tasks import select_tasks


def main(arguments: list[str] | None = None) -> None:
    """Run the benchmark, or write its page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder of the results")
    parser.add_argument("--tasks", nargs="+", help="data sets; by default all whose data are there")
    parser.add_argument("--half", choices=("choice", "held-out"), help="one half of the data sets")
    parser.add_argument("--only", nargs="+", default=(), help="methods: SWAG, estimator, linear, truth ...")
    parser.add_argument("--seeds", type=int, help="largest number of splits of a data set")
    parser.add_argument("--jobs", type=int, default=1, help="parallel processes, of one thread each")
    parser.add_argument("--timeout", type=float, default=TIMEOUT_SECONDS, help="longest time of a fit in seconds")
    parser.add_argument("--summary", type=Path, help="write all results to this JSON file, and fit nothing")
    parser.add_argument("--page", type=Path, help="fill the tables of this page from --summary files")
    parser.add_argument("--before", type=Path, help="summary of an earlier run, for the page")
    parser.add_argument("--readme", type=Path, help="README.md, whose paragraph on defaults is written")
    parser.add_argument("--restore", type=Path, help="continue from the results in this summary")
    options = parser.parse_args(arguments)
    if options.restore is not None:
        options.folder.mkdir(parents=True, exist_ok=True)
        restore_results(options.restore, options.folder)
    if options.summary is not None:
        write_summary(options.folder, options.summary)
    if options.page is not None:
        write_page(options.page, options.summary, options.before, options.readme)
    if options.summary is not None or options.page is not None:
        return
    jobs = [
        Job(task, seed, options.folder, tuple(options.only), options.timeout)
        for task in select_tasks(options.tasks, options.half)
        for seed in range(min(task.num_seeds, options.seeds or task.num_seeds))
    ]
    for message in run_jobs(jobs, options.jobs):
        print(f"failed: {message}")


if __name__ == "__main__":
    main()
