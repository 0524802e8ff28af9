"""What Dagster loads: assets, checks, resources, schedules and sensors. Only `cli` knows Dagster too."""
