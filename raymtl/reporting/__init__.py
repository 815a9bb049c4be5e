"""What people look at: the terminal, TensorBoard, the report, Ray's dashboard."""
