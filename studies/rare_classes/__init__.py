"""Class weights against decisions of least expected cost, where one class is rare."""
