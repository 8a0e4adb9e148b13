"""What the studies of fine-tuning share: summary of the finished trainings, and tables of the page."""
