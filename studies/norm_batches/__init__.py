"""Number of training batches that BatchNorm statistics of a draw need."""
