"""What runs use: launchers, the store, the MLflow tracker."""
