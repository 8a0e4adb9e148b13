"""Whether the log evidence tells which network predicts best."""
