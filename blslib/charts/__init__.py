"""Charts: a table in, an Altair chart out; one colour, one meaning."""
