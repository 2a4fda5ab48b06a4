#!/usr/bin/env bash
# Fuzzes a decoder: targets are those of crates/*/fuzz.
#
#   cargo install cargo-fuzz --locked         # once; a stable toolchain will do
#   scripts/fuzz.sh                           # names the targets
#   scripts/fuzz.sh signature                 # 15 minutes
#   scripts/fuzz.sh signature 60 -jobs=2      # a minute, with options of libFuzzer
#   scripts/fuzz.sh --minimise signature      # what was learnt, into the corpus
#
# Starts from crates/CRATE/fuzz/corpus/TARGET, which it does not touch; what it
# learns goes to target/fuzz/corpus/TARGET. An input that takes 5 seconds, or
# memory out of proportion, is a finding like one that panics. Findings are kept
# in crates/CRATE/fuzz/artifacts: put one into the corpus as `finding-SOMETHING`,
# which is its test, then mend the code. `cargo test --test corpus` runs every
# corpus without all this.
#
# There is no `unsafe` but in the hashes' vector code, so no sanitizer is used.
# SANITIZER=address uses it all the same, with what a stable compiler hides.
#
# Exit 0 nothing found, 3 wrong usage, 4 cargo-fuzz is missing, 1 a finding.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

built=target/fuzz
sanitizer=${SANITIZER:-none}
# The longest input to be committed, in bytes: short ones teach the fuzzer more.
# Where a certificate has to fit in, 4000 is better.
longest=${LONGEST:-1500}

say() { printf 'fuzz: %s\n' "$*" >&2; }

minimise=false
if [[ ${1:-} == --minimise ]]; then minimise=true && shift; fi
if (($# == 0)); then
    printf '%s\n' crates/*/fuzz/fuzz_targets/*.rs |
        sed 's|^crates/\(.*\)/fuzz/fuzz_targets/\(.*\)\.rs$|\1  \2|'
    exit 0
fi
target=$1 && shift
fuzz=$(printf '%s\n' crates/*/fuzz/fuzz_targets/*.rs | grep "/$target\.rs$" || true)
if [[ -z $fuzz ]]; then
    say "there is no target $target"
    exit 3
fi
fuzz=${fuzz%/fuzz_targets/*}
seconds=900
if [[ ${1:-} =~ ^[0-9]+$ ]]; then seconds=$1 && shift; fi
if ! cargo fuzz --version >/dev/null 2>&1; then
    say "cargo-fuzz is missing: cargo install cargo-fuzz --locked"
    exit 4
fi
learnt=$built/corpus/$target
if [[ $sanitizer != none ]]; then
    export RUSTC_BOOTSTRAP=1
    built=$built/$sanitizer
fi
mkdir -p "$learnt" "$fuzz/corpus/$target"
run() {
    cargo fuzz run --fuzz-dir "$fuzz" --target-dir "$built" --sanitizer "$sanitizer" \
        "$target" "$@"
}

if $minimise; then
    # By edges alone, not by how often each is passed: a fifth of the bytes. What
    # was a finding stays.
    scratch=$(mktemp -d)
    trap 'rm -rf "$scratch"' EXIT
    mkdir "$scratch/all" "$scratch/kept"
    find "$fuzz/corpus/$target" "$learnt" -type f -size "-$((longest + 1))c" \
        -exec cp -t "$scratch/all" {} +
    run "$scratch/kept" "$scratch/all" -- -merge=1 -use_counters=0
    find "$fuzz/corpus/$target" -type f ! -name 'finding-*' -delete
    cp -t "$fuzz/corpus/$target" "$scratch/kept"/*
    du -sh "$fuzz/corpus/$target"
    exit 0
fi

options=(-max_total_time="$seconds" -max_len=20000 -timeout=5 -report_slow_units=1
    -rss_limit_mb=1500 -malloc_limit_mb=512 -print_final_stats=1)
if [[ -e $fuzz/tlv.dict ]]; then options+=(-dict="$fuzz/tlv.dict"); fi
run "$learnt" "$fuzz/corpus/$target" -- "${options[@]}" "$@"
