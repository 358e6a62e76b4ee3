"""Other libraries that write files, and what is asked of them: shared by the comparison and the migration pages."""
