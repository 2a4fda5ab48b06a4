#!/usr/bin/env python3
"""Recomputes the vectors from the chapters in docs/spec alone.

Standard library only, and none of the Rust code: where this script and the
crates agree, the chapters say enough. Signatures (Ed25519, ECVRF, RSA) and the
KSI-compatible seals are left to others.
"""
import base64, hashlib, hmac, json, pathlib, struct

HERE = pathlib.Path(__file__).parent
load = lambda name: json.loads((HERE / name).read_text())
unhex = bytes.fromhex
H = lambda *parts: hashlib.sha256(b"".join(parts)).digest()
mac = lambda key, *parts: hmac.new(key, b"".join(parts), hashlib.sha256).digest()
imprint = lambda *parts: "01" + H(*parts).hex()
u16, u32, u64 = (lambda n, f=f: struct.pack(f, n) for f in (">H", ">I", ">Q"))


def same(got, want, what):
    if isinstance(got, bytes):
        got = got.hex()
    assert got == want, f"{what}: {got} is not {want}"


def tree(leaves):  # RFC 6962 over ready leaf hashes
    if not leaves:
        return bytes(32)
    if len(leaves) == 1:
        return leaves[0]
    split = 1 << (len(leaves) - 1).bit_length() - 1
    return H(b"\x01", tree(leaves[:split]), tree(leaves[split:]))


def row(columns):
    names = b"".join(u16(len(n)) + n for n, _ in columns)
    return imprint(b"pitser/v1/row\0", u16(len(columns)), names, tree([leaf for _, leaf in columns]))


def column(nonce, name, value):
    return H(b"\0", nonce, u16(len(name)), name, b"\1" if value is None else b"\0", value or b"")


def commitments():
    v = load("commitments.json")
    n = v["line_nonce"]
    nonce = mac(unhex(n["key"]), b"pitser/v1/line\0", n["origin"].encode(), b"\0", u32(n["timeline"]), u64(n["seq"]))
    same(nonce, n["nonce"], "line nonce")
    for case in v["rows"]:
        columns = []
        for c in case["columns"]:
            name, value = c["name"].encode(), None if c["value"] is None else unhex(c["value"])
            column_nonce = mac(nonce, b"column\0", name)
            same(column_nonce, c["nonce"], "column nonce")
            columns.append((name, column(column_nonce, name, value)))
            same(columns[-1][1], c["leaf"], "column leaf")
        same(row(columns), case["row"], "row")
    p, r = v["person"], v["raw"]
    same(mac(nonce, b"person\0"), p["nonce"], "person's nonce")
    same(imprint(b"pitser/v1/person\0", unhex(p["nonce"]), p["value"].encode()), p["commitment"], "person")
    same(mac(nonce, b"raw\0"), r["nonce"], "raw nonce")
    same(imprint(b"pitser/v1/raw\0", unhex(r["nonce"]), unhex(r["value"])), r["commitment"], "raw")
    k, t = v["record_key"], v["table_key"]
    cells = [unhex(c) for c in k["cells"]]
    same(mac(unhex(k["table_key"]), *(u32(len(c)) + c for c in cells)), k["key"], "record key")
    same(imprint(b"pitser/v1/table-key\0", t["table"].encode(), b"\0", unhex(t["key"])), t["commitment"], "table key")
    for p in v["pseudonyms"]:
        same(b"pitser/v1/patient\0" + p["origin"].encode() + b"\0" + p["id"].encode(), p["alpha"], "alpha")


