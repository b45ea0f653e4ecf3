"""Run an evaluation: what is measured on each image, and where its rows are kept."""
