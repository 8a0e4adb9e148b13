"""The estimators compared with networks and linear models of scikit-learn."""
