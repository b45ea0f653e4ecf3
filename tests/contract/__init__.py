"""What holds for every model and every method."""
