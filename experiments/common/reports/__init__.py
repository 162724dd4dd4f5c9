"""What is made of results: statistics, tables, pictures."""
