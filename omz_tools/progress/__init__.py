"""What people and programs see while the tools work, and how it is put."""
