"""What the four training stages share, from the process group to the model card."""

import logging

# torchao and torch warn at import about GPU extensions and enums, before anything could be configured.
for _name in ("torchao", "torch.utils._pytree"):
    logging.getLogger(_name).setLevel(logging.ERROR)
