"""False and right alarms of the self-checks."""
