#!/usr/bin/env bash
# What guarding costs a PostgreSQL server, measured with pgbench (TPC-B-like).
#
#   cargo build --release -p pitser
#   scripts/bench-postgres.sh                  # 5 rounds of 30 s each way
#   scripts/bench-postgres.sh --rounds 3 --seconds 10 --json
#
# One server after the other, so that whatever else the machine does falls on
# all of them; every other round goes through them backwards:
#
#   plain                  PostgreSQL as it is
#   guard-attribution-off  its four tables guarded: `pitser dev` seals, `pitser guard run`
#                          follows; lines do not say who acted
#   guard-attribution-on   the same with the trigger that says so, which is the default
#   pgoutput               pg_recvlogical takes the same tables by pgoutput, to /dev/null:
#                          what decoding costs, whoever reads
#   wal2json               the same by the plugin of that name (format 2)
#   pgaudit                the extension of that name, pgaudit.log = 'write', into a file
#   jsonb-trigger          the usual trigger on each row: old and new as jsonb, who and when,
#                          into a table
#   hash-chain-trigger     the same, each audit row with the SHA-256 of the one before it and
#                          itself, so that writers wait for each other
#   installed, replica     with --parts: attribution on, but nobody follows; and plain with
#                          wal_level = replica
#
# What is not installed is left out (Debian: postgresql-15-pgaudit, postgresql-15-wal2json).
#
# All but `replica` have wal_level = logical, so that a ratio to plain is the price of
# that setup and plain/replica that of the setting. Each round begins with a
# started server, a fresh copy of the same database (read into memory, vacuumed,
# checkpointed, each page touched, warmed up) and, for a guard, a new trail; it ends with
# `guard uninstall`, of which nothing may remain. A ratio is that within a round;
# what is printed is the median over the rounds.
#
# p99 is that of pgbench's own log of every transaction (--log), from first statement
# to the end of its commit. WAL is what the log grew by while pgbench ran. pgbench uses
# prepared statements.
#
# Server CPU is what the kernel has charged to the postmaster and all its
# children, living and reaped: user and system time of each living child, and
# of the postmaster its own and that of children it has waited for
# (/proc/PID/stat, fields 14 to 17). That misses nobody: every process of a
# server is a child of its postmaster, which waits for each of them. A child
# that is reaped while we look would count twice, so we look until none was.
# A cgroup would say the same, but asks for root. Whatever is followed is
# charged until who follows has caught up, the walsender's work on the last transactions included.
#
# Nothing is asked, no network is needed. The server listens on a free loopback
# port with a random password and lives in a temporary folder; everything ends
# with this script. Exit 0 measured, 1 something was found or left behind,
# 3 wrong usage, 4 something is missing or failed.
set -euo pipefail
export LC_ALL=C
umask 077
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=scripts/lib/postgres.sh
source "$root/scripts/lib/postgres.sh"

usage() {
    cat <<'EOF'
usage: scripts/bench-postgres.sh [OPTION]...
  --rounds N               rounds (5)
  --seconds S              length of a round (30)
  --warm-up S              unmeasured seconds before each (3)
  --scale N                pgbench's scale: 100,000 accounts each (10)
  --clients N              pgbench's clients (4)
  --replica-identity KIND  keep, or full: updates carry the row they replace (keep)
  --scan-every S           all rows are compared so often; 0: not while measuring (0)
  --setups A,B,...         only these, and plain
  --parts                  also the trigger alone, and plain with wal_level = replica
  --dir DIR                where the temporary folder is made (TMPDIR, or /tmp)
  --pg-bin DIR             PostgreSQL's programs (as pg_config says)
  --pitser FILE            the binary (target/release/pitser)
  --json                   print one JSON object
EOF
}

me=bench rounds=5 seconds=30 warm_up=3 scale=10 clients=4 scan_every=0 identity=keep
parts=false setups='' json=false
dir=${TMPDIR:-/tmp} pg_bin='' pitser=${CARGO_TARGET_DIR:-$root/target}/release/pitser

