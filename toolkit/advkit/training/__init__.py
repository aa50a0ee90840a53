"""The step, the loop around it, and what starts one."""
