"""What the four training stages share, from the process group to the model card.

What must be set before torch is loaded is set here: a stage imports this package before anything that loads torch.
"""

import logging
import os

# By default OpenMP's threads spin while they wait for each other. With another process on a core, that slows training
# down five times on two cores (1,900 instead of 9,500 tokens/s measured). Sleeping at once costs a fifth of a small
# model's speed on a quiet machine (16,300 instead of 20,200); a short spin before sleeping has most of both.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

# torchao and torch warn at import about GPU extensions and enums, before anything could be configured.
for _name in ("torchao", "torch.utils._pytree"):
    logging.getLogger(_name).setLevel(logging.ERROR)
