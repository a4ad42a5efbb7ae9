"""What crosses between families: files, layouts and records. Standard library and pyarrow only."""
