# shellcheck shell=bash disable=SC2154,SC2034  # variables of the caller, and for it
# A PostgreSQL server to throw away, for the scripts beside this folder: on a
# free loopback port with a random password, in a temporary folder, as user
# `postgres` where root calls. It ends with the script, also on Ctrl-C, and so
# do the processes in `running`.
#
# The caller sets `me`, `dir` and `pg_bin` (empty: looked for) and calls
# `find_postgres`, then `make_cluster`. From then on there are `work` (a folder;
# `work/mine` is the caller's), PGHOST, PGPORT, PGUSER and PGPASSWORD.

work='' postmaster='' running=()

say() {
    printf '%s\n' "$*" >&2
}

cannot() {
    say "$me: $*"
    exit 4
}

find_postgres() {
    if [[ -z $pg_bin ]]; then
        command -v pg_config >/dev/null && pg_bin=$(pg_config --bindir)
        [[ -x $pg_bin/initdb ]] ||
            pg_bin=$(printf '%s\n' /usr/lib/postgresql/*/bin | sort -V | tail -n 1)
    fi
    local program
    for program in initdb pg_ctl psql postgres "$@"; do
        [[ -x $pg_bin/$program ]] || cannot "$pg_bin has no $program: name PostgreSQL's programs with --pg-bin"
    done
    version=$("$pg_bin/postgres" --version | sed 's/^[^0-9]*//')
    major=${version%%[!0-9]*}
    ((major >= 14)) || cannot "PostgreSQL $version is too old, 14 is needed"
    ((EUID != 0)) || id postgres >/dev/null 2>&1 ||
        cannot "root may not run PostgreSQL, and there is no user postgres"
    [[ -d $dir ]] || cannot "there is no folder $dir"
}

# Sets `pitser` to an absolute path.
find_pitser() {
    [[ -x $pitser ]] || cannot "there is no $pitser: run cargo build --release -p pitser"
    pitser=$(realpath "$pitser")
}

free_port() {
    local port
    while :; do
        port=$((20000 + RANDOM % 12000))
        (: <"/dev/tcp/127.0.0.1/$port") 2>/dev/null || break
    done
    printf '%s' "$port"
}

random_password() {
    head -c 18 /dev/urandom | base64 | tr '+/' '-_'
}

# Runs a command as who the server runs as: root may not.
as_server() {
    if ((EUID == 0)); then runuser -u postgres -- "$@"; else "$@"; fi
}

# Makes an empty cluster with this locale.
make_cluster() {
    trap clean_up EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM HUP
    work=$(mktemp -d "$dir/pitser-$me.XXXXXXXX")
    mkdir -m 700 "$work/mine" "$work/pg"
    data=$work/pg/data
    if ((EUID == 0)); then
        chmod 711 "$work"
        chown postgres "$work/pg"
    fi
    # Loopback is open to everybody on this machine.
    PGPASSWORD=$(random_password)
    PGPORT=$(free_port)
    export PGPASSWORD PGPORT PGHOST=127.0.0.1 PGUSER=postgres
    as_server tee "$work/pg/password" <<<"$PGPASSWORD" >/dev/null
    (cd "$work" && as_server "$pg_bin/initdb" --pgdata="$data" --username=postgres \
        --auth=scram-sha-256 --encoding=UTF8 --locale="$1" \
        --pwfile="$work/pg/password" >"$work/mine/initdb.log" 2>&1) ||
        cannot "initdb failed: $(tail -n 3 "$work/mine/initdb.log")"
}

# Starts the server with the settings on standard input, and where it listens.
start_server() {
    {
        cat <<EOF
listen_addresses = '127.0.0.1'
port = $PGPORT
unix_socket_directories = ''
EOF
        cat
    } >"$work/mine/server.conf"
    as_server tee "$data/postgresql.auto.conf" <"$work/mine/server.conf" >/dev/null
    (cd "$work" && as_server "$pg_bin/pg_ctl" start --wait --silent --timeout=60 \
        --pgdata="$data" --log="$work/pg/server.log") >&2 ||
        cannot "the server does not start: $(tail -n 3 "$work/pg/server.log")"
    postmaster=$(head -n 1 "$data/postmaster.pid")
}

stop_server() {
    [[ -n $postmaster ]] || return 0
    stop "$postmaster" INT
    postmaster=''
}

psql() {
    "$pg_bin/psql" --no-psqlrc --no-align --tuples-only --set=ON_ERROR_STOP=1 "$@"
}

# Starts `pitser dev` with more options; sets `aggregator` to its address.
start_authority() {
    local authority
    "$pitser" dev --listen 127.0.0.1:0 --http 127.0.0.1:0 --dir "$work/mine/authority" \
        --json "$@" >"$work/mine/dev.json" 2>"$work/mine/dev.log" &
    authority=$!
    running+=("$authority")
    until grep -qs '"listening"' "$work/mine/dev.json"; do
        kill -0 "$authority" 2>/dev/null || cannot "pitser dev ended: $(cat "$work/mine/dev.log")"
        sleep 0.1
    done
    aggregator=$(head -n 1 "$work/mine/dev.json" | member tcp)
}

# The value of a member of a JSON object that our own program wrote.
member() {
    sed -n "s/.*[{,]\"$1\":\"\{0,1\}\([^\",}]*\).*/\1/p" | head -n 1
}

now_ms() {
    local us=${EPOCHREALTIME//[!0-9]/}
    printf '%s' $((us / 1000))
}

# Stops one process by its number: asks with SIGNAL, waits, and insists.
stop() {
    local pid=$1 signal=$2 tenths
    kill -"$signal" "$pid" 2>/dev/null || return 0
    for ((tenths = 0; tenths < 300; tenths++)); do
        kill -0 "$pid" 2>/dev/null || return 0
        sleep 0.1
    done
    kill -KILL "$pid" 2>/dev/null || true
}

# shellcheck disable=SC2317  # called by the trap
clean_up() {
    local code=$? at
    trap - EXIT
    trap '' INT TERM HUP
    for ((at = ${#running[@]} - 1; at >= 0; at--)); do
        stop "${running[at]}" TERM
    done
    # A start that was interrupted has a postmaster we were not told of yet.
    if [[ -z $postmaster && -n $work ]]; then
        postmaster=$(head -n 1 "$work/pg/data/postmaster.pid" 2>/dev/null || true)
    fi
    [[ -z $postmaster ]] || stop "$postmaster" QUIT
    [[ -z $work ]] || rm -rf "$work"
    exit "$code"
}
