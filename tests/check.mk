# What has to pass before a change lands. Each step is a target of its own.
.PHONY: check
check: all unit
