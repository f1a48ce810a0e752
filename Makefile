# The table of contents. CI calls these targets and nothing else.
.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c

DEVCLUSTER := target/debug/devcluster
# A static binary without a musl toolchain: glibc linked in whole.
STATIC := RUSTFLAGS="-C target-feature=+crt-static" cargo build --quiet --release --target x86_64-unknown-linux-gnu
BINARIES := target/x86_64-unknown-linux-gnu/release
CARGO_DENY_VERSION := 0.20.2
CARGO_DENY_ROOT := $(or $(PADDOCK_CACHE),$(or $(HOME),/root)/.cache/paddock)/tools/cargo-deny-$(CARGO_DENY_VERSION)
CARGO_DENY := $(CARGO_DENY_ROOT)/bin/cargo-deny

.PHONY: help
help: ## Tell what there is
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: demo
demo: install ## Start the cluster, install the chart, run one Python script in gVisor
	@./hack/demo

.PHONY: test
test: check unit e2e ## Everything that is tested: check, unit, e2e

.PHONY: check
check: packages $(CARGO_DENY) ## Format, lints, generated files, chart, licences
	cargo fmt --all -- --check
	cargo clippy --quiet --workspace --all-targets -- -D warnings
	cargo test --quiet -p paddock-crds --test generated
	$$($(DEVCLUSTER) tool helm) lint --quiet --strict charts/paddock
	$(CARGO_DENY) --log-level error --locked check --hide-inclusion-graph licenses bans sources

$(CARGO_DENY):
	@echo "building cargo-deny"
	@CARGO_TARGET_DIR=$(CARGO_DENY_ROOT)/build cargo install --quiet --debug --locked --root $(CARGO_DENY_ROOT) cargo-deny@$(CARGO_DENY_VERSION)
	@rm -rf $(CARGO_DENY_ROOT)/build

.PHONY: advisories
advisories: $(CARGO_DENY) ## Known vulnerabilities of what is linked; fetches the advisory database
	$(CARGO_DENY) --locked check advisories

.PHONY: unit
unit: ## Tests that need nothing but Rust
	cargo test --quiet

# Those that leave the cluster alone, and those that do not: where one of the latter breaks it, the cause stands at the end of the output.
SUITES := api approvals attacks chart cli confinement contract documents economy examples failures gateway_secrets gitops images interpreters languages leftovers monitoring network observed policies pool preflight refusals scripts tutorial
DISTURBING := capabilities doctor egress everyone queue store traces webhook disruption lifecycle

# Programs that tests call. Built before: beside a compiler, sandboxes come late.
TOOLS := helm kind krew promtool tlog
SUITE := cargo test --quiet -p paddock-e2e --test suite --

.PHONY: e2e
e2e: export RUST_BACKTRACE = 0
e2e: cluster ## Tests on the local cluster
	cargo test --quiet -p paddock-e2e --lib --bins --test devcluster
	@$(MAKE) --no-print-directory install
	cargo build --quiet -p paddock-cli
	@for tool in $(TOOLS); do $(DEVCLUSTER) tool $$tool > /dev/null; done
	$(SUITE) --test-threads=5 $(SUITES:%=%::)
	@./hack/previous
	for suite in $(DISTURBING); do echo "suite $$suite"; $(SUITE) --test-threads=4 $$suite::; done
	CHAOS_RUNS=120 $(SUITE) --nocapture chaos::
	$(SUITE) rights::

.PHONY: e2e-warm
e2e-warm: install ## What holds of scripts, once more in sandboxes that waited in pools
	PADDOCK_E2E_WARM=1 $(SUITE) --test-threads=3 scripts:: languages:: attacks::

.PHONY: e2e-kind
e2e-kind: packages binaries ## A part of the suite on a kind cluster with gVisor; needs Docker
	@./hack/e2e-kind $(BINARIES)

.PHONY: chaos
chaos: install ## Two hundred runs while what runs them is killed at random; CHAOS_SEED repeats a sequence
	$(SUITE) --nocapture chaos::

# Without the test whose injector is a kind that this version does not serve.
OLDEST_SUITES := api approvals attacks confinement contract gateway_secrets interpreters policies pool preflight refusals scripts

