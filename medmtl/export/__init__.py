"""A bundle for those who do not have medmtl: ONNX, TorchScript, torch.export, a MONAI Bundle; each compared with it."""
