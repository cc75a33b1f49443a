"""Models for prediction without torch: one ONNX graph from waveform to logits, and its record.

``model_graph`` writes the graph of a trained model, and ``export`` the folder that holds it, after
comparing its answers with torch's. ``exported_model`` reads such a folder and runs it; it needs
NumPy and onnxruntime alone. ``package_reader`` reads one for torch, so that devices learn with it.
"""

__all__ = [
    "encoder_graph",
    "export",
    "exported_model",
    "graph_writer",
    "model_graph",
    "package_reader",
]
