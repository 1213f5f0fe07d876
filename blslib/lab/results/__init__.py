"""What becomes of rows: files, claims with a verdict, figures."""