wrong() {
    printf 'bench: %s\n' "$*" >&2
    usage >&2
    exit 3
}

while (($# > 0)); do
    case $1 in
        --rounds | --seconds | --warm-up | --scale | --clients | --scan-every | --replica-identity | --setups | --dir | --pg-bin | --pitser)
            (($# > 1)) || wrong "$1 wants a value"
            ;;&
        --rounds | --seconds | --scale | --clients)
            [[ $2 =~ ^[1-9][0-9]{0,5}$ ]] || wrong "$1 wants a number, not $2"
            ;;&
        --rounds) rounds=$2 && shift 2 ;;
        --seconds) seconds=$2 && shift 2 ;;
        --scale) scale=$2 && shift 2 ;;
        --clients) clients=$2 && shift 2 ;;
        --warm-up | --scan-every)
            [[ $2 =~ ^[0-9]{1,5}$ ]] || wrong "$1 wants a number, not $2"
            ;;&
        --warm-up) warm_up=$2 && shift 2 ;;
        --scan-every) scan_every=$2 && shift 2 ;;
        --replica-identity)
            [[ $2 == keep || $2 == full ]] || wrong "$1 is keep or full, not $2"
            identity=$2 && shift 2
            ;;
        --setups) setups=$2 && shift 2 ;;
        --dir) dir=$2 && shift 2 ;;
        --pg-bin) pg_bin=$2 && shift 2 ;;
        --pitser) pitser=$2 && shift 2 ;;
        --parts) parts=true && shift ;;
        --json) json=true && shift ;;
        -h | --help) usage && exit 0 ;;
        *) wrong "there is no option $1" ;;
    esac
done

# ---- The server -------------------------------------------------------------

# Sets `variants` to what is asked for and can be had.
choose_setups() {
    local known=(guard-attribution-off guard-attribution-on pgoutput wal2json pgaudit jsonb-trigger hash-chain-trigger)
    local libraries setup wanted=()
    libraries=$("$pg_bin/pg_config" --pkglibdir)
    ! $parts || known+=(installed replica)
    wanted=("${known[@]}")
    [[ -z $setups ]] || IFS=, read -ra wanted <<<"$setups"
    variants=(plain)
    for setup in "${wanted[@]}"; do
        [[ $setup != plain ]] || continue
        [[ " ${known[*]} " == *" $setup "* ]] || wrong "there is no setup $setup: plain ${known[*]}"
        case $setup in
            wal2json | pgaudit)
                if [[ ! -e $libraries/$setup.so ]]; then
                    say "$setup is not installed for PostgreSQL $major: measuring without it"
                    continue
                fi
                ;;
        esac
        variants+=("$setup")
    done
}

make_seed() {
    start_server < <(settings plain)
    psql --quiet --dbname=postgres --command='CREATE DATABASE seed'
    "$pg_bin/pgbench" --initialize --quiet --scale="$scale" seed >"$work/mine/pgbench-init.log" 2>&1 ||
        cannot "pgbench --initialize failed: $(tail -n 3 "$work/mine/pgbench-init.log")"
    psql --quiet --dbname=seed --command='VACUUM (FREEZE, ANALYZE)'
    stop_server
}

# Memory holds the tables and no checkpoint falls into a round; the rest is
# PostgreSQL's default, fsync included.
settings() {
    cat <<EOF
shared_buffers = '512MB'
max_wal_size = '16GB'
checkpoint_timeout = '1h'
fsync = on
synchronous_commit = on
wal_level = $([[ $1 == replica ]] && echo replica || echo logical)
EOF
    [[ $1 == pgaudit ]] || return 0
    cat <<'EOF'
shared_preload_libraries = 'pgaudit'
pgaudit.log = 'write'
logging_collector = on
log_directory = 'log'
log_filename = 'audit.log'
EOF
}

