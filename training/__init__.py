"""What runs inside a job. Imports neither Dagster nor MLflow; `python -m training.run job.json` is its only entry."""
