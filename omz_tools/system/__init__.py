"""What the tools need of the operating system: files that appear whole, other processes, heavy libraries."""