bit = lambda key, depth: key[depth // 8] >> 7 - depth % 8 & 1
leaf_hash = lambda key, value_hash: H(b"\0", key, value_hash)
EMPTY = bytes(32)


def map_root(leaves, depth=0):  # {key: hash of the value}
    if not leaves:
        return EMPTY
    if len(leaves) == 1:
        return leaf_hash(*next(iter(leaves.items())))
    side = lambda s: {k: v for k, v in leaves.items() if bit(k, depth) == s}
    return H(b"\1", map_root(side(0), depth + 1), map_root(side(1), depth + 1))


def path_root(key, value, path):
    siblings = [unhex(s) for s in path["siblings"]]
    other = path.get("other")
    if value is not None:
        assert other is None
        at = leaf_hash(key, H(value))
    elif other is None:
        at = EMPTY
    else:
        there = unhex(other["key"])
        assert there != key and all(bit(there, d) == bit(key, d) for d in range(len(siblings)))
        at = leaf_hash(there, unhex(other["value"]))
    for depth in reversed(range(len(siblings))):
        pair = (at, siblings[depth]) if bit(key, depth) == 0 else (siblings[depth], at)
        at = H(b"\1", *pair)
    return at


def patient_key(text):
    return H(b"pitser/v1/map/patient\0", text.encode())


def record_key(table, key):
    return H(b"pitser/v1/map/record\0", table.encode(), b"\0", unhex(key))


def map_leaf(kind, count, last_seq, last_hash, row):
    out = b"\1" + (b"\1" if kind == "patient" else b"\0") + u64(count) + u64(last_seq) + unhex(last_hash)
    if kind == "record":
        out += b"\1" + unhex(row["row"]) + u32(row["timeline"]) + u64(row["seq"]) if row else b"\0"
    return out


def maps():
    v = load("map.json")
    same(record_key(v["record_key"]["table"], v["record_key"]["key"]), v["record_key"]["map_key"], "record's map key")
    for p in v["patient_keys"]:
        same(patient_key(p["patient"]), p["map_key"], "patient's map key")
    for leaf in v["leaves"]:
        same(map_leaf(*(leaf[m] for m in ("kind", "count", "last_seq", "last_hash", "row"))), leaf["bytes"], "map leaf")
    for case in v["sets"]:
        leaves = {unhex(l["key"]): H(unhex(l["value"])) for l in case["leaves"]}
        same(map_root(leaves), case["root"], "map root")
        for proof in case["proofs"]:
            value = None if proof["value"] is None else unhex(proof["value"])
            same(path_root(unhex(proof["key"]), value, proof["path"]), case["root"], "map path")


def canonical(line):  # RFC 8785: our names and integers need no more than this
    return json.dumps(line, ensure_ascii=False, separators=(",", ":"), sort_keys=True).encode()


def replay(lines):
    """The map over the lines; each must follow from those before it."""
    records, patients, open_event, genesis = {}, {}, None, json.loads(lines[0])["genesis"]
    pointer = lambda leaf: leaf and {"hash": leaf["last_hash"], "seq": leaf["last_seq"]}
    for seq, text in enumerate(lines):
        line, hash_ = json.loads(text), imprint(text)
        assert canonical(line) == text and line["seq"] == seq
        assert line["event"] == (seq if open_event is None else open_event)
        open_event = line["event"] if "more" in line else None
        for name, leaves, key in (
            ("prev", records, (line.get("table"), line.get("key"))),
            ("patient_prev", patients, line.get("patient")),
        ):
            if key is None or None in (key if isinstance(key, tuple) else (key,)):
                continue
            assert line.get(name) == pointer(leaves.get(key)), (seq, name)
            leaf = leaves.setdefault(key, {"count": 0, "row": None})
            leaf.update(count=leaf["count"] + 1, last_seq=seq, last_hash=hash_)
            if name == "prev" and "row" in line:
                leaf["row"] = {"row": line["row"], "timeline": genesis["timeline"], "seq": seq}
            elif name == "prev" and line["op"] == "delete":
                leaf["row"] = None
    entry = lambda kind, l: H(map_leaf(kind, l["count"], l["last_seq"], l["last_hash"], l["row"]))
    found = {record_key(*key): entry("record", leaf) for key, leaf in records.items()}
    found |= {patient_key(key): entry("patient", leaf) for key, leaf in patients.items()}
    return map_root(found)


def block_root(block, lines):  # docs/spec/40-logsig.md, SHA-256 throughout
    previous, iv = unhex(block["previous_leaf"]), unhex(block["iv"])
    I = lambda *parts: b"\1" + H(*parts)
    record = lambda index: index.to_bytes((index.bit_length() + 7) // 8, "big")
    text = lambda tag, s: bytes([tag, len(s) + 1]) + s + b"\0"
    pair = text(1, b"com.guardtime.blockCloseReason") + text(2, b"a second has passed")
    index = record(len(lines))
    body = bytes([1, len(index)]) + index + bytes([2, len(pair)]) + pair
    metarecord = b"\x89\x11" + u16(len(body)) + body
    slots = []
    parent = lambda left, right, slot: I(left, right, bytes([slot + 2]))
    for kind, data in [("line", l) for l in lines] + [("meta", metarecord)]:
        mask, hash_ = I(previous, iv), I(data)
        top = previous = I(mask, hash_, b"\1") if kind == "line" else I(hash_, mask, b"\1")
        slot = 0
        while slot < len(slots) and slots[slot] is not None:
            top, slots[slot] = parent(slots[slot], top, slot), None
            slot += 1
        slots[slot:slot + 1] = [top]
    root = None
    for slot, subtree in enumerate(slots):
        if subtree is not None:
            root = subtree if root is None else parent(subtree, root, slot)
    return root, previous


def trail():
    lines = (HERE / "trail.jsonl").read_bytes().splitlines()
    v, m, t = load("blocks.json"), load("map.json"), load("texts.json")
    for text, hash_ in zip(lines, v["line_hashes"], strict=True):
        same(imprint(text), hash_, "line hash")
    entries, last_leaf = [], b"\1" + bytes(32)
    for block in v["blocks"]:
        first, end = block["first_seq"], block["first_seq"] + block["count"]
        same(last_leaf, block["previous_leaf"], "last leaf of the block before")
        root, last_leaf = block_root(block, lines[first:end])
        same(root, block["root"], "block root")
        same(replay(lines[:end]), block["map"][2:], "map root of a block")
        origin = block["origin"].encode()
        entry = b"\1" + u16(len(origin)) + origin + u64(block["block"]) + u64(first) + u64(block["count"])
        entry += root + bytes([block["level"]]) + unhex(block["map"])
        same(entry, block["entry"], "log entry")
        entries.append(H(b"\0", entry))
        same(entries[-1], block["entry_hash"], "log leaf")
    same(tree(entries), v["log_root"], "log root")
    last = v["blocks"][-1]
    statement = ["pitser-audit/1", last["origin"], imprint(lines[0]), str(last["block"])]
    statement += [f"{len(entries)} {base64.b64encode(tree(entries)).decode()}", last["map"], "18", ""]
    same("\n".join(statement), t["audit"]["text"], "audit statement")
    evidence()


def evidence():
    t, root_of_all = load("texts.json"), load("blocks.json")["blocks"][-1]["map"][2:]
    for name in ("evidence-pt-1.json", "evidence-pt-3.json", "evidence-partial.json"):
        file = json.loads((HERE / name).read_text())
        assert canonical(file) + b"\n" == (HERE / name).read_bytes()
        unsigned = {member: value for member, value in file.items() if member != "signature"}
        if name == t["evidence"]["file"]:
            text = f"pitser-evidence/1\n{file['origin']}\n{imprint(canonical(unsigned))}\n"
            same(text, t["evidence"]["signed_text"], "signed text")
        root = base64.b64decode(file["blocks"][-1]["leaf"])[-32:].hex()
        if name != "evidence-partial.json":
            same(root, root_of_all, "map root under the head")
        for who in ("*many", "*unknown"):
            entry = file["map"][who[1:]]
            listed(file, who, entry)
            same(path_root(patient_key(who), base64.b64decode(entry["leaf"]), entry["path"]), root, f"list of {who}")
        for proof in file["lines"]:
            shown = proof.get("open", {}).get("columns")
            if shown:
                columns = [(c["name"].encode(), opened(c)) for c in shown]
                same(row(columns), proof["line"]["row"], "opened row")


def listed(file, who, entry):
    """The lines shown are the list's last, and all but the first `before` of them."""
    lines = [proof["line"] for proof in file["lines"] if proof["line"].get("patient") == who]
    before = entry.get("before", 0)
    assert (file["format"] == "pitser-evidence/3") == ("before" in file["map"]["unknown"])
    assert (before > 0) == ("patient_prev" in lines[0])
    for last, line in zip(lines, lines[1:]):
        same(line["patient_prev"], {"hash": imprint(canonical(last)), "seq": last["seq"]}, "line before")
    leaf = map_leaf("patient", before + len(lines), lines[-1]["seq"], imprint(canonical(lines[-1])), None)
    same(leaf, base64.b64decode(entry["leaf"]).hex(), f"leaf of {who}")


def genesis():
    old = json.loads((HERE / "trail.jsonl").read_bytes().split(b"\n")[0])
    lines = (HERE / "genesis.jsonl").read_bytes().splitlines()
    for rules, text in zip((15, 16, 17), lines, strict=True):
        line = json.loads(text)
        assert canonical(line) == text and (line["v"], line["op"]) == (4, "genesis")
        assert line["genesis"].pop("rules") == rules
        assert {**line, "v": 1} == old, "it is that of the trail but for its rules"


def erasure():
    text = (HERE / "erase.jsonl").read_bytes()
    line, n = json.loads(text), load("commitments.json")["line_nonce"]
    assert canonical(line) + b"\n" == text and (line["v"], line["op"]) == (2, "erase")
    nonce = mac(bytes([0x33] * 32), b"pitser/v1/line\0", n["origin"].encode(), b"\0", u32(n["timeline"]), u64(line["seq"]))
    for which, name in enumerate((b"Mari Maasikas", b"Jaan Tamm")):
        own = mac(nonce, b"decider\0", bytes([which]))
        same(imprint(b"pitser/v1/person\0", own, name), line["erase"]["deciders"][which], "decider")


def acceptance():
    text = (HERE / "accept.jsonl").read_bytes()
    line, n = json.loads(text), load("commitments.json")["line_nonce"]
    assert canonical(line) + b"\n" == text and (line["v"], line["op"]) == (3, "accept")
    nonce = mac(bytes([0x33] * 32), b"pitser/v1/line\0", n["origin"].encode(), b"\0", u32(n["timeline"]), u64(line["seq"]))
    same(imprint(b"pitser/v1/person\0", mac(nonce, b"person\0"), b"Mari Maasikas"), line["actor"]["person"], "who accepts")
    same(imprint(b"pitser/v1/raw\0", mac(nonce, b"raw\0"), b"the nightly import"), line["raw"], "why")


def holds():
    lines, n = (HERE / "hold.jsonl").read_bytes().splitlines(), load("commitments.json")["line_nonce"]
    said = (("hold", b"Mari Maasikas", b"court case 2-26-117"), ("release", b"Jaan Tamm", b"2-26-117 is closed"))
    before = None
    for text, (op, by, why) in zip(lines, said, strict=True):
        line = json.loads(text)
        assert canonical(line) == text and (line["v"], line["op"]) == (5, op)
        nonce = mac(bytes([0x33] * 32), b"pitser/v1/line\0", n["origin"].encode(), b"\0", u32(n["timeline"]), u64(line["seq"]))
        same(imprint(b"pitser/v1/person\0", mac(nonce, b"person\0"), by), line["actor"]["person"], "who decides")
        same(imprint(b"pitser/v1/raw\0", mac(nonce, b"raw\0"), why), line["raw"], "why")
        assert line.get("patient_prev") == before and line.get("release") == (before and {"hold": before})
        before = {"hash": imprint(text), "seq": line["seq"]}


def opened(c):
    value = c["value"].encode() if "value" in c else base64.b64decode(c["bytes"]) if "bytes" in c else None
    return unhex(c["hidden"]) if "hidden" in c else column(unhex(c["nonce"]), c["name"].encode(), value)


if __name__ == "__main__":
    commitments()
    maps()
    trail()
    genesis()
    erasure()
    acceptance()
    holds()
    print("all vectors follow from the chapters")
