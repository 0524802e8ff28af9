"""One module a stage, all of one shape: `Section` and `run(context)`."""
