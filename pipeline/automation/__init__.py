"""What starts runs without a person: the nightly schedule and the sensors."""
