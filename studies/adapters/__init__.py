"""How much noise adapters tolerate after a plain training and after one with SAM."""
