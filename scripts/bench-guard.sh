#!/usr/bin/env bash
# What a guardian takes behind a PostgreSQL server of its own to throw away:
# `pitser bench guard` on it, whose options follow; `pitser bench guard --help` has them.
#
#   cargo build --release -p pitser
#   scripts/bench-guard.sh                        # 5 rounds of 2 million changes
#   scripts/bench-guard.sh --changes 200000 --rounds 3 --json
#   scripts/bench-guard.sh --backfill 10000000    # first, rows that are there when guarding begins
#   scripts/bench-guard.sh --overhead             # then, what guarding costs the server: bench-postgres.sh,
#                                                 # with the options that are in OVERHEAD_OPTIONS
#
# DIR (TMPDIR, or /tmp), PG_BIN (as pg_config says) and PITSER (target/release/pitser)
# in the environment say where. No network is needed; everything ends with this script.
set -euo pipefail
export LC_ALL=C
umask 077
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=scripts/lib/postgres.sh
source "$root/scripts/lib/postgres.sh"

options=() overhead=false json=false
for option in "$@"; do
    case $option in
        --overhead) overhead=true && continue ;;
        --json) json=true ;;
    esac
    options+=("$option")
done

me=bench-guard
dir=${DIR:-${TMPDIR:-/tmp}} pg_bin=${PG_BIN:-}
pitser=${PITSER:-${CARGO_TARGET_DIR:-$root/target}/release/pitser}

find_postgres pg_recvlogical
find_pitser
make_cluster C
# No checkpoint falls into a round, unless a backfill is too large for that; the rest is PostgreSQL's default, fsync included.
start_server <<'EOF'
shared_buffers = '512MB'
max_wal_size = '32GB'
checkpoint_timeout = '1h'
wal_level = logical
EOF
psql --quiet --dbname=postgres --command='CREATE DATABASE bench'
export PITSER_BENCH_DATABASE=postgres://postgres:$PGPASSWORD@127.0.0.1:$PGPORT/bench
"$pitser" bench guard --pg-recvlogical "$pg_bin/pg_recvlogical" "${options[@]}" >"$work/mine/guard.out" ||
    exit $?
stop_server
if ! $overhead; then
    cat "$work/mine/guard.out"
    exit 0
fi
more=(--dir "$dir" --pg-bin "$pg_bin" --pitser "$pitser")
! $json || more+=(--json)
# shellcheck disable=SC2086  # options are words
"$root/scripts/bench-postgres.sh" ${OVERHEAD_OPTIONS:-} "${more[@]}" >"$work/mine/overhead.out" || exit $?
if $json; then
    # One object: the first's members, and of the second those that the first lacks.
    sed 's/}$//' "$work/mine/guard.out" | tr -d '\n'
    sed -n 's/.*,\("overhead":\[.*\]\),"runs":.*/,\1}/p' "$work/mine/overhead.out"
else
    cat "$work/mine/guard.out"
    echo
    cat "$work/mine/overhead.out"
fi
