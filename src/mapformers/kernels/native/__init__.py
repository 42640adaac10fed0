"""The native kernels for the CPU: C++ sources, compiled on first use, checked, and never required."""
