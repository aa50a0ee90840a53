"""What one does with runs: evaluate, compare, ablate, analyse, report, export."""
