"""From the rows of an evaluation to a summary, and to a report that people read."""
