"""Studies of single questions, each a folder with a README and a command `python -m studies.NAME`."""
