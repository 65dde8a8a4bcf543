# One verb each; `make` lists them. Everything is built with one profile (dev), so that nothing is compiled twice.
SHELL := /bin/bash
CARGO ?= cargo
NPM ?= npm
SEED ?= 1
TIME ?= 1200
POSTGRES := projections/tests/postgres
TORTURE = $${CARGO_TARGET_DIR:-target}/debug/cvlan-sim torture --seed $(SEED)
CUT = $${CARGO_TARGET_DIR:-target}/debug/cvlan-sim cut --seed $(SEED)
UI_SOURCES := $(shell find ui/src ui/index.html ui/public ui/package.json ui/package-lock.json ui/vite.config.ts ui/tsconfig.json -type f 2>/dev/null)
BINS := -p cvlan-api -p cvlan-client -p cvlan-cli

.DEFAULT_GOAL := help
.PHONY: help build demo demo-ready cluster test test-tools test-rust test-ui torture torture-short same check fix bench sim gen ui audit clean

help: ## list the verbs
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

build: ui ## build every program into target/debug
	@$(CARGO) build $(BINS) --bins

demo: demo-ready build ## a controller and three machines that ping through the tunnel; ONCE=1 exits at the end, CLUSTER=1 has three
	@CLUSTER=$(CLUSTER) deploy/demo.sh

cluster: build ## three controllers on loopback to play with; ONCE=1 exits at the end
	@deploy/cluster.sh

# Before the build: nobody should wait for what cannot be.
demo-ready:
	@deploy/tools.sh cc
	@deploy/demo.sh ready

test: test-tools test-rust torture-short test-ui ## every test, incl. the browser's, a short torture and the demo
	@ONCE=1 deploy/demo.sh || { code=$$?; [ $$code = 77 ] && echo "SKIPPED: the demo needs the right to make network namespaces" || exit $$code; }

test-tools:
	@deploy/tools.sh cc ip nft mkfs.ext4 ping chromium go

test-rust: ui $(POSTGRES)/node_modules/.stamp
	@$(CARGO) build --workspace --bins
	@$(CARGO) test --workspace

# The programs are those that test-rust has built.
torture-short:
	@$(CARGO) build --workspace --bins
	@$(CUT) --times 5 || { code=$$?; [ $$code = 77 ] && echo "SKIPPED: the power cuts need the right to mount file systems" || exit $$code; }
	@$(TORTURE) --seconds 75 || { code=$$?; [ $$code = 77 ] && echo "SKIPPED: the torture needs the right to make network namespaces" || exit $$code; }

torture: ui ## 100 power cuts of each log store; three real controllers under faults for 20 minutes, and a proof; TIME=seconds, SEED=42, FAILOVER=20
	@deploy/tools.sh cc ip nft mkfs.ext4
	@$(CARGO) build --workspace --bins
	@$(if $(FAILOVER),,$(CUT))
	@$(TORTURE) --seconds $(TIME) $(if $(FAILOVER),--failover $(FAILOVER))
	@$(if $(FAILOVER)$(filter-out 1200,$(TIME)),,$(MAKE) --no-print-directory same)

same: ## three seeds of the simulation have the same digests in a debug and in a release build
	@$(CARGO) build -p cvlan-sim --bin cvlan-sim
	@$(CARGO) build --release -p cvlan-sim --bin cvlan-sim
	@$${CARGO_TARGET_DIR:-target}/debug/cvlan-sim same --other $${CARGO_TARGET_DIR:-target}/release/cvlan-sim

test-ui: ui
	@$(CARGO) build $(BINS) --bins
	@cd ui && $(NPM) run --silent test && $(NPM) run --silent e2e

check: ui/node_modules/.stamp ## read-only: formatting, lints, licences, generated files, protocol compatibility
	@$(CARGO) fmt --all --check
	@mkdir -p ui/dist
	@$(CARGO) clippy --workspace --all-targets -- -D warnings
	@$(CARGO) test -q -p cvlan-proto --test tidy
	@if $(CARGO) deny --version >/dev/null 2>&1; then $(CARGO) deny --log-level error check bans licenses sources; \
	 else echo "SKIPPED: cargo-deny is not installed (cargo install --locked cargo-deny)"; fi
	@cd ui && $(NPM) run --silent lint && $(NPM) run --silent gen:check
	@ui/node_modules/.bin/buf lint
	@ui/node_modules/.bin/buf breaking --against proto/released.binpb

audit: ## known vulnerabilities of what we use (fetches the advisory database)
	@$(CARGO) deny check advisories

fix: ui/node_modules/.stamp ## format and apply what the linters can mend
	@$(CARGO) fmt --all
	@$(CARGO) clippy --workspace --all-targets --fix --allow-dirty --allow-staged
	@cd ui && $(NPM) run --silent fix

# PostgreSQL's figures are measured by the tests of its view, which have a server.
bench: $(POSTGRES)/node_modules/.stamp ## figures, one CVLAN_BENCH line each; ONLY=name for one, postgres_view for those of PostgreSQL
	@$(if $(filter-out postgres_view,$(ONLY)),,set -o pipefail; CVLAN_FIGURES=1 $(CARGO) test -q --release -p cvlan-projections --lib \
		figures -- --nocapture --test-threads=1 | grep -E 'CVLAN_BENCH|SKIPPED')
	@$(if $(filter postgres_view,$(ONLY)),,$(CARGO) build --release -p cvlan-api -p cvlan-client -p cvlan-sim --bins)
	@$(if $(filter postgres_view,$(ONLY)),,$${CARGO_TARGET_DIR:-target}/release/cvlan-sim bench $(if $(ONLY),--only $(ONLY)))

sim: ## one simulated history: make sim SEED=42
	@$(CARGO) run -q -p cvlan-sim --bin cvlan-sim -- run --seed $(SEED)

gen: ui/node_modules/.stamp ## generated TypeScript and the released descriptor set
	@cd ui && $(NPM) run --silent gen

released: ui/node_modules/.stamp ## what `buf breaking` compares with; only together with a line in CHANGELOG.md
	@ui/node_modules/.bin/buf build -o proto/released.binpb

ui: ui/dist/index.html ## build the web UI into ui/dist

ui/node_modules/.stamp: ui/package.json ui/package-lock.json
	@cd ui && $(NPM) ci --no-audit --no-fund --loglevel=error
	@touch $@

# PostgreSQL 16 itself, for the tests of its view; Debian 12 has 15.
$(POSTGRES)/node_modules/.stamp: $(POSTGRES)/package.json $(POSTGRES)/package-lock.json
	@cd $(POSTGRES) && $(NPM) ci --no-audit --no-fund --loglevel=error || { echo "SKIPPED: no PostgreSQL 16 for this machine"; mkdir -p node_modules; }
	@touch $@

ui/dist/index.html: ui/node_modules/.stamp $(UI_SOURCES)
	@cd ui && $(NPM) run --silent build
	@touch $@

clean: ## remove what was built
	@$(CARGO) clean
	@rm -rf ui/dist ui/node_modules $(POSTGRES)/node_modules
