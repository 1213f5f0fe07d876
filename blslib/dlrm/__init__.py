"""The deep-learning recommendation model: tables sharded over ranks, and the inference loop over any exchange."""
