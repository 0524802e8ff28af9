"""MLflow: runs, metrics, lineage and models. No other room talks to it."""
