"""Several processes: that train one network together, or many side by side."""
