"""One model for all tasks, merged from models that were trained on one task each."""
