"""The sandbox: programs and formulas that a model wrote are run in a process of their own, which can do no harm.

run.py starts and ends that process and reads its verdicts; child.py is what runs in it, behind lock.py's limits of the
operating system. rules.py says which Python a program may use, safe_stdlib.py which modules; formulas.py compares
formulas. To let programs use a module more: a row in safe_stdlib.py, and a test that tries to break out through it.
"""
