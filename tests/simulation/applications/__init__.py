"""Small blocking applications, wrong and right, as production code would have them, each with a scenario.

The wrong ones show that exploration finds their mistake and names it; the right ones that it never
accuses anybody else.
"""
