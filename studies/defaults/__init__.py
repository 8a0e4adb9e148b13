"""Benchmark of the defaults on small data sets, against the models of scikit-learn."""
