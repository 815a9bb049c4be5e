"""What the pages of Ray's dashboard show of the trainings of a run."""
