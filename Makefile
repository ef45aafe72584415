# make check   while you work: ruff, mypy, and the unit tests on one Python, on all processors, without
#              those that take long (the marker slow)
# make test    what a change must pass to land: lint, unit tests on the oldest and the newest Python,
#              other NBD programs, and the core of the kernel tests in virtual machines
# make test-all   the whole matrix: unit tests on each Python, on one in their long form, all kernel
#              tests, also on Linux 7.3, systemd and udev, Ceph's S3 gateway. ARGS=--resume goes on where
#              an earlier run of this tree stopped
# make demo    show what the library does, in a virtual machine
# make demo-s3 a disk in an S3 bucket, whose server is killed, likewise
# make bench   aiovblk and its peers side by side: CPU time, requests per second, memory, on sockets
#              (15 minutes) and in the hands of a kernel in a VM (15 more; --no-vm leaves that out)
# make demo-record  run the demo, and record it as docs/demo.svg and docs/demo.cast
# make packages  sdist and wheel, and packages for Debian 12 and 13, in dist/
# make man     manual pages in build/man, from the parser of the command
# make completion   completions for bash, zsh and fish in build/completion, likewise
# make docs    build the site in build/docs/html, with every warning an error
# make docs-links   ask each address outside that the site links to
# make lint    ruff, mypy and codespell alone
# make setup   what make test needs: Debian packages, and an environment for each of its Pythons.
#              The other targets do their own set-up
# make clean   remove what the others made in the checkout (kernels and Ceph stay in ~/.cache/aiovblk)
#
# PYTHON=python3.12             the interpreter of .venv
# PYTHONS="3.11 3.13"           the versions to test on
# KERNELS="6.12"                the kernels to test on: 6.1, 6.12, 7.3, host
# ARGS="--only rgw"             what to tell tools/test; tools/test --help tells what there is
# BENCH="--quick --against main"  what to tell the benchmark: two minutes, this tree and another in
#                               turns; BENCH=--help tells what there is
# PACKAGES="deb trixie"         which packages to build; tools/packages --help tells what there is

PYTHON ?= python3
export PYTHON PYTHONS KERNELS

.PHONY: setup check test test-all test-systemd test-rgw demo demo-s3 demo-record bench man completion packages docs docs-links lint clean

setup:
	@tools/setup test

check:
	@tools/setup check
	@tools/test check $(ARGS)

test: setup
	@tools/test test $(ARGS)

test-all:
	@tools/setup all
	@tools/test all $(ARGS)

# Two stages of test-all.
test-systemd: setup
	@tools/test systemd

test-rgw:
	@tools/setup rgw
	@tools/test rgw

demo:
	@tools/setup demo
	@tools/demo

demo-s3:
	@tools/setup demo
	@tools/demo s3

demo-record:
	@tools/setup demo
	@.venv/bin/python tools/recording.py

bench:
	@tools/setup bench
	@.venv/bin/python -m pip install -qq --disable-pip-version-check -e ".[bench]"
	@.venv/bin/python -m bench $(BENCH)

# Packages for Debian are built on Debian, and for the Pythons of its releases.
packages:
	@tools/setup packages
	@tools/packages $(PACKAGES)

man completion:
	@tools/setup check
	@PYTHONPATH=tools .venv/bin/python -m commandref $@ build/$@

docs:
	@tools/setup check
	@rm -rf build/docs/html
	@tools/test docs
	@echo "open build/docs/html/index.html"

docs-links:
	@tools/setup check
	@.venv/bin/python -m sphinx -q -b linkcheck docs build/docs/links

lint:
	@tools/setup check
	@tools/test lint

clean:
	rm -rf .venv .venvs build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
