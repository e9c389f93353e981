"""How is an initial value problem integrated? Internal: ask :func:`pyg_sinode.imex_odeint`."""
