"""Gates: measure once per version, judge, certify, promote."""
