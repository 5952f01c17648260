#!/bin/sh
# run.sh [TARGET...]: runs these fuzz targets, or all, for FUZZ_SECONDS each, guided by coverage.
# What libFuzzer finds goes to target/fuzz; only what is worth keeping is added to corpus/ by hand.
set -eu
cd "$(dirname "$0")"
top=$(cd ../.. && pwd)
target=${CARGO_TARGET_DIR:-target}
case $target in /*) ;; *) target=$top/$target ;; esac
work=$target/fuzz
tools=$target/lab/tools
version=0.13.2

if ! RUSTUP_AUTO_INSTALL=0 cargo +nightly --version >/dev/null 2>&1; then
    echo "fuzz: no nightly toolchain, and coverage needs one: rustup toolchain install nightly" >&2
    echo "fuzz: without it, \`cargo test -p agent-tests --test api fuzz\` replays the corpora" >&2
    exit 1
fi
if ! grep -qs "\"cargo-fuzz $version (" "$tools/.crates.toml"; then
    cargo install --locked cargo-fuzz --version "$version" --root "$tools"
fi
export PATH="$tools/bin:$PATH"

# The versions that are shipped; cargo adds what only the fuzz targets need.
cp "$top/Cargo.lock" Cargo.lock

# The agents' sockets, gone with the run: a fuzzer ends without dropping anything.
TMPDIR=$(mktemp -d)
export TMPDIR
trap 'rm -rf "$TMPDIR"' EXIT
trap 'exit 1' INT TERM

[ $# -gt 0 ] || set -- $(cargo +nightly fuzz list --fuzz-dir .)
for name; do
    mkdir -p "$work/corpus/$name" "$work/crashes/$name"
    # 64 MiB: nothing a stranger says makes the agent ask for so much at once.
    CARGO_TARGET_DIR="$work" cargo +nightly fuzz run --fuzz-dir . "$name" \
        "$work/corpus/$name" "corpus/$name" -- \
        -artifact_prefix="$work/crashes/$name/" -malloc_limit_mb=64 -max_len=8192 -timeout=60 \
        -max_total_time="${FUZZ_SECONDS:-60}" -verbosity=0 -print_final_stats=1
done
