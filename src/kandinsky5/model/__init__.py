"""The network: `transformer` is the class, `blocks` its layers, `attention` and `embeddings` their leaves."""