# A database with the same rows as ever, in memory.
fresh_database() {
    local strategy=''
    ((major < 15)) || strategy='STRATEGY file_copy'
    psql --quiet --dbname=postgres --command='DROP DATABASE IF EXISTS bench' \
        --command="CREATE DATABASE bench TEMPLATE seed $strategy" 2>/dev/null
    # By index: a plain scan of a large table would go past the shared buffers.
    psql --quiet --dbname=bench --output=/dev/null --command='VACUUM' \
        --command='SET enable_seqscan = off' --command='SET enable_bitmapscan = off' \
        --command='SELECT sum(abalance) FROM pgbench_accounts WHERE aid > 0'
}

# ---- The guardian -----------------------------------------------------------

# Init anew: a new folder, hence a new trail. `trigger`, or `off`.
init_guard() {
    config=$work/mine/guard-$1/pitser.toml
    mkdir "$work/mine/guard-$1"
    cat >"$config" <<EOF
[authority]
aggregator = "ksi+tcp://anon:anon@$aggregator"
[guard]
organisation = "bench.example"
data         = "data"
listen       = "127.0.0.1:$(free_port)"
scan_every_s = $scan_every
[[source]]
name    = "bench"
kind    = "postgres"
url     = "postgres://postgres:$PGPASSWORD@127.0.0.1:$PGPORT/bench"
tables  = ["public.pgbench_*"]
keyless = "full"
replica_identity = "$identity"
attribution = "$2"
EOF
    local log=$work/mine/guard.log began
    began=$(now_ms)
    "$pitser" guard init --config "$config" >"$log" 2>&1 || cannot "guard init failed: $(tail -n 3 "$log")"
    init_ms=$(($(now_ms) - began))
}

start_guardian() {
    local log=$work/mine/guard.log
    "$pitser" guard run --config "$config" >>"$log" 2>&1 &
    guardian=$!
    running+=("$guardian")
    # It compares all rows when it starts, which is not what a round is about.
    until status 2>/dev/null && [[ $(member state <<<"$state") == guarding && $state != *'"verified_up_to":null'* ]]; do
        kill -0 "$guardian" 2>/dev/null || cannot "guard run ended: $(tail -n 3 "$log")"
        sleep 0.1
    done
}

# Sets `state` to what the guardian says of itself, whatever it found.
status() {
    local code=0
    state=$("$pitser" guard status --config "$config" --json) || code=$?
    ((code <= 1))
}

# Waits until the guardian has taken all that is on the server's disk by now.
catch_up() {
    local target
    target=$(number "$(psql --dbname=bench --command='SELECT pg_current_wal_flush_lsn()')")
    until status && (($(number "$(member position <<<"$state")") >= target)); do
        kill -0 "$guardian" 2>/dev/null || cannot "guard run ended: $(tail -n 3 "$work/mine/guard.log")"
        sleep 0.02
    done
}

