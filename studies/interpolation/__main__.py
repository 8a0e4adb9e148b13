"""Run the study, or write what has finished.

FLATBAYES_DATA=... python -m studies.interpolation RUNS --settings digits-mlp
python -m studies.interpolation RUNS --summary docs/results/interpolation.json --page docs/interpolation.md
"""

import argparse
from pathlib import Path

from flatbayes.core.files import read_json, replace_nonfinite, write_json
from studies.interpolation.page import update_page
from studies.interpolation.settings import MAKERS, get_setting
from studies.interpolation.study import run_setting
from studies.interpolation.summary import summarize


def main() -> None:
    """Run what is missing; with `--summary` or `--page`, only write what has finished."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder of the runs")
    parser.add_argument("--settings", nargs="+", choices=MAKERS, default=list(MAKERS))
    parser.add_argument("--methods", nargs="+", help="methods to run; by default all")
    parser.add_argument("--summary", type=Path, help="write the numbers to this file; settings with more are kept")
    parser.add_argument("--page", type=Path, help="write the tables to this page, from the file of --summary")
    options = parser.parse_args()
    settings = [get_setting(name) for name in options.settings]
    if options.summary is None:
        for setting in settings:
            for failure in run_setting(setting, options.folder / setting.name, options.methods):
                print("failed:", failure, flush=True)
        return
    earlier = read_json(options.summary) if options.summary.is_file() else None
    write_json(options.summary, replace_nonfinite(summarize(options.folder, settings, earlier)))
    if options.page is not None:
        update_page(options.page, read_json(options.summary))


if __name__ == "__main__":
    main()
