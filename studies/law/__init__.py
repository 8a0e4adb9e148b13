"""When flat-seeking training gains in NLL, from what one plain training shows."""
