"""Make the manual pages and the completions of the command from its parser."""
