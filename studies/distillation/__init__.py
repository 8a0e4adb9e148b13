"""A distilled network compared with its posterior."""
