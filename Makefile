CARGO ?= cargo
K8S   ?=

# The tests start planes of this version, too; empty: the newest.
ifneq ($(K8S),)
export LAGGARD_KUBERNETES := $(K8S)
endif

.DEFAULT_GOAL := help
.PHONY: help demo test minors soak bench assets lint docs clean

help: ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{ printf "  %-8s %s\n", $$1, $$2 }'

demo: assets ## the race, the wait, the deletion, on a real server
	$(CARGO) run --quiet --locked -p rollout-tests --bin demo

test: assets ## everything a change must pass
	scripts/test

minors: assets ## the operator's suite on each minor of Kubernetes that is here (LAGGARD_MINORS=all: on all of them)
	scripts/minors

soak: assets ## the long tests: worlds a thousand times, 200 kills a backend, the operator broken
	scripts/soak

bench: assets ## the figures, each against its limit (target/bench.jsonl)
	scripts/bench

assets: ## the servers of one Kubernetes version (K8S=1.37): found, downloaded, or built once (5 minutes)
	$(CARGO) run --quiet --locked -p laggard-cli -- assets get $(K8S) >/dev/null

lint: ## format, clippy, documentation, dependency rules
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --all-features --locked -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --workspace --no-deps --locked --quiet
	$(CARGO) deny --log-level error check bans licenses sources

docs: ## the reference pages
	$(CARGO) doc --workspace --no-deps --locked

clean: ## build output; the asset store stays
	$(CARGO) clean
