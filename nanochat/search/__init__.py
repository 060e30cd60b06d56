"""Searching for the best model within a wall-clock cap: the law that predicts quality, the policy that spends the time,
and a simulator of both. Pure functions of configs and results: no Ray, no clock, no files."""
