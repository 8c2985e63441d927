"""Draws from any density: importance sampling, Hamiltonian chains, ensembles, one random stream a galaxy.

May import synthesis and what is below it; not density, its neighbour.
Introduced in notebook 04 (Hamiltonian chains) and notebook 07 (importance sampling).
"""