# An LSN as a number; the guardian's may name an event: 0/16B3748:4.
number() {
    local lsn=${1%%:*}
    printf '%d' $((16#${lsn%/*} << 32 | 16#${lsn#*/}))
}

stop_guardian() {
    stop "$guardian" TERM
    unset 'running[-1]'
}

uninstall_guard() {
    "$pitser" guard uninstall --config "$config" >>"$work/mine/guard.log" 2>&1 ||
        cannot "guard uninstall failed: $(tail -n 3 "$work/mine/guard.log")"
    local left
    left=$(psql --dbname=bench --command="
        SELECT (SELECT count(*) FROM pg_replication_slots) + (SELECT count(*) FROM pg_publication)
             + (SELECT count(*) FROM pg_namespace WHERE nspname = 'pitser')
             + (SELECT count(*) FROM pg_trigger WHERE NOT tgisinternal)")
    ((left == 0)) || { say "bench: guard uninstall left $left objects behind" && failed=1; }
    rm -r "${config%/*}"
}

# ---- What else people do ------------------------------------------------------

# pg_recvlogical takes everything by this plugin, with these options, and throws it away.
start_receiver() {
    local plugin=$1 option options=()
    shift
    for option in "$@"; do options+=(--option="$option"); done
    psql --quiet --dbname=bench --output=/dev/null \
        --command='CREATE PUBLICATION bench FOR TABLE pgbench_accounts, pgbench_branches, pgbench_tellers, pgbench_history' \
        --command="SELECT pg_create_logical_replication_slot('bench', '$plugin')"
    "$pg_bin/pg_recvlogical" --dbname=bench --slot=bench --start --no-loop --status-interval=1 \
        --file=/dev/null "${options[@]}" >>"$work/mine/receiver.log" 2>&1 &
    receiver=$!
    running+=("$receiver")
}

# Waits until the receiver was sent all that is on the server's disk by now.
receiver_catch_up() {
    local target
    target=$(psql --dbname=bench --command='SELECT pg_current_wal_flush_lsn()')
    until [[ $(psql --dbname=bench --command="SELECT bool_or(sent_lsn >= '$target') FROM pg_stat_replication") == t ]]; do
        kill -0 "$receiver" 2>/dev/null || cannot "pg_recvlogical ended: $(tail -n 3 "$work/mine/receiver.log")"
        sleep 0.02
    done
}

stop_receiver() {
    stop "$receiver" INT
    unset 'running[-1]'
    until [[ $(psql --dbname=bench --command='SELECT bool_or(active) FROM pg_replication_slots') == f ]]; do
        sleep 0.1
    done
    psql --quiet --dbname=bench --output=/dev/null --command="SELECT pg_drop_replication_slot('bench')"
}

# The trigger that everybody writes once: what a row was and is, as jsonb.
make_jsonb_trigger() {
    psql --quiet --dbname=bench <<'EOF'
CREATE TABLE audit (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, at timestamptz NOT NULL DEFAULT clock_timestamp(),
    who text NOT NULL DEFAULT session_user, tx bigint NOT NULL DEFAULT txid_current(),
    relation text NOT NULL, op text NOT NULL, before jsonb, after jsonb);
CREATE FUNCTION audit() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
    INSERT INTO audit (relation, op, before, after) VALUES (TG_TABLE_NAME, TG_OP, to_jsonb(OLD), to_jsonb(NEW));
    RETURN NULL;
END $$;
EOF
    on_each_table audit
}

# The same as a chain: each row's hash covers the one before, whose head has to be locked.
make_hash_chain_trigger() {
    psql --quiet --dbname=bench <<'EOF'
CREATE TABLE head (seq bigint NOT NULL, hash bytea NOT NULL) WITH (fillfactor = 10);
INSERT INTO head VALUES (0, sha256(''));
CREATE TABLE chain (
    seq bigint PRIMARY KEY, at timestamptz NOT NULL, who text NOT NULL, tx bigint NOT NULL,
    relation text NOT NULL, op text NOT NULL, before jsonb, after jsonb, hash bytea NOT NULL);
CREATE FUNCTION chain() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
DECLARE
    entry chain;
    previous head;
BEGIN
    SELECT * INTO previous FROM head FOR UPDATE;
    entry := (previous.seq + 1, clock_timestamp(), session_user, txid_current(),
        TG_TABLE_NAME, TG_OP, to_jsonb(OLD), to_jsonb(NEW), NULL);
    entry.hash := sha256(previous.hash || convert_to(entry::text, 'UTF8'));
    INSERT INTO chain SELECT entry.*;
    UPDATE head SET seq = entry.seq, hash = entry.hash;
    RETURN NULL;
END $$;
EOF
    on_each_table chain
}

on_each_table() {
    local table
    for table in accounts branches tellers history; do
        psql --quiet --dbname=bench --command="CREATE TRIGGER bench AFTER INSERT OR UPDATE OR DELETE
            ON pgbench_$table FOR EACH ROW EXECUTE FUNCTION $1()"
    done
}

# That many rows were written about, or the trigger is not what is measured.
check_trigger() {
    local rows
    rows=$(psql --dbname=bench --command="SELECT count(*) FROM $1")
    ((rows >= 4 * $2)) || cannot "the trigger wrote $rows rows about $2 transactions"
}

# ---- Measuring --------------------------------------------------------------

# Microseconds of CPU that a process and the children it reaped have taken.
process_us() {
    awk -v hz="$hz" '{ sub(/.*\) /, ""); printf "%.0f", ($12 + $13 + $14 + $15) * 1000000 / hz }' "/proc/$1/stat"
}

# The same of the whole server (see the head of this file).
server_us() {
    local reaped again sum
    reaped=$(process_us "$postmaster")
    while :; do
        sum=$(cat /proc/[0-9]*/stat 2>/dev/null | awk -v hz="$hz" -v server="$postmaster" '
            { pid = $1; sub(/.*\) /, "") }
            pid == server || $2 == server { sum += $12 + $13 + $14 + $15 }
            END { printf "%.0f", sum * 1000000 / hz }')
        again=$(process_us "$postmaster")
        [[ $again != "$reaped" ]] || break
        reaped=$again
    done
    printf '%s' "$sum"
}

load() {
    cut -d' ' -f1 /proc/loadavg
}

run_pgbench() {
    rm -f "$work/mine/transactions".*
    "$pg_bin/pgbench" --no-vacuum --client="$clients" --jobs=2 --time="$1" --protocol=prepared \
        --log --log-prefix="$work/mine/transactions" \
        --random-seed="$2" bench >"$work/mine/pgbench.log" 2>&1 ||
        cannot "pgbench failed: $(tail -n 3 "$work/mine/pgbench.log")"
}

# The time that all but a hundredth of the transactions stayed below, in ms.
latency_p99_ms() {
    cut -d' ' -f3 "$work/mine/transactions".* | sort -n |
        awk '{ us[NR] = $1 } END { printf "%.3f", us[int(NR * 0.99 + 0.999999)] / 1000 }'
}

# The first change of a page after a checkpoint logs all of it: how many there are is
# not what is compared. Row locks are neither triggers' business nor decoders'.
touch_pages() {
    local table
    for table in accounts tellers branches; do
        psql --quiet --dbname=bench --output=/dev/null \
            --command="SELECT count(*) FROM (SELECT FROM pgbench_$table FOR UPDATE) locked"
    done
}

wal_bytes() {
    psql --dbname=bench --command="SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')"
}

# One round; appends a line to `results`, in the order of `columns`.
columns='round variant tps transactions server_cpu_us load_before load_after p99_ms wal_bytes
    guardian_cpu_us lag_ms events events_per_s findings seal_p99_ms init_ms
    scan_ms scan_rows scan_server_cpu_us scan_guardian_cpu_us'
run_round() {
    local round=$1 variant=$2
    start_server < <(settings "$variant")
    fresh_database
    set_up "$round" "$variant"
    psql --quiet --dbname=bench --command=VACUUM --command=CHECKPOINT
    touch_pages
    ((warm_up == 0)) || run_pgbench "$warm_up" "$((round + 1000))"
    wait_for_follower "$variant"

    local load_before server began tps transactions guarded='- - - - - - - - - - -'
    local own events ended wal p99_ms
    load_before=$(load)
    if [[ $variant == guard-* ]]; then
        own=$(process_us "$guardian")
        events=$(member events <<<"$state")
    fi
    server=$(server_us)
    wal=$(wal_bytes)
    began=$(now_ms)
    run_pgbench "$seconds" "$round"
    ended=$(now_ms)
    wal=$(($(wal_bytes) - wal))
    wait_for_follower "$variant"
    local caught_up
    caught_up=$(now_ms)
    server=$(($(server_us) - server))
    p99_ms=$(latency_p99_ms)
    if [[ $variant == guard-* ]]; then
        own=$(($(process_us "$guardian") - own))
        events=$(($(member events <<<"$state") - events))
        local lag=$((caught_up - ended)) rate=$((events * 1000 / (caught_up - began))) p99
        p99=$(member p99 <<<"$state")
        end_scan
        guarded="$own $lag $events $rate $findings ${p99:--} $init_ms $scan"
    fi
    tps=$(sed -n 's/^tps = \([0-9.]*\).*/\1/p' "$work/mine/pgbench.log")
    transactions=$(sed -n 's/^number of transactions actually processed: \([0-9]*\).*/\1/p' "$work/mine/pgbench.log")
    [[ -n $tps && -n $transactions ]] || cannot "pgbench says no TPS: $(tail -n 3 "$work/mine/pgbench.log")"
    echo "$round $variant $tps $transactions $server $load_before $(load) $p99_ms $wal $guarded" >>"$work/mine/results"
    say "$(tail -n 1 "$work/mine/results" | awk -v names="$columns" '
        BEGIN { split(names, name, " ") }
        { for (i = 1; i <= NF; i++) at[name[i]] = $i }
        { printf "round %s %-21s %7.0f TPS, server %4.0f us/transaction, p99 %.2f ms, load %s to %s", at["round"],
              at["variant"], at["tps"], at["server_cpu_us"] / at["transactions"], at["p99_ms"],
              at["load_before"], at["load_after"] }
        at["lag_ms"] != "-" { printf ", guardian %.0f us, lag %s ms, %s events/s, %s findings",
              at["guardian_cpu_us"] / at["transactions"], at["lag_ms"], at["events_per_s"], at["findings"] }')"
    take_down "$variant" "$transactions"
    stop_server
}

set_up() {
    case $2 in
        guard-attribution-off)
            init_guard "$1" off
            start_guardian
            ;;
        guard-attribution-on)
            init_guard "$1" trigger
            start_guardian
            ;;
        installed) init_guard "$1" trigger ;;
        pgoutput) start_receiver pgoutput proto_version=1 publication_names=bench ;;
        wal2json) start_receiver wal2json format-version=2 ;;
        jsonb-trigger) make_jsonb_trigger ;;
        hash-chain-trigger) make_hash_chain_trigger ;;
    esac
}

