"""Run `python -m studies.uci` from the root of a checkout."""

from studies.uci.study import main

if __name__ == "__main__":
    main()
