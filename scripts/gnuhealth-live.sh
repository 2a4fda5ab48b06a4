#!/usr/bin/env bash
# A live GNU Health hospital under guard, to be run by hand (docs/gnuhealth.md).
#
#   cargo build --release -p pitser
#   scripts/gnuhealth-live.sh                    # installs GNU Health, makes a hospital
#   scripts/gnuhealth-live.sh --venv ~/.cache/gh # installs it there once
#   scripts/gnuhealth-live.sh --dump hospital.dump
#
# GNU Health is GPL-3: it is installed from PyPI and run as a program of its own,
# nothing of it is in this repository. It serves from a throw-away PostgreSQL;
# a user works in it through JSON-RPC, as GNU Health's own client does, while
# `pitser guard run` follows. What is expected is checked:
#
#   1  a patient is changed in the application: a named person, no finding
#   2  the same change by psql: ACT-02 within a second
#   3  records deleted in the application: no finding
#   4  a day's work, with logins, lists, wizards, attachments: no finding
#   5  one patient's evidence, exported and verified
#
# With --simple the configuration is the shortest one, "*" = "write_uid -> ..."
# alone, and what it finds in the application's own work is shown, not a failure.
#
# Needs Python 3.11 with venv, and PyPI unless --venv names a finished one.
# Exit 0 as expected, 1 not, 3 wrong usage, 4 something is missing or failed.
set -euo pipefail
export LC_ALL=C.UTF-8
umask 077
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=scripts/lib/postgres.sh
source "$root/scripts/lib/postgres.sh"

usage() {
    cat <<'EOF'
usage: scripts/gnuhealth-live.sh [OPTION]...
  --venv DIR     where GNU Health is, or is to be, installed (a temporary folder)
  --dump FILE    a hospital made by pg_dump --format=custom (a new one is made)
  --show-config  print the pitser.toml, without the password
  --simple       the shortest configuration; show what it finds
  --python FILE  the interpreter (python3.11)
  --dir DIR      where the temporary folder is made (TMPDIR, or /tmp)
  --pg-bin DIR   PostgreSQL's programs (as pg_config says)
  --pitser FILE  the binary (target/release/pitser)
EOF
}

me=gnuhealth venv='' dump='' simple=false show_config=false python=python3.11
dir=${TMPDIR:-/tmp} pg_bin='' pitser=${CARGO_TARGET_DIR:-$root/target}/release/pitser

wrong() {
    say "$me: $*"
    usage >&2
    exit 3
}

while (($# > 0)); do
    case $1 in
        --venv | --dump | --python | --dir | --pg-bin | --pitser)
            (($# > 1)) || wrong "$1 wants a value"
            ;;&
        --venv) venv=$2 && shift 2 ;;
        --dump) dump=$2 && shift 2 ;;
        --python) python=$2 && shift 2 ;;
        --dir) dir=$2 && shift 2 ;;
        --pg-bin) pg_bin=$2 && shift 2 ;;
        --pitser) pitser=$2 && shift 2 ;;
        --simple) simple=true && shift ;;
        --show-config) show_config=true && shift ;;
        -h | --help) usage && exit 0 ;;
        *) wrong "there is no option $1" ;;
    esac
done

# ---- The hospital -----------------------------------------------------------

step() {
    printf '\n== %s\n' "$*"
}

# The database belongs to the role that the application logs in as.
make_database() {
    start_server <<<"wal_level = logical"
    app_password=$(random_password)
    psql --quiet --dbname=postgres --command="CREATE ROLE gnuhealth LOGIN PASSWORD '$app_password'" \
        --command='CREATE DATABASE hospital OWNER gnuhealth TEMPLATE template0'
    if [[ -n $dump ]]; then
        "$pg_bin/pg_restore" --dbname=hospital --no-owner --role=gnuhealth --exit-on-error "$dump"
    fi
}

