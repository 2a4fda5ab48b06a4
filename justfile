# What CI runs, and nothing else: formatting, lints, tests, documentation, demo.
check:
    bash .ci/run

# Licences, versions, sources and advisories; needs cargo-deny and the network.
deny:
    cargo deny check

# The verifier's three crates, for a browser; needs Debian packages.
wasm:
    bash scripts/wasm.sh

# The hot paths, each against a floor in the same run.
bench:
    cargo bench --workspace
