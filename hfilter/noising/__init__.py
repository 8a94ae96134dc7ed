"""Noise as a function of (seed, purpose, step, sample), schedules of it, and channels that apply it."""
