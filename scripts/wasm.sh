#!/usr/bin/env bash
# Builds the verifier's three crates for a browser: proof that they need no
# machine. Where rustup can add the target, that is the better way:
#
#   rustup target add wasm32-unknown-unknown
#   cargo build --target wasm32-unknown-unknown -p pitser-evidence
#
# This script is for machines that reach Debian's packages and crates.io alone.
# It unpacks Debian's compiler and the standard library's source (115 MB to
# download) into a cache folder, installs nothing, and builds the library too.
# A first run takes some three minutes on two cores, a later one half of that.
#
# Exit 0 built, 1 a crate does not build, 2 the compiler cannot be had (it says why).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

cache=${PITSER_WASM_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/pitser-wasm}
crates=(--package pitser-ksi --package pitser-tlog --package pitser-evidence)
target=wasm32-unknown-unknown

cannot() {
    printf 'wasm: %s\n' "$*" >&2
    exit 2
}

# Sets `prefix` to a folder with Debian's newest rustc-web, unpacked.
unpack() {
    local tool version minor llvm
    for tool in apt-get apt-cache dpkg cargo; do
        command -v "$tool" >/dev/null || cannot "$tool is not installed"
    done
    version=$(apt-cache policy rustc-web | awk '/Candidate:/ { print $2 }')
    [[ -n $version && $version != "(none)" ]] ||
        cannot "Debian's rustc-web is not in the package lists: run apt-get update, or use a Debian that has it"
    minor=$(cut -d. -f1,2 <<<"$version")
    prefix=$cache/$version
    [[ ! -e $prefix/complete ]] || return 0

    llvm=$(apt-cache depends "libstd-rust-web-$minor=$version" | awk '/Depends: libllvm/ { print $2 }')
    [[ -n $llvm ]] || cannot "libstd-rust-web-$minor is not in the package lists"
    rm -rf "$prefix"
    mkdir -p "$prefix/packages"
    (cd "$prefix/packages" && apt-get download -qq "rustc-web=$version" "rust-web-src=$version" \
        "libstd-rust-web-dev=$version" "libstd-rust-web-$minor=$version" "$llvm") ||
        cannot "Debian's packages cannot be downloaded"
    for package in "$prefix"/packages/*.deb; do
        dpkg -x "$package" "$prefix/unpacked"
    done
    rm -r "$prefix/packages"
    cat >"$prefix/rustc" <<WRAPPER
#!/bin/sh
LD_LIBRARY_PATH=$prefix/unpacked/usr/lib/$(dpkg-architecture -qDEB_HOST_MULTIARCH 2>/dev/null || gcc -print-multiarch) \\
    exec $prefix/unpacked/usr/bin/rustc "\$@"
WRAPPER
    chmod +x "$prefix/rustc"
    touch "$prefix/complete"
}

unpack
"$prefix/rustc" --version || cannot "the unpacked compiler does not run here"
library=$(echo "$prefix"/unpacked/usr/src/rustc-*/library)
[[ -d $library ]] || cannot "no library source under $prefix"

# Building the standard library is a nightly feature; the bootstrap switch allows
# it to this compiler, whose own source it is.
RUSTC=$prefix/rustc RUSTC_BOOTSTRAP=1 __CARGO_TESTS_ONLY_SRC_ROOT=$library \
    CARGO_TARGET_DIR=$cache/target \
    cargo build --release --locked --target "$target" -Zbuild-std=std,panic_abort "${crates[@]}"
printf 'wasm: built %s\n' "${crates[*]}"
