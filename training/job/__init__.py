"""A job's life: its context, its events, its outcome, and the process that supervises it."""
