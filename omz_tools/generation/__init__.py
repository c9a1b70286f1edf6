"""From a prompt to text: a converted model predicts one token after the other."""
