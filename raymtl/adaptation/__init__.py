"""A trained run on new examples: adapt to an episode, or transfer to a new task."""
