# Every command that a developer needs; `make` lists them.
#
# What is built for checks and tests is built once: in the release profile, with TLS. A test on 5 million readings is
# no use unoptimised, and clippy, rustdoc and the tests then share the C library's build.
MAKEFLAGS += --no-print-directory
ALL := --workspace --release --features tls
TOOLS := .cache/venv/bin
JOBS := 2
export CARGO_BUILD_JOBS ?= $(JOBS)
FUZZ_SECONDS ?= 60
SEEDS ?= 10000
SEED ?= 1

.DEFAULT_GOAL := help
.PHONY: help demo build check test sim docs fuzz advisories bench bench-peers bench-check bench-budget planted torture

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' Makefile

demo: ## alerts within seconds of the build: broker, sensors and pipeline in one process, nothing to install
	@for tool in cargo:'the Rust toolchain (rustup)' cc:'a C compiler (Debian: gcc)' make:'make'; do \
	    command -v "$${tool%%:*}" >/dev/null || { echo "demo needs $${tool#*:}: please install it" >&2; missing=1; }; \
	done; test -z "$$missing"
	cargo run --release -- demo

build: ## the program as it is shipped: release, with TLS and SASL SCRAM to Kafka (needs libssl-dev)
	cargo build --release --features tls

check: ## format, lints, docs, licences, unused dependencies, generated pages, scripts, deploy files
	@tests/servers/install.sh tools
	cargo fmt --all --check
	cargo clippy $(ALL) --all-targets --quiet -- -D warnings
	RUSTDOCFLAGS='-D warnings' cargo doc $(ALL) --no-deps --document-private-items --quiet
	$(TOOLS)/cargo-deny --log-level error --workspace check licenses bans sources
	@echo 'advisories: not checked here, RustSec'"'"'s database comes by git; see make advisories'
	$(TOOLS)/cargo-shear
	cargo run --release --features tls --quiet -- schema --check
	shellcheck -x tests/*.sh tests/servers/*.sh benches/peers/*.sh .ci/run
	PYTHONPYCACHEPREFIX=target/pycache python3 -m py_compile benches/peers/*.py
	promtool check rules deploy/prometheus/streamgauge.rules.yml
	promtool check config --syntax-only deploy/prometheus/prometheus.yml
	promtool test rules deploy/prometheus/streamgauge.test.yml
	$(TOOLS)/yamllint -d '{extends: relaxed, rules: {line-length: disable}}' deploy
	$(TOOLS)/hadolint deploy/Dockerfile
	tests/scan.sh

test: ## check, and every test, with a real Kafka, Redis and Prometheus that it installs and stops itself
	@tests/run.sh

planted: ## plants bugs in a scratch copy, and wants to see the tests that they name turn red
	@tests/planted.sh

torture: ## the long forms of what kills, fills, stops and cuts things: hours; counted in TESTED.md
	@tests/torture.sh

sim: ## the simulation over many seeds with faults: make sim SEEDS=10000 SEED=1
	SIM_SEED=$(SEED) SIM_SEEDS=$(SEEDS) cargo test --release --features tls --test simulation seeds_with_faults -- --nocapture

docs: ## rewrites the generated pages (check fails when they have drifted)
	cargo run --release --quiet --features tls -- schema --write

fuzz: ## what reads bytes from outside, under libFuzzer, FUZZ_SECONDS each (needs a nightly toolchain)
	@FUZZ_SECONDS=$(FUZZ_SECONDS) tests/fuzz.sh

advisories: ## known defects of our dependencies, from RustSec's database (where the network reaches it)
	@tests/servers/install.sh tools
	$(TOOLS)/cargo-deny --workspace check advisories

# BENCH=quick is a tenth of it, once; BENCH=job, BENCH='lz4 hot' and so on are parts (docs/performance.md).
BENCH ?=
bench: ## what it costs beside the floor and a straight-line program, on a real Kafka (BENCH=quick: in short)
	@tests/servers/install.sh
	cargo build --release --features streamgauge/tls -p streamgauge -p streamgauge-bench
	target/release/streamgauge-bench run $(BENCH)

bench-check: ## instructions per reading of each stage of the hot path, by valgrind, against their budget (fails beyond 3 %)
	cargo run --release --features tls --quiet --example hot_path -- check

bench-budget: ## writes that budget anew: in the commit that changes it, with the reason
	cargo run --release --features tls --quiet --example hot_path -- budget

bench-peers: ## the same job on Flink, Kafka Streams, Bytewax and a Python-and-Redis loop (docs/performance.md)
	@benches/peers/install.sh
	cargo build --release --features tls --quiet
	.cache/peers/venv/bin/python -B benches/peers/bench.py $(PEERS_ARGS)
