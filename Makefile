# make setup   what the project needs: Debian packages, and .venv with its tools
# make demo    show what the library does, in a virtual machine
# make demo-s3 a disk in an S3 bucket, whose server is killed, likewise
# make test    everything: lint, unit tests on each Python, other NBD programs, kernel tests in VMs
# make test-systemd   the packaged unit, and life with udev, in Debians of their own (not in make test)
# make test-rgw       disks in Ceph's S3 gateway (not in make test). It installs nothing and starts no
#              service: unless Ceph is there, Debian's packages are unpacked to ~/.cache/aiovblk/ceph
#              (ceph-mon, ceph-osd, ceph-common, radosgw and what they need, 60 MB), and a cluster of
#              three processes runs in a temporary folder while the tests do
# make bench   aiovblk and its peers side by side: CPU time, requests per second, memory, on sockets
#              and in the hands of a kernel in a VM (15 minutes)
# make lint    ruff and mypy alone
# make clean   remove what the others made in the checkout (kernels and Ceph stay in ~/.cache/aiovblk)
#
# PYTHON=python3.12             the interpreter of .venv
# PYTHONS="3.11 3.13"           the versions to test on
# BENCH="--quick --no-vm"       what to tell the benchmark; BENCH=--help tells what there is
# KERNELS="6.12"                the kernels to test on: 6.1, 6.12, host

PYTHON ?= python3
export PYTHON PYTHONS KERNELS

.PHONY: setup demo demo-s3 test test-systemd test-rgw bench lint clean

setup:
	@tools/setup

demo: setup
	@tools/demo

demo-s3: setup
	@tools/demo s3

test: setup
	@tools/test

test-systemd: setup
	@tools/test systemd

test-rgw: setup
	@tools/setup rgw
	@tools/test rgw

bench: setup
	@.venv/bin/python -m pip install -qq --disable-pip-version-check -e ".[bench]"
	@.venv/bin/python -m bench $(BENCH)

lint: setup
	@tools/test lint

clean:
	rm -rf .venv .venvs build *.egg-info .mypy_cache .ruff_cache .pytest_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
