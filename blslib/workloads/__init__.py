"""Batches of recommender queries, who makes them (synthetic, Criteo, Ali-CCP), and which tables are hot when."""
