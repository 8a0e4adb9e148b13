"""Drawing code of all figures, on matplotlib axes and from plain numbers."""
