"""Summarizes the rows of an evaluation and writes the report."""
