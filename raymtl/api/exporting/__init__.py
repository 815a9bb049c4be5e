"""A model as a graph of tensors with its preprocessing inside, for torch.export and for ONNX."""
