"""Time, memory, values and LDS beside other packages, one file each; run by ``python -m benchmarks.peers``."""
