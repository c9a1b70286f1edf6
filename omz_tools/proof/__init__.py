"""How far the outputs are from the PyTorch model, and the manifest that says so."""
