"""Who acts: samples the student, and knows the tasks, their verifiers and their rewards.

engines/ computes the next token, tasks/ draws questions and verifies answers, environments/ answers over several turns,
sandbox/ runs what a model wrote. sampler.py makes every sampler of a run, prompts.py draws a step's prompts, of which
mixture.py says how many of each domain; tokenizer.py goes between text and token ids. verifiers.py judges answers
(answers.py knows where they stand; quantities.py, choices.py and programs.py what they say), and rewards.py turns
verdicts into rewards. To add an engine or a task: a file and a row in that room. Imports distill, and neither its
student nor its losses.
"""
