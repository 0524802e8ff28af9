"""`python -m training.run job.json`: run one stage. The work is in `training.job.runner`."""

import os
import sys

from training.job.runner import main
from training.job.supervisor import die_with_parent

if __name__ == "__main__":
    if "GATEHOUSE_SUPERVISED" in os.environ:
        die_with_parent()
    sys.exit(main(sys.argv[1:]))
