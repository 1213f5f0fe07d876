"""Batches of recommender queries, and who makes them: synthetic, Criteo, Ali-CCP, lookup traces."""
