"""What a recipe will take, and whether there is room for it.

processes.py has the bytes of each process by role, and which lie on one card; their formulas are in
distill/models/memory.py. totals.py adds up tokens, compute and disk, room.py holds the plan against a machine, view.py
prints it. To count another role, name it where a process holds it (`held`) or at the moment that takes it (`moments`).
"""
