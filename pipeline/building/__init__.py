"""What a build is: the plan of an asset, its job, its judgement, and what a person may decide."""
