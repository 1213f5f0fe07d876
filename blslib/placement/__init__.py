"""Where tables lie: tables as values, shards of them, strategies that place them, and the optimum as yardstick."""
