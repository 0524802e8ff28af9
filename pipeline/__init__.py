"""The control plane: what exists, in which order, when. Imports no machine learning library."""
