"""What is seen of a training while it runs: bars, lines, logs, and what it costs."""
