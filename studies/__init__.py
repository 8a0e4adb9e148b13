"""Studies: scripts and packages that produce the results of the documentation; not part of the wheel."""
