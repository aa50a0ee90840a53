"""Nets and images under attack: verdicts, statistics, audit. Knows no run folder."""
