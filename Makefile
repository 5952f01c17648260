# The few commands people type. README.md explains them, tests/README.md what `test` is made of.

.PHONY: demo demo-stop static test test-cloud bench fuzz setup clean-lab

step := tests/lab/step
lab := cargo run --quiet --bin lab --
export STARTED := $(shell date +%s)

# A small VM with the agent in it, registered with agent-cli as `demo`. It runs until demo-stop.
demo: setup
	@$(step) "demo VM" $(lab) up

demo-stop:
	@$(lab) down

# The static binaries, for any guest and host of this processor.
static: setup
	@$(step) "static binaries" $(lab) build

# Every test there is, and what CI runs.
test: setup
	@$(step) "format" cargo fmt --all --check
	@$(step) "clippy" cargo clippy --workspace --all-targets --all-features -- -Dwarnings
	@$(step) "documentation" env RUSTDOCFLAGS=-Dwarnings cargo doc --workspace --no-deps
	@$(step) "tests without a VM" cargo test --workspace
	@$(step) "bans, licences, sources" $(lab) deny
	@$(step) "cloud-init" cargo test --workspace --features agent-tests/vm --test cloud_init
	@$(step) "VM lab" $(lab) setup
	@$(step) "tests in a VM" cargo test --workspace --features agent-tests/vm --test vm
	@$(step) "soak" cargo test --workspace --features agent-tests/vm --test soak -- --test-threads 1 --show-output

# Debian with systemd and cloud-init in VMs: two dozen boots of most of a minute each.
test-cloud: setup
	@$(step) "VM lab" $(lab) setup
	@$(step) "cloud-init in VMs" cargo test --workspace --features agent-tests/vm --test cloud_vm -- --test-threads 1

# File transfers side by side with OpenSSH's, commands with the shortest ways to run one, and whether
# they are as fast as they must be. Commands alone: `cargo run --bin bench -- exec`.
bench: setup
	@$(step) "benchmark" cargo run --quiet --bin bench

# Every fuzz target for FUZZ_SECONDS, 60 unless said. Needs a nightly toolchain.
fuzz:
	@$(step) "fuzz targets" tests/fuzz/run.sh

# The Debian packages for all of the above.
setup:
	@$(step) "Debian packages" tests/lab/setup.sh

# Forgets the guest's kernel, the tools, the logs and what was found out about this computer.
clean-lab:
	rm -rf "$${CARGO_TARGET_DIR:-target}/lab"
