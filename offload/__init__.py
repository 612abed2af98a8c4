"""Mechanism: the seam in llama.cpp's graph, the experts' memory and reads, their products."""