.PHONY: e2e-oldest
e2e-oldest: export PADDOCK_KUBERNETES = 1.33
e2e-oldest: packages ## Suites on the oldest Kubernetes that the chart installs on, 1.33, where a webhook stamps; ends the cluster that runs
	target/debug/devcluster down
	$(MAKE) install
	$(SUITE) --test-threads=5 $(addsuffix ::,$(OLDEST_SUITES))
	target/debug/devcluster down

FUZZ_SECONDS := 60

.PHONY: fuzz
fuzz: ## Fuzz what reads hostile bytes, FUZZ_SECONDS each; needs cargo-fuzz and a nightly compiler
	cargo +nightly fuzz run reader -- -max_total_time=$(FUZZ_SECONDS)
	cargo +nightly fuzz run mask -- -max_total_time=$(FUZZ_SECONDS)
	cargo +nightly fuzz run hello -- -max_total_time=$(FUZZ_SECONDS)
	cargo +nightly fuzz run script -- -max_total_time=$(FUZZ_SECONDS) -detect_leaks=0

.PHONY: bench-run
bench-run: install ## Cold runs beside bare pods, as one JSON line
	@cargo run --quiet -p paddock-e2e --example bench run

.PHONY: bench-burst
bench-burst: install ## A hundred runs at once beside a hundred bare pods, as one JSON line
	@cargo run --quiet -p paddock-e2e --example bench burst

.PHONY: bench-warm
bench-warm: install ## Runs that are given a sandbox which waits, beside cold runs and bare pods, as one JSON line
	@cargo run --quiet -p paddock-e2e --example bench warm

.PHONY: bench-policy
bench-policy: ## One decision beside Rego and Cedar over the same rules, in microseconds, as JSON lines
	@cargo run --quiet --release --manifest-path bench/Cargo.toml

.PHONY: bench-egress
bench-egress: ## The egress gateway beside direct connections, Squid and tinyproxy, as one JSON line; as root, with mmdebstrap
	@cargo build --quiet --release -p paddock-egress
	@test -d target/bench-egress || mmdebstrap --variant=extract --quiet --include=squid-openssl,tinyproxy-bin bookworm target/bench-egress
	@ulimit -n $$(ulimit -Hn) && cargo run --quiet --release --manifest-path bench/Cargo.toml --bin paddock-bench-egress -- target/release/paddock-egress target/bench-egress

.PHONY: bench-queue
bench-queue: ## One decision of the queue where 10,000 runs wait in 100 tenants
	@cargo test --release --quiet -p paddock-operator a_decision_among -- --nocapture --test-threads=1

.PHONY: sbom
sbom: packages ## What is in each binary and each runtime's image, as CycloneDX in target/sbom; needs python3-venv
	@./hack/sbom

.PHONY: generate
generate: ## Write the files that are made from the types and the chart
	cargo run --quiet -p paddock-crds --bin crdgen
	@cargo build --quiet -p paddock-e2e
	@$$($(DEVCLUSTER) tool helm) template paddock charts/paddock --namespace paddock-system --no-hooks --skip-tests > manifests/install/paddock.yaml

.PHONY: cluster
cluster: packages ## Start the local cluster
	@$(DEVCLUSTER) up

.PHONY: binaries
binaries: ## Build the static binaries of operator, runner and egress gateway
	@$(STATIC) -p paddock-operator -p paddock-egress
	@$(STATIC:--release=--profile runner) -p paddock-runner
	@cp target/x86_64-unknown-linux-gnu/runner/paddock-runner $(BINARIES)/paddock-runner

.PHONY: cli
cli: ## Build kubectl-paddock, a static binary
	@$(STATIC) -p paddock-cli
	@ln -sf kubectl-paddock $(BINARIES)/kubectl_complete-paddock
	@echo "$(BINARIES)/kubectl-paddock"

.PHONY: install
install: cluster binaries ## Install the chart on the local cluster
	@./hack/install $(BINARIES)

.PHONY: down
down: ## End the local cluster
	@cargo build --quiet -p paddock-e2e
	@$(DEVCLUSTER) down

.PHONY: packages
packages: ## Install the Debian packages that are missing (as root), and say which
	@cargo build --quiet -p paddock-e2e
	@$(DEVCLUSTER) packages
