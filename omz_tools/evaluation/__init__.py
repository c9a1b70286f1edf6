"""What a converted model is worth and what it costs: perplexity, operations, parameters."""
