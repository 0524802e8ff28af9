"""What evaluation jobs measure, and how.

A stage imports this package before anything that loads torch.
"""

import os

# Read once, when tqdm is imported: the job's events show progress, bars would fill its log.
os.environ["TQDM_DISABLE"] = "1"

import training.engine  # noqa: F401  # how OpenMP's threads wait, which must be set before torch is loaded
