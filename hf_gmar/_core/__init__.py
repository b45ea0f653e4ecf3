"""A model, and one call of the model."""
