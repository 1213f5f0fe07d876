"""What is measured: scenarios, and experiments that take a configuration and return rows."""
