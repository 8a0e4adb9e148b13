"""Run `python -m studies.radius` from the root of a checkout."""

from studies.radius.study import main

if __name__ == "__main__":
    main()
