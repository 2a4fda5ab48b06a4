#!/bin/sh
# Makes the PKCS#7 vectors of this folder with OpenSSL 3.0. The private keys
# are thrown away; a run gives other bytes with the same verdicts.
set -eu
out=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"

printf 'what is signed\n' > content
cp content "$out/content.bin"
days=36500

# issue NAME ISSUER EXTENSIONS SUBJECT
issue() {
    name=$1 issuer=$2 extensions=$3 subject=$4
    openssl req -newkey rsa:2048 -nodes -keyout "$name.key" -out "$name.csr" -subj "$subject" 2>/dev/null
    printf '%b' "$extensions" > "$name.ext"
    if [ "$issuer" = self ]; then
        openssl x509 -req -in "$name.csr" -signkey "$name.key" -days $days -sha256 -extfile "$name.ext" -out "$name.pem" 2>/dev/null
    else
        openssl x509 -req -in "$name.csr" -CA "$issuer.pem" -CAkey "$issuer.key" -CAcreateserial -days "${expires:-$days}" -sha256 -extfile "$name.ext" -out "$name.pem" 2>/dev/null
    fi
}

ca='basicConstraints=critical,CA:TRUE\nkeyUsage=critical,keyCertSign,cRLSign\nsubjectKeyIdentifier=hash\n'
last='basicConstraints=critical,CA:TRUE,pathlen:0\nkeyUsage=critical,keyCertSign\nsubjectKeyIdentifier=hash\n'
leaf='basicConstraints=CA:FALSE\nkeyUsage=critical,digitalSignature\nsubjectKeyIdentifier=hash\n'
who='/C=EE/O=Example/CN=Publications/emailAddress=publications@example.org'

issue root self "$ca" '/C=EE/O=Example/CN=Root'
issue inter root "$last" '/C=EE/O=Example/CN=Intermediate'
issue signer inter "$leaf" "$who"
issue below inter "$last" '/C=EE/O=Example/CN=Too deep'
issue deep below "$leaf" "$who"
issue notca root "$leaf" '/C=EE/O=Example/CN=Not a CA'
issue bynotca notca "$leaf" "$who"
issue nosign root 'basicConstraints=critical,CA:TRUE\nkeyUsage=critical,cRLSign\n' '/C=EE/O=Example/CN=May not sign certificates'
issue bynosign nosign "$leaf" "$who"
issue critical inter "$leaf"'1.2.3.4=critical,DER:0500\n' "$who"
expires=1 issue brief root "$last" '/C=EE/O=Example/CN=Valid for one day'
issue bybrief brief "$leaf" "$who"
issue alone self "$leaf" "$who"
issue twomails self "$leaf" "$who/emailAddress=other@example.org"
issue byalone alone "$leaf" "$who"
issue old self '' '/C=EE/O=Example/CN=Version 1 root'
issue byold old "$leaf" "$who"
issue oldinter root '' '/C=EE/O=Example/CN=Version 1 intermediate'
issue byoldinter oldinter "$leaf" "$who"
issue encipher root 'basicConstraints=CA:FALSE\nkeyUsage=critical,keyEncipherment\n' "$who"
issue purpose root "$leaf"'extendedKeyUsage=critical,timeStamping\n' "$who"
# Another authority under the name of the root.
issue namesake self "$ca" '/C=EE/O=Example/CN=Root'
issue bynamesake namesake "$leaf" "$who"
# Two authorities that vouch for each other, and nobody for them.
issue left self "$ca" '/C=EE/O=Example/CN=Left'
issue right self "$ca" '/C=EE/O=Example/CN=Right'
issue byleft left "$leaf" "$who"
cross() { # SUBJECT ISSUER
    openssl x509 -req -in "$1.csr" -CA "$2.pem" -CAkey "$2.key" -CAcreateserial -days $days -sha256 -extfile "$1.ext" -out "$1-by-$2.pem" 2>/dev/null
}
cross left right
cross right left
cat left-by-right.pem right-by-left.pem left.pem right.pem > loop.pem
openssl ecparam -name prime256v1 -genkey -noout -out ec.key
openssl req -new -x509 -key ec.key -days $days -subj "$who" -out ec.pem

sign() { # FILE SIGNER options...
    file=$1 signer=$2; shift 2
    openssl cms -sign -binary -in content -outform DER -signer "$signer.pem" -inkey "$signer.key" "$@" -out "$out/$file.p7"
}
sign ok-chain signer -md sha256 -certfile inter.pem
cat inter.pem root.pem > inter-root.pem
sign ok-anchor-in-signature signer -md sha256 -certfile inter-root.pem
sign ok-sha1 alone -md sha1
sign ok-sha384 alone -md sha384
sign ok-sha512 alone -md sha512
sign ok-key-id alone -md sha256 -keyid
sign nok-attached-ber alone -md sha256 -stream -indef
openssl smime -sign -binary -in content -outform DER -md sha256 -signer alone.pem -inkey alone.key -out "$out/ok-smime.p7"
sign nok-missing-intermediate signer -md sha256
cat inter.pem below.pem > inter-below.pem
sign nok-path-length deep -md sha256 -certfile inter-below.pem
sign nok-issuer-not-ca bynotca -md sha256 -certfile notca.pem
sign nok-issuer-key-usage bynosign -md sha256 -certfile nosign.pem
sign nok-critical-extension critical -md sha256 -certfile inter.pem
sign nok-issuer-expired bybrief -md sha256 -certfile brief.pem
sign nok-issuer-namesake bynamesake -md sha256 -certfile namesake.pem
sign nok-signer-key-usage encipher -md sha256
sign ok-extended-key-usage purpose -md sha256
sign ok-other-attributes alone -md sha256 -cades
sign ok-version-1-anchor byold -md sha256
sign nok-version-1-intermediate byoldinter -md sha256 -certfile oldinter.pem
sign nok-anchor-not-ca byalone -md sha256
sign nok-loop byleft -md sha256 -certfile loop.pem
sign nok-two-signers alone -md sha256 -signer signer.pem -inkey signer.key -certfile inter.pem
sign nok-no-certificate alone -md sha256 -nocerts
sign nok-attached alone -md sha256 -nodetach
sign nok-no-attributes alone -md sha256 -noattr
sign nok-pss alone -md sha256 -keyopt rsa_padding_mode:pss
sign nok-md5 alone -md md5
sign nok-sha224 alone -md sha224
sign nok-ecdsa ec -md sha256
sign nok-two-emails twomails -md sha256
cat root.pem alone.pem ec.pem twomails.pem old.pem > "$out/anchors.pem"
