"""model.yml: read, judged, edited and shown."""