wait_for_follower() {
    case $1 in
        guard-*) catch_up ;;
        pgoutput | wal2json) receiver_catch_up ;;
    esac
}

# Takes a setup down after so many transactions, and looks whether it was there.
take_down() {
    case $1 in
        guard-*)
            stop_guardian
            uninstall_guard
            ;;
        installed) uninstall_guard ;;
        pgoutput | wal2json) stop_receiver ;;
        jsonb-trigger) check_trigger audit "$2" ;;
        hash-chain-trigger) check_trigger chain "$2" ;;
        pgaudit)
            local lines
            lines=$(grep -c 'AUDIT: SESSION' "$data/log/audit.log" || true)
            ((lines >= 4 * $2)) || cannot "pgaudit wrote $lines lines for $2 transactions"
            rm "$data/log/audit.log"
            ;;
    esac
}

# Compares every row with its seal, which tells whether all was taken rightly.
# Not part of the round: how often it is done is the operator's choice.
end_scan() {
    local began server own report code=0
    server=$(server_us) own=$(process_us "$guardian") began=$(now_ms)
    report=$("$pitser" guard scan --config "$config" --json 2>>"$work/mine/guard.log") || code=$?
    ((code <= 1)) || cannot "guard scan failed: $(tail -n 3 "$work/mine/guard.log")"
    scan="$(($(now_ms) - began)) $(member rows <<<"$report")"
    scan+=" $(($(server_us) - server)) $(($(process_us "$guardian") - own))"
    status || cannot "the guardian does not answer"
    findings=$({ grep -o '"code":"[^"]*"' <<<"$state" || true; } | wc -l)
    [[ $state == *'"findings":[]'* ]] || {
        say "bench: findings: $("$pitser" guard status --config "$config" | tail -n 5)"
        failed=1
    }
}

