#!/usr/bin/env bash
# What a guardian takes behind a PostgreSQL server of its own to throw away:
# `pitser bench guard` on it, whose options follow; `pitser bench guard --help` has them.
#
#   cargo build --release -p pitser
#   scripts/bench-guard.sh                        # 5 rounds of 2 million changes
#   scripts/bench-guard.sh --changes 200000 --rounds 3 --json
#
# DIR (TMPDIR, or /tmp), PG_BIN (as pg_config says) and PITSER (target/release/pitser)
# in the environment say where. No network is needed; everything ends with this script.
set -euo pipefail
export LC_ALL=C
umask 077
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=scripts/lib/postgres.sh
source "$root/scripts/lib/postgres.sh"

me=bench-guard
dir=${DIR:-${TMPDIR:-/tmp}} pg_bin=${PG_BIN:-}
pitser=${PITSER:-${CARGO_TARGET_DIR:-$root/target}/release/pitser}

find_postgres pg_recvlogical
find_pitser
make_cluster C
# No checkpoint falls into a round; the rest is PostgreSQL's default, fsync included.
start_server <<'EOF'
shared_buffers = '512MB'
max_wal_size = '32GB'
checkpoint_timeout = '1h'
wal_level = logical
EOF
psql --quiet --dbname=postgres --command='CREATE DATABASE bench'
export PITSER_BENCH_DATABASE=postgres://postgres:$PGPASSWORD@127.0.0.1:$PGPORT/bench
"$pitser" bench guard --pg-recvlogical "$pg_bin/pg_recvlogical" "$@"
