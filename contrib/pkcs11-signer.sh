#!/bin/sh
# Signs for `pitser authority` with a key in a PKCS#11 device (docs/publications.md).
#
#   PIN_FILE=/etc/pitser/pin pkcs11-signer.sh MODULE.so TOKEN-LABEL KEY-ID
#
# MODULE.so is the device's library, KEY-ID the key's id in hexadecimal digits. The PIN is
# the first line of PIN_FILE, 4 to 8 letters say, readable by the service's user alone.
# Needs pkcs11-tool (Debian: opensc). Each signature opens a session of its own, which with
# most devices takes well under a second; where it does not, a program that keeps its
# session open can speak the same two lines.
set -u
umask 077
module=$1 token=$2 key=$3

if ! read -r PIN <"${PIN_FILE:?names the file with the PIN}"; then
    echo "no PIN in $PIN_FILE" >&2
    exit 1
fi
export PIN
work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT

sign() {
    printf %s "$1" | base64 -d >"$work/digest-info" &&
        pkcs11-tool --module "$module" --token-label "$token" --login --pin env:PIN \
            --id "$key" --sign --mechanism RSA-PKCS \
            --input-file "$work/digest-info" --output-file "$work/signature" >&2
}

while read -r request digest_info; do
    if [ "$request" != sign-sha256 ]; then
        echo "error only sign-sha256 is understood"
    elif sign "$digest_info"; then
        echo "signature $(base64 -w0 "$work/signature")"
    else
        echo "error pkcs11-tool did not sign; what it said is on the standard error"
    fi
done
