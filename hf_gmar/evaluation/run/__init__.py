"""Runs an evaluation: measures each image and stores its rows."""
