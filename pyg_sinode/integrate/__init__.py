"""How is an initial value problem integrated? Internal: use :func:`pyg_sinode.imex_odeint`."""
