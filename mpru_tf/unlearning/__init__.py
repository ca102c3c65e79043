"""Unlearning in the weights, for those who must hand out the file: UNSIR (noise, impair, repair), and publishing."""
