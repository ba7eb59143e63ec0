"""Is a recipe sound, and what will it take? Nothing is started but the sandbox, and no weight is loaded.

``static`` asks all others in turn and collects what is wrong, a sentence a problem: ``routes`` and ``settings`` look
at the recipe by itself, ``tasks`` at prompts drawn from it, ``model_info`` and ``models`` at configurations and
tokenizers, ``plugins`` at a user's own files. ``plan`` estimates processes, memory, tokens and disk; ``study`` does
it for a study. A further check is a function that returns sentences, in the file of its subject, and its call in
``static``.
"""
