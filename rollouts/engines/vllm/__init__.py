"""vLLM as an engine: servers that a run starts beside its student, in a Python of their own.

process.py is the one file that runs in that Python: a vLLM engine that answers requests. server.py owns one such
process in a host of Ray's, and files.py writes what it reads; requests.py says what a batch of rollouts asks of it.
pool.py has all servers of a run: lost ones are started again, and published weights are compared with the student's.
engine.py is the row, bound to a recipe. To add a transport of weights: a value of `rollout.vllm.transport`, a line of
:func:`files.transport_of`, a branch of :meth:`server.VLLMServer.publish`, and a request of process.py.
"""