install_gnuhealth() {
    venv=${venv:-$work/mine/venv}
    local packages=(gnuhealth psycopg2-binary) module
    if [[ -n $dump ]]; then
        # A module health_lab comes in the package gnuhealth-lab.
        while read -r module; do
            packages+=("gnuhealth-${module//_/-}")
        done < <(psql --dbname=hospital --command="SELECT substr(name, 8) FROM ir_module
            WHERE name LIKE 'health\\_%' AND state = 'activated'")
    fi
    if [[ ! -x $venv/bin/trytond ]]; then
        say "installing ${packages[*]}"
        "$python" -m venv "$venv" || cannot "$python cannot make a virtual environment: name another with --python"
    fi
    "$venv/bin/pip" install --quiet --disable-pip-version-check "${packages[@]}" ||
        cannot "GNU Health cannot be installed"
}

admin() {
    TRYTONPASSFILE=$work/mine/admin-password "$venv/bin/trytond-admin" \
        --config "$work/mine/trytond.conf" --database hospital "$@" >"$work/mine/admin.log" 2>&1 ||
        cannot "trytond-admin failed: $(tail -n 3 "$work/mine/admin.log")"
}

start_application() {
    web=127.0.0.1:$(free_port)
    mkdir "$work/mine/attachments"
    cat >"$work/mine/trytond.conf" <<EOF
[database]
uri = postgresql://gnuhealth:$app_password@127.0.0.1:$PGPORT/
path = $work/mine/attachments
[web]
listen = $web
EOF
    random_password >"$work/mine/admin-password"
    if [[ -n $dump ]]; then
        admin --password
    else
        say 'making a hospital, which takes about a minute'
        admin --update health --activate-dependencies --email admin@hospital.example
    fi
    "$venv/bin/trytond" --config "$work/mine/trytond.conf" --database hospital >"$work/mine/trytond.log" 2>&1 &
    local application=$!
    running+=("$application")
    until grep -qs 'Running on' "$work/mine/trytond.log"; do
        kill -0 "$application" 2>/dev/null || cannot "trytond ended: $(tail -n 3 "$work/mine/trytond.log")"
        sleep 0.2
    done
    work_in_application employ
}

# ---- Working in it ----------------------------------------------------------

# One task of `hospital.py`, as user mtamm.
work_in_application() {
    "$venv/bin/python" "$work/mine/hospital.py" "http://$web/hospital/" "$work/mine/admin-password" "$@" ||
        cannot "the application refused: $1"
}

write_client() {
    cat >"$work/mine/hospital.py" <<'EOF'
"""Works in GNU Health through trytond's JSON-RPC, as its own client does."""
import base64, json, pathlib, sys, time, urllib.error, urllib.request

class Session:
    def __init__(self, url, login, password):
        self.url, self.authorization, self.context = url, None, {}
        user, key = self.ask("common.db.login", login, {"password": password}, "en")
        token = base64.b64encode(f"{login}:{user}:{key}".encode()).decode()
        self.user, self.authorization = user, f"Session {token}"
        self.context = self.ask("model.res.user.get_preferences", True, {})

    def ask(self, method, *params):
        headers = {"Content-Type": "application/json"}
        if self.authorization:
            headers["Authorization"] = self.authorization
        body = json.dumps({"id": 1, "method": method, "params": params}).encode()
        with urllib.request.urlopen(urllib.request.Request(self.url, body, headers)) as answer:
            answer = json.load(answer)
        if answer.get("error"):
            sys.exit(f"{method}: {answer['error']}")
        return answer["result"]

    def __call__(self, method, *params):
        return self.ask(f"model.{method}", *params, self.context)

    def find(self, model, *where):
        return self(f"{model}.search", list(where), 0, None, [["id", "ASC"]])

def person(name, number):
    born = {"__class__": "date", "year": 1980, "month": 2, "day": 3}
    return {"name": name, "lastname": "Kask", "gender": "f", "dob": born, "is_person": True,
            "is_patient": True, "fed_country": "EST", "ref": number,
            "addresses": [["create", [{"street": "Pikk 1"}, {"street": "Lai 2"}]]],
            "contact_mechanisms": [["create", [{"type": "phone", "value": "+3725555555"}]]]}

def employ(admin):
    """A user of her own, with the administrator's groups."""
    groups = admin.find("res.group")
    admin("res.user.create", [{"name": "Mari Tamm", "login": "mtamm", "password": PASSWORD,
                               "groups": [["add", groups]]}])

def admit(me, number):
    party = me("party.party.create", [person("Anna", number)])
    print(*me("gnuhealth.patient.create", [{"party": party[0], "critical_info": "none known"}]))

def note(me, patient, text):
    me("gnuhealth.patient.write", [int(patient)], {"critical_info": text})

def dismiss(me, number):
    """Deletes a patient's address, the patient and, as a list, contact data."""
    party = me.find("party.party", ["ref", "=", number])
    patient = me.find("gnuhealth.patient", ["party", "=", party[0]])
    address = me.find("party.address", ["party", "=", party[0]])
    me("party.address.delete", address[:1])
    me("gnuhealth.patient.delete", patient)
    contact = me.find("party.contact_mechanism", ["party", "=", party[0]])
    me("party.party.write", party, {"contact_mechanisms": [["delete", contact]]})

def day(me):
    """Whatever makes Tryton write in an unusual way."""
    everybody = me.find("gnuhealth.patient")
    me("gnuhealth.patient.write", everybody, {"crit_social": True})
    me("gnuhealth.patient.write", everybody[:1], {"crit_dbt": True}, everybody[:1], {"crit_dbt": False})
    me("gnuhealth.patient.write", everybody[:1], {"general_info": " ".join(str(n * 7919) for n in range(4000))})
    me("gnuhealth.patient.write", everybody[:1], {"crit_hbp": True})
    top = me("party.category.create", [{"name": "Ward", "childs": [["create", [{"name": "A"}, {"name": "B"}]]]}])
    other = me("party.category.create", [{"name": "Clinic"}])
    me("party.category.write", top, {"parent": other[0]})
    party = [me("party.party.create", [person(*who)])[0]
             for who in (("Liis", "EE48002030100"), ("Liisa", "EE48002030101"))]
    me("party.party.write", party[:1], {"categories": [["add", top + other]]})
    me("party.party.write", party[:1], {"categories": [["remove", top]]})
    resource = f"gnuhealth.patient,{everybody[0]}"
    scan = {"__class__": "bytes", "base64": base64.b64encode(b"scan").decode()}
    attached = me("ir.attachment.create", [{"name": "scan", "resource": resource, "type": "data", "data": scan}])
    me("ir.attachment.write", attached, {"name": "scan of 1998"})
    me("ir.attachment.delete", attached)
    remark = me("ir.note.create", [{"message": "call back", "resource": resource}])
    me("ir.note.write", remark, {"unread": False})
    me("ir.note.delete", remark)
    # Two records of one person become one: raw updates of whatever refers to it.
    one, two = sorted(party)
    me("res.user.warning.create", [{"user": me.user, "name": f"party.replace name {two} {one}"}])
    wizard, start, _ = me.ask("wizard.party.replace.create", me.context)
    context = {**me.context, "active_model": "party.party", "active_id": two, "active_ids": [two]}
    me.ask("wizard.party.replace.execute", wizard, {}, start, context)
    me.ask("wizard.party.replace.execute", wizard, {"ask": {"source": two, "destination": one}}, "replace", context)
    me.ask("wizard.party.replace.delete", wizard, me.context)
    for state in range(2):
        me("ir.ui.view_tree_state.set", "gnuhealth.patient", "[]", "child", [[1]], [[state]])
    me("res.user.set_preferences", {"signature": "M. Tamm"})
    try:
        Session(URL, "mtamm", "mistyped")
    except urllib.error.HTTPError:
        pass
    Session(URL, "mtamm", PASSWORD).ask("common.db.logout")

URL, secret, task, *rest = sys.argv[1:]
SECRET = pathlib.Path(secret).read_text().strip()
PASSWORD = f"mtamm-{SECRET[::-1]}"
login = ("admin", SECRET) if task == "employ" else ("mtamm", PASSWORD)
session = Session(URL, *login)
globals()[task](session, *rest)
session.ask("common.db.logout")
EOF
}

# ---- The guardian -----------------------------------------------------------

# Whose record a row is, read off the foreign keys: everything that points at a
# patient or at his person, and what points at that.
patient_paths() {
    psql --dbname=hospital --command="
        WITH RECURSIVE fk AS (
            SELECT conrelid AS t, attname AS c, confrelid AS r
            FROM pg_constraint JOIN pg_attribute ON attrelid = conrelid AND attnum = conkey[1]
            WHERE contype = 'f' AND conrelid <> confrelid),
        belongs AS (
            SELECT t, c, r, 0 AS depth FROM fk
            WHERE r = 'party_party'::regclass AND c IN ('party', 'person') AND t::regclass::text NOT IN
                ('company_company', 'company_employee', 'gnuhealth_healthprofessional', 'gnuhealth_institution')
            UNION
            SELECT fk.t, fk.c, fk.r, depth + 1 FROM fk JOIN belongs ON fk.r = belongs.t
            WHERE belongs.t::regclass::text LIKE 'gnuhealth\\_%' AND fk.t::regclass::text LIKE 'gnuhealth\\_%'
              AND (depth > 0 OR belongs.t = 'gnuhealth_patient'::regclass) AND depth < 3),
        nearest AS (
            SELECT DISTINCT ON (t) t, c, r FROM belongs ORDER BY t, depth, c <> 'patient')
        SELECT '\"public.party_party\" = \"ref\"'
        UNION ALL (SELECT format('\"public.%s\" = \"%s -> public.%s.id\"',
            t::regclass, c, r::regclass) FROM nearest ORDER BY t::regclass::text)" || cannot 'no foreign keys'
}

write_config() {
    config=$work/mine/pitser.toml
    {
        cat <<EOF
[authority]
aggregator   = "ksi+tcp://anon:anon@$aggregator"
publications = "$(head -n 1 "$work/mine/dev.json" | sed 's/.*"publications":"\([^"]*\)".*/\1/')"

[guard]
organisation = "hospital.example"
data         = "data"
listen       = "127.0.0.1:$(free_port)"
scan_every_s = 10

[[source]]
name    = "gnuhealth"
kind    = "postgres"
url     = "postgres://postgres:$PGPASSWORD@127.0.0.1:$PGPORT/hospital"
EOF
        if $simple; then
            cat <<'EOF'
tables  = ["*"]
exclude = ["public.ir_cache"]

[source.actor]
"*" = "write_uid -> public.res_user.login"
EOF
        else
            cat <<'EOF'
# Not the users themselves, with their passwords' hashes: the rule below adds
# their names. ir_model_log names who deletes.
tables = [
    "public.gnuhealth_*", "public.party_*", "public.product_*", "public.company_*",
    "public.res_group*", "public.res_user-*", "public.ir_model_access*", "public.ir_model_field_access*",
    "public.ir_rule*", "public.ir_attachment", "public.ir_note*", "public.ir_email*", "public.ir_model_log",
]

[source.actor]
"*" = "write_uid -> public.res_user.login"

# No log = "public.ir_model_log": Tryton writes it for changes and deletes only,
# and for its own tables (ir_*) never.
[source.application]
roles = ["gnuhealth"]
names = ["trytond"]
EOF
        fi
        printf '\n[source.patient]\n'
        patient_paths
    } >"$config"
    ! $show_config || sed "s/:$PGPASSWORD@/:PASSWORD@/" "$config"
}

start_guardian() {
    "$pitser" guard init --dry-run --config "$config" | tail -n 1
    "$pitser" guard init --config "$config" >"$work/mine/init.log" ||
        cannot "guard init failed: $(tail -n 3 "$work/mine/init.log")"
    grep -v '^note' "$work/mine/init.log"
    genesis=$(sed -n 's/^genesis *//p' "$work/mine/init.log")
    "$pitser" guard run --config "$config" >"$work/mine/guard.log" 2>&1 &
    guardian=$!
    running+=("$guardian")
    until "$pitser" guard status --config "$config" 2>/dev/null | grep 'state *guarding' >/dev/null; do
        kill -0 "$guardian" 2>/dev/null || cannot "guard run ended: $(tail -n 3 "$work/mine/guard.log")"
        sleep 0.2
    done
}

# Sets `found` to what was found since the last call, a shortened line each.
new_findings() {
    { "$pitser" guard status --config "$config" || (($? == 1)); } |
        grep -E '^  [0-9-]+T[^ ]+ [A-Z]+-[0-9]+ ' | sed 's/^  //; s/\[[^]]\{60,\}\]/[...]/' >"$work/mine/findings" || true
    found=$(tail -n "+$((told + 1))" "$work/mine/findings")
    told=$(wc -l <"$work/mine/findings")
}

# Waits until all that is committed by now has been judged and sealed.
settle() {
    "$pitser" guard scan --config "$config" >"$work/mine/scan" || (($? == 1)) ||
        cannot 'the guardian does not answer'
    head -n 1 "$work/mine/scan"
    sleep 2
}

history() {
    "$pitser" history --config "$config" "$@" | sed 's/\[[^]]\{60,\}\]/[...]/'
}

expect_nothing() {
    settle
    new_findings
    if [[ -z $found ]]; then
        echo 'no finding'
    else
        printf '%s\n' "$found"
        $simple || disappoint 'a finding was raised by the application'
    fi
}

disappoint() {
    echo "NOT AS EXPECTED: $*"
    failed=1
}

# ---- The steps --------------------------------------------------------------

in_the_application() {
    step "1  mtamm notes an allergy in GNU Health"
    patient=$(work_in_application admit EE48002030001)
    work_in_application note "$patient" 'penicillin'
    expect_nothing
    history public.gnuhealth_patient "$patient" | tee "$work/mine/history"
    tail -n 2 "$work/mine/history" |
        grep 'update.*critical_info.*by mtamm via trytond (binding C)' >/dev/null ||
        disappoint 'history does not name mtamm'
}

behind_its_back() {
    step "2  somebody else does the same by psql"
    local sql="UPDATE gnuhealth_patient SET critical_info = 'none known' WHERE id = $patient" began ended
    began=$(now_ms)
    PGPASSWORD=$app_password psql --quiet --username=gnuhealth --dbname=hospital --command="$sql"
    until [[ $("$pitser" guard status --config "$config" || true) == *ACT-02*gnuhealth_patient* ]]; do
        (($(now_ms) - began < 10000)) || break
        sleep 0.02
    done
    ended=$(now_ms)
    echo "$sql"
    new_findings
    printf '%s\n' "$found" "after $((ended - began)) ms"
    [[ $found == *"ACT-02 public.gnuhealth_patient $patient "* ]] || disappoint 'no ACT-02'
    ((ended - began <= 1000)) || disappoint 'it took more than a second'
}

deleted() {
    step "3  mtamm deletes an address, a patient and a telephone number"
    local other
    other=$(work_in_application admit EE48002030002)
    work_in_application dismiss EE48002030002
    expect_nothing
    history public.gnuhealth_patient "$other" | grep -v '^  ' | tail -n 1 | tee "$work/mine/history"
    grep -q 'delete.*by mtamm via trytond (binding C)' "$work/mine/history" ||
        disappoint 'history does not name who deleted'
}

a_day() {
    step "4  a day's work"
    work_in_application day
    expect_nothing
}

evidence() {
    step "5  what a third person can verify"
    # A publication after the newest seal, so that all of them rest on one.
    local published verdict=0
    published=$(codes | wc -l)
    until (($(codes | wc -l) > published)); do sleep 0.2; done
    "$pitser" evidence export --patient EE48002030001 --config "$config" \
        --output "$work/mine/evidence.json" >"$work/mine/export.log" || cannot 'no evidence'
    sed -n '1s/.*: //p' "$work/mine/export.log"
    # In earnest these come from elsewhere: a register, and newspapers.
    {
        printf 'version = 1\n[[trail]]\norigin = "hospital.example/gnuhealth"\ngenesis = "%s"\n' "$genesis"
        codes | sed 's/.*/[[publication]]\ncode = "&"/'
    } >"$work/mine/anchors.toml"
    local verdict=0
    "$pitser" verify "$work/mine/evidence.json" --anchors "$work/mine/anchors.toml" || verdict=$?
    ((verdict == 0 || verdict == 2)) || disappoint "the evidence is broken: $verdict"
    echo "exit code $verdict"
}

# The publication codes that the authority has printed.
codes() {
    { grep '"published"' "$work/mine/dev.json" || true; } | sed 's/.*"code":"\([^"]*\)".*/\1/'
}

failed=0 told=0 found=''
find_postgres pg_restore
find_pitser
[[ -z $dump || -r $dump ]] || cannot "cannot read $dump"
make_cluster C.UTF-8
make_database
install_gnuhealth
write_client
start_application
start_authority --publish-every 3
write_config
step "0  $("$venv/bin/pip" list --format=freeze --disable-pip-version-check | sed -n 's/==/ /; /^gnuhealth /p; /^trytond /p' | paste -sd, | sed 's/,/, /') on PostgreSQL $version"
start_guardian
in_the_application
behind_its_back
deleted
a_day
evidence
exit "$failed"
