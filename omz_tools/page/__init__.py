"""A page in the browser to try a model with: a prompt, how tokens are chosen, and the text as it comes."""
