"""What the pages and the API of Ray's dashboard are told of the trainings of a run."""
