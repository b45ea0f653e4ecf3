"""One model and one call of it."""