# ---- Telling ----------------------------------------------------------------

facts() {
    cores=$(nproc)
    model=$(sed -n '/^model name/{s/^[^:]*: *//p;q}' /proc/cpuinfo)
    filesystem=$(df --output=fstype "$work" | tail -n 1)
    day=$(date -u +%F)
}

# One AWK program for both forms: medians over the rounds, ratios within them.
tell() {
    awk -v names="$columns" -v json="$json" -v day="$day" -v version="$version" -v cores="$cores" \
        -v model="${model:-unknown}" -v filesystem="$filesystem" -v scale="$scale" -v clients="$clients" \
        -v seconds="$seconds" -v warm_up="$warm_up" -v rounds="$rounds" -v identity="$identity" -v scan_every="$scan_every" '
    BEGIN { count = split(names, name, " ") }
    {
        for (i = 1; i <= NF; i++) at[$2, $1, name[i]] = $i
        at[$2, $1, "wal"] = at[$2, $1, "wal_bytes"] / at[$2, $1, "transactions"]
        at[$2, $1, "server"] = at[$2, $1, "server_cpu_us"] / at[$2, $1, "transactions"]
        if (at[$2, $1, "guardian_cpu_us"] != "-")
            at[$2, $1, "guardian"] = at[$2, $1, "guardian_cpu_us"] / at[$2, $1, "transactions"]
        if (!($2 in seen)) { seen[$2] = 1; variant[++variants] = $2 }
        line[NR] = $0
    }
    END {
        for (v = 1; v <= variants; v++) for (r = 1; r <= rounds; r++) {
            at[variant[v], r, "tps_ratio"] = at[variant[v], r, "tps"] / at["plain", r, "tps"]
            at[variant[v], r, "server_ratio"] = at[variant[v], r, "server"] / at["plain", r, "server"]
            at[variant[v], r, "p99_ratio"] = at[variant[v], r, "p99_ms"] / at["plain", r, "p99_ms"]
            at[variant[v], r, "wal_ratio"] = at[variant[v], r, "wal"] / at["plain", r, "wal"]
        }
        if (json == "true") as_json(); else as_text()
    }
    # Sorts the rounds of one figure; `which` is 0 for the least, 0.5 the median, 1 the most.
    function of(v, figure, which,    n, r, i, x, sorted, middle) {
        for (r = 1; r <= rounds; r++) {
            x = at[v, r, figure] + 0
            for (i = n++; i > 0 && sorted[i] > x; i--) sorted[i + 1] = sorted[i]
            sorted[i + 1] = x
        }
        if (which != 0.5) return which == 0 ? sorted[1] : sorted[n]
        middle = int((n + 1) / 2)
        return n % 2 ? sorted[middle] : (sorted[middle] + sorted[middle + 1]) / 2
    }
    function as_text(    v, g) {
        printf "%s, PostgreSQL %s, %s cores of %s, %s; scale %s, %s clients,\n", day, version, cores, model, filesystem, scale, clients
        printf "%s rounds of %s s, replica identity %s: median (least to most), ratio to plain\n\n", rounds, seconds, identity
        printf "%-21s %-26s  %-25s  %-12s  %s\n", "", "TPS", "server us a transaction", "p99, ms", "WAL bytes"
        for (v = 1; v <= variants; v++) {
            g = variant[v]
            printf "%-21s %5.0f (%5.0f to %5.0f)  %4.2f  %4.0f (%4.0f to %4.0f)  %4.2f  %6.2f %5.2f  %6.0f %5.2f\n", g,
                of(g, "tps", 0.5), of(g, "tps", 0), of(g, "tps", 1), of(g, "tps_ratio", 0.5),
                of(g, "server", 0.5), of(g, "server", 0), of(g, "server", 1), of(g, "server_ratio", 0.5),
                of(g, "p99_ms", 0.5), of(g, "p99_ratio", 0.5), of(g, "wal", 0.5), of(g, "wal_ratio", 0.5)
        }
        for (v = 1; v <= variants; v++) if (variant[v] ~ /^guard/) {
            g = variant[v]
            printf "\n%s\n", g
            printf "  guardian CPU %.0f us a transaction, %.0f events/s, lag at the end %.0f ms (%.0f to %.0f), findings %d\n",
                of(g, "guardian", 0.5), of(g, "events_per_s", 0.5),
                of(g, "lag_ms", 0.5), of(g, "lag_ms", 0), of(g, "lag_ms", 1), of(g, "findings", 1)
            printf "  init %.1f s; a scan of %d rows %.1f s, of which server CPU %.1f s, guardian CPU %.1f s\n",
                of(g, "init_ms", 0.5) / 1000, of(g, "scan_rows", 0.5), of(g, "scan_ms", 0.5) / 1000,
                of(g, "scan_server_cpu_us", 0.5) / 1e6, of(g, "scan_guardian_cpu_us", 0.5) / 1e6
        }
    }
    function as_json(    v, g, i, n, field, comma, quote) {
        gsub(/["\\]/, "", model)
        printf "{\"date\":\"%s\",\"postgresql\":\"%s\",\"cores\":%s,\"cpu\":\"%s\",\"filesystem\":\"%s\",", day, version, cores, model, filesystem
        printf "\"scale\":%s,\"clients\":%s,\"seconds\":%s,\"warm_up_s\":%s,\"rounds\":%s,\"replica_identity\":\"%s\",\"scan_every_s\":%s,\"overhead\":[", scale, clients, seconds, warm_up, rounds, identity, scan_every
        for (v = 1; v <= variants; v++) {
            g = variant[v]
            printf "%s{\"setup\":\"%s\",\"tps\":%.1f,\"cpu_us_per_tx\":%.1f,\"p99_ms\":%.3f,\"wal_bytes_per_tx\":%.0f,", (v > 1 ? "," : ""), g,
                of(g, "tps", 0.5), of(g, "server", 0.5), of(g, "p99_ms", 0.5), of(g, "wal", 0.5)
            printf "\"tps_ratio\":%.3f,\"cpu_ratio\":%.3f,\"p99_ratio\":%.3f,\"wal_ratio\":%.3f",
                of(g, "tps_ratio", 0.5), of(g, "server_ratio", 0.5), of(g, "p99_ratio", 0.5), of(g, "wal_ratio", 0.5)
            if (g ~ /^guard/)
                printf ",\"guardian_cpu_us_per_tx\":%.1f,\"lag_ms\":%.0f,\"events_per_s\":%.0f,\"findings_max\":%d",
                    of(g, "guardian", 0.5), of(g, "lag_ms", 0.5), of(g, "events_per_s", 0.5), of(g, "findings", 1)
            printf "}"
        }
        printf "],\"runs\":["
        for (i = 1; i <= NR; i++) {
            n = split(line[i], field, " ")
            printf "%s{", (i > 1 ? "," : "")
            comma = ""
            for (v = 1; v <= n; v++) if (field[v] != "-") {
                quote = name[v] == "variant" ? "\"" : ""
                printf "%s\"%s\":%s%s%s", comma, name[v], quote, field[v], quote
                comma = ","
            }
            printf "}"
        }
        print "]}"
    }' "$work/mine/results"
}

failed=0
hz=$(getconf CLK_TCK)
find_postgres pgbench pg_recvlogical
find_pitser
choose_setups
make_cluster C
make_seed
facts
start_authority --publish-every 0
for ((round = 1; round <= rounds; round++)); do
    order=("${variants[@]}")
    if ((round % 2 == 0)); then
        for ((at = 0; at < ${#variants[@]}; at++)); do order[at]=${variants[-1 - at]}; done
    fi
    for variant in "${order[@]}"; do
        run_round "$round" "$variant"
    done
done
tell
exit "$failed"
