"""Jobs: start, follow and end their processes. Nothing here knows Dagster."""
