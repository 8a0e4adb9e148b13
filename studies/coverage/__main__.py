"""Coverage of conformal prediction at 90 % for every posterior, over 200 random splits of five data sets.

    FLATBAYES_DATA=... python -m studies.coverage runs/coverage
    python -m studies.coverage runs/coverage --summary docs/results/conformal-coverage.json --page docs/coverage.md

The same command resumes an interrupted run: what has a file is not trained again.
"""

import argparse
import os
from dataclasses import asdict
from pathlib import Path

import torch

from flatbayes.core.files import write_json
from studies.coverage.page import write_page
from studies.coverage.study import DATA, UCI_NAMES, list_posteriors, load_results, run_study


def main(arguments: list[str] | None = None) -> None:
    """Run the study, or write its page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder of the results")
    parser.add_argument("--data", nargs="+", choices=list(DATA), help="data sets; by default all that are there")
    parser.add_argument("--posteriors", nargs="+", choices=list(list_posteriors()), help="by default all")
    parser.add_argument("--summary", type=Path, help="write all results to this JSON file, and train nothing")
    parser.add_argument("--page", type=Path, help="fill the tables of this page, and train nothing")
    options = parser.parse_args(arguments)
    if options.summary is not None or options.page is not None:
        results = load_results(options.folder)
        if options.summary is not None:
            write_json(options.summary, [asdict(result) for result in results])
        if options.page is not None:
            write_page(options.page, results)
        return
    torch.set_num_threads(1)
    has_uci = "FLATBAYES_DATA" in os.environ
    if not has_uci:
        print(f"FLATBAYES_DATA is not set: {', '.join(UCI_NAMES)} are left out")
    data_names = options.data or [name for name in DATA if has_uci or name not in UCI_NAMES]
    for failure in run_study(options.folder, data_names, options.posteriors or list(list_posteriors())):
        print(f"failed: {failure}")


if __name__ == "__main__":
    main()
