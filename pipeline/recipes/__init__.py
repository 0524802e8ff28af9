"""Recipes and launchers: YAML to frozen specs, and every mistake with its file and line."""
