"""Run the project's checks and tests, in three sizes and by stage.

    cli.py           the command line
    stages.py        what each stage runs, and which stages a size has
    environments.py  the Pythons of `make setup`, and the commands that run pytest on them
    steps.py         commands at work: output, deadlines, several at the same time
    records.py       what has passed for which state of the tree, for --resume
    report.py        the table at the end, the slowest tests, and the same as JSON

Only the standard library is used.
"""
