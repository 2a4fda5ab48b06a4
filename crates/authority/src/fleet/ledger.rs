//! What is known of each trail, and what follows from what comes in. Pure.

use std::collections::{BTreeMap, HashMap};
use std::fmt;

use data_encoding::HEXLOWER;
use pitser_client::fleet::{Judgement, Registration, entry};
use pitser_ksi::time::Second;
use pitser_tlog::checkpoint::Checkpoint;
use pitser_tlog::merkle::Hash;
use pitser_tlog::note::{Note, SignatureError, VerifierKey};
use serde_json::{Value, json};

/// Everybody who is registered.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    trails: BTreeMap<String, Trail>,
    /// Entries that a user has caused.
    by_user: HashMap<String, usize>,
    /// The log's entries.
    entries: Vec<Vec<u8>>,
}

/// One registered trail.
#[derive(Debug)]
pub(super) struct Trail {
    pub(super) registration: Registration,
    note: Note,
    /// Its place in the log.
    pub(super) entry: u64,
    /// Who registered it.
    pub(super) user: String,
    pub(super) registered_at: Second,
    /// Others that claimed the same origin.
    pub(super) refused: Vec<Refused>,
    pub(super) head: Option<Head>,
    pub(super) witnessed: Option<Witnessed>,
    /// When a head came last that was as long as any before.
    pub(super) seen_at: Option<Second>,
    /// By the guardian's clock, the newest request about its head.
    sent_us: u64,
    pub(super) shrunk: Option<Contradiction>,
    pub(super) forked: Option<Contradiction>,
    pace: Pace,
}

/// A registration of an origin that was taken.
#[derive(Debug)]
pub(super) struct Refused {
    text: String,
    pub(super) genesis: String,
    pub(super) entry: u64,
    pub(super) at: Second,
}

/// A head, with the signature of the trail and of known witnesses alone.
#[derive(Debug, Clone)]
pub(super) struct Head {
    pub(super) note: Note,
    pub(super) size: u64,
    root: Hash,
    /// How many of the authority's witnesses have cosigned it.
    pub(super) cosigned: usize,
}

/// The newest head that a witness has cosigned.
#[derive(Debug, Clone)]
pub(super) struct Witnessed {
    note: Note,
    pub(super) size: u64,
    pub(super) by: usize,
}

/// Two heads by one key that cannot both be true of a trail that only grows.
#[derive(Debug, Clone)]
pub(super) struct Contradiction {
    pub(super) held: String,
    pub(super) other: String,
    pub(super) at: Second,
}

/// What is done about a registration.
#[derive(Debug)]
pub(super) enum Registering {
    /// By this event it is known: a new entry, or one that is this user's from now on,
    /// as its user is gone.
    New(Value),
    /// Everything is as it was; the entry is there.
    Known(Judgement, u64),
    TooMany(&'static str),
}

/// What is done about a head.
#[derive(Debug)]
pub(super) enum Heading {
    /// Taken, by this event; one of trouble must be durable.
    Taken(Value),
    Contradicts {
        word: &'static str,
        held: u64,
        /// Only the first is kept.
        event: Option<Value>,
    },
    Refused(NotTaken),
}

/// Why a head is not even looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NotTaken {
    Unknown,
    NotYours,
    NotSigned,
    BadCosignature,
    Replayed,
    TooOften,
}

impl fmt::Display for NotTaken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unknown => "unknown: no trail of this origin is registered; register it first",
            Self::NotYours => "another user registered this origin",
            Self::NotSigned => "the key that is registered for this origin did not sign the head",
            Self::BadCosignature => "a witness's cosignature on the head does not verify",
            Self::Replayed => "a later request about this trail came before",
            Self::TooOften => "heads of this trail come too often; once in a few seconds is enough",
        })
    }
}

/// Heads in one stretch of time.
#[derive(Debug, Default)]
struct Pace {
    since: Second,
    heads: u32,
}

impl Pace {
    fn allows(&mut self, now: Second) -> bool {
        if now.since(self.since) >= PACE_S || now < self.since {
            *self = Self {
                since: now,
                heads: 0,
            };
        }
        self.heads += 1;
        self.heads <= PACE_HEADS
    }
}

/// Bounds that an operator chooses, and who is there.
pub(super) struct Bounds<'a> {
    pub(super) origins_per_user: usize,
    pub(super) is_user: &'a dyn Fn(&str) -> bool,
}

impl Ledger {
    pub(super) fn trails(&self) -> impl Iterator<Item = (&String, &Trail)> {
        self.trails.iter()
    }

    pub(super) fn trail(&self, origin: &str) -> Option<&Trail> {
        self.trails.get(origin)
    }

    pub(super) fn entries(&self) -> &[Vec<u8>] {
        &self.entries
    }

    /// Judges a registration that `user` brings; changes nothing.
    pub(super) fn register(
        &self,
        registration: &Registration,
        note: &Note,
        user: &str,
        now: Second,
        bounds: &Bounds<'_>,
    ) -> Registering {
        let event = |judgement: Judgement| {
            let kind = match judgement {
                Judgement::Registered => "registered",
                Judgement::Refused => "refused",
            };
            Registering::New(json!({
                "kind": kind, "at": now.0, "user": user, "note": note.to_string(),
            }))
        };
        let caused = self.by_user.get(user).copied().unwrap_or_default();
        let judgement = match self.trails.get(registration.origin()) {
            Some(held) if held.note.text() == note.text() => {
                if held.user == user || (bounds.is_user)(&held.user) {
                    return Registering::Known(Judgement::Registered, held.entry);
                }
                let origin = registration.origin();
                let event = json!({ "kind": "moved", "user": user, "origin": origin });
                return Registering::New(event);
            }
            Some(held) => {
                let known = held.refused.iter().find(|other| other.text == note.text());
                if let Some(known) = known {
                    return Registering::Known(Judgement::Refused, known.entry);
                }
                if held.refused.len() >= MAX_REFUSED {
                    return Registering::TooMany(
                        "other trails of this origin were refused too often",
                    );
                }
                Judgement::Refused
            }
            None if caused >= bounds.origins_per_user => {
                return Registering::TooMany(
                    "this user has registered as many trails as one may; the operator knows more",
                );
            }
            None => Judgement::Registered,
        };
        if caused >= bounds.origins_per_user.saturating_mul(2) || self.entries.len() >= MAX_ENTRIES
        {
            return Registering::TooMany("the fleet's log takes no more");
        }
        event(judgement)
    }

    /// Judges a head that `user` sends at `sent_us` by their clock. Changes only how
    /// often that was.
    pub(super) fn head(
        &mut self,
        sent: (&Checkpoint, &Note),
        user: &str,
        sent_us: u64,
        now: Second,
        witnesses: &[VerifierKey],
    ) -> Heading {
        let (checkpoint, note) = sent;
        let Some(trail) = self.trails.get_mut(checkpoint.origin()) else {
            return Heading::Refused(NotTaken::Unknown);
        };
        if trail.user != user {
            return Heading::Refused(NotTaken::NotYours);
        }
        if sent_us <= trail.sent_us {
            return Heading::Refused(NotTaken::Replayed);
        }
        if note.verify(&trail.registration.key).is_err() {
            return Heading::Refused(NotTaken::NotSigned);
        }
        if !trail.pace.allows(now) {
            return Heading::Refused(NotTaken::TooOften);
        }
        let Ok(head) = Head::new(note, &trail.registration.key, witnesses) else {
            return Heading::Refused(NotTaken::BadCosignature);
        };
        let event = |kind: &str, held: &str| {
            json!({
                "kind": kind, "at": now.0, "sent_us": sent_us, "origin": checkpoint.origin(),
                "note": head.note.to_string(), "held": held,
            })
        };
        let Some(held) = &trail.head else {
            return Heading::Taken(event("head", ""));
        };
        let (word, is_first) = match head.size.cmp(&held.size) {
            std::cmp::Ordering::Greater => return Heading::Taken(event("head", "")),
            std::cmp::Ordering::Equal if head.root == held.root => {
                return Heading::Taken(event("head", ""));
            }
            std::cmp::Ordering::Equal => ("forked", trail.forked.is_none()),
            std::cmp::Ordering::Less => ("shrunk", trail.shrunk.is_none()),
        };
        Heading::Contradicts {
            word,
            held: held.size,
            event: is_first.then(|| event(word, &held.note.to_string())),
        }
    }

    /// Whether an event about a registration means something after those before it.
    pub(super) fn accepts(&self, event: &Value) -> bool {
        let text = |name: &str| event[name].as_str();
        let is_known = |origin: &str| self.trails.contains_key(origin);
        let note = || Registration::open(text("note")?.as_bytes()).ok();
        let is_dated = || event["at"].is_u64();
        let fits = match text("kind") {
            Some("registered") => note().map(|(one, _)| is_dated() && !is_known(one.origin())),
            Some("refused") => note().map(|(one, _)| is_dated() && is_known(one.origin())),
            Some("moved") => text("origin").map(is_known),
            _ => None,
        };
        fits == Some(true) && text("user").is_some()
    }

    /// Takes an event, which has been kept, into account. `None` if it means nothing.
    pub(super) fn apply(&mut self, event: &Value, witnesses: &[VerifierKey]) -> Option<()> {
        let text = |name: &str| event[name].as_str();
        let at = || event["at"].as_u64().map(Second);
        match text("kind")? {
            "registered" => self.add(Judgement::Registered, at()?, text("user")?, text("note")?),
            "refused" => self.add(Judgement::Refused, at()?, text("user")?, text("note")?),
            "moved" => {
                self.trails.get_mut(text("origin")?)?.user = text("user")?.to_owned();
                Some(())
            }
            kind => {
                let trail = self.trails.get_mut(text("origin")?)?;
                trail.sent_us = trail.sent_us.max(event["sent_us"].as_u64()?);
                let contradiction = || {
                    Some(Contradiction {
                        held: text("held")?.to_owned(),
                        other: text("note")?.to_owned(),
                        at: at()?,
                    })
                };
                match kind {
                    "forked" => trail.forked = Some(contradiction()?),
                    "shrunk" => trail.shrunk = Some(contradiction()?),
                    "head" => trail.see(text("note")?, at()?, witnesses)?,
                    _ => return None,
                }
                Some(())
            }
        }
    }

    fn add(&mut self, judgement: Judgement, at: Second, user: &str, note: &str) -> Option<()> {
        let (registration, note) = Registration::open(note.as_bytes()).ok()?;
        let place = self.entries.len() as u64;
        let origin = registration.origin().to_owned();
        let held = self.trails.get_mut(&origin);
        match (judgement, held) {
            (Judgement::Registered, None) => {
                let trail = Trail::new(registration, note.clone(), place, user, at);
                self.trails.insert(origin, trail);
            }
            (Judgement::Refused, Some(held)) => held.refused.push(Refused {
                text: note.text().to_owned(),
                genesis: HEXLOWER.encode(registration.genesis.as_bytes()),
                entry: place,
                at,
            }),
            _ => return None,
        }
        self.entries.push(entry(judgement, at, &note));
        *self.by_user.entry(user.to_owned()).or_default() += 1;
        Some(())
    }

    /// What the heads come to, as few events.
    pub(super) fn heads(&self) -> impl Iterator<Item = Value> {
        self.trails.iter().flat_map(|(origin, trail)| {
            let event = |kind: &str, at: Second, note: &str, held: &str| {
                json!({
                    "kind": kind, "at": at.0, "sent_us": trail.sent_us, "origin": origin,
                    "note": note, "held": held,
                })
            };
            let seen_at = trail.seen_at.unwrap_or(trail.registered_at);
            let mut events = Vec::new();
            if let Some(witnessed) = &trail.witnessed {
                events.push(event("head", seen_at, &witnessed.note.to_string(), ""));
            }
            if let Some(head) = &trail.head {
                events.push(event("head", seen_at, &head.note.to_string(), ""));
            }
            for (kind, found) in [("forked", &trail.forked), ("shrunk", &trail.shrunk)] {
                if let Some(found) = found {
                    events.push(event(kind, found.at, &found.other, &found.held));
                }
            }
            events
        })
    }
}

impl Trail {
    fn new(registration: Registration, note: Note, entry: u64, user: &str, at: Second) -> Self {
        Self {
            registration,
            note,
            entry,
            user: user.to_owned(),
            registered_at: at,
            refused: Vec::new(),
            head: None,
            witnessed: None,
            seen_at: None,
            sent_us: 0,
            shrunk: None,
            forked: None,
            pace: Pace::default(),
        }
    }

    fn see(&mut self, note: &str, at: Second, witnesses: &[VerifierKey]) -> Option<()> {
        let note = Note::parse(note.as_bytes()).ok()?;
        let head = Head::new(&note, &self.registration.key, witnesses).ok()?;
        let before = self
            .witnessed
            .as_ref()
            .map_or((0, 0), |seen| (seen.size, seen.by));
        if head.cosigned > 0 && (head.size, head.cosigned) > before {
            self.witnessed = Some(Witnessed {
                note: head.note.clone(),
                size: head.size,
                by: head.cosigned,
            });
        }
        let is_better = |held: &Head| (head.size, head.cosigned) > (held.size, held.cosigned);
        if self.head.as_ref().is_none_or(is_better) {
            self.head = Some(head);
        }
        self.seen_at = self.seen_at.max(Some(at));
        Some(())
    }

    /// When anything was heard of it last.
    pub(super) fn heard_at(&self) -> Second {
        self.seen_at.unwrap_or(self.registered_at)
    }
}

impl Head {
    /// The head in a note, which is stripped of what nobody here knows.
    fn new(note: &Note, key: &VerifierKey, witnesses: &[VerifierKey]) -> Result<Self, ()> {
        let checkpoint = Checkpoint::open(note, key.name(), key).map_err(drop)?;
        let mut stripped = format!("{}\n", note.text());
        let mut add = |key: &VerifierKey| {
            let line = note.signatures().iter().find(|line| key.made(line));
            stripped += &line.map(ToString::to_string).unwrap_or_default();
        };
        add(key);
        let mut cosigned = 0;
        for witness in witnesses {
            match note.cosigned_at(witness) {
                Ok(_) => {
                    add(witness);
                    cosigned += 1;
                }
                Err(SignatureError::Missing) => {}
                Err(_) => return Err(()),
            }
        }
        Ok(Self {
            note: Note::parse(stripped.as_bytes()).map_err(drop)?,
            size: checkpoint.size(),
            root: *checkpoint.root(),
            cosigned,
        })
    }
}

/// Other trails that are kept of one origin.
const MAX_REFUSED: usize = 16;

/// Entries of the log: about 40 MB in memory.
const MAX_ENTRIES: usize = 1 << 16;

/// So many heads of one trail are taken in so many seconds.
const PACE_HEADS: u32 = 30;
const PACE_S: u64 = 10;

#[cfg(test)]
mod tests {
    use pitser_client::fleet::system_id;
    use pitser_ksi::hash::{Algorithm, hash};
    use pitser_tlog::note::{CosigningKey, SigningKey};

    use super::*;

    const NOW: Second = Second(1_773_480_413);
    const ORIGIN: &str = "hospital.example/ehr";

    fn key() -> SigningKey {
        SigningKey::from_seed(ORIGIN, &[1; 32]).unwrap()
    }

    fn registration() -> Value {
        let registration = Registration {
            key: key().verifier(),
            genesis: hash(Algorithm::Sha256, &[b"genesis"]),
            system: system_id("7312"),
            begun_at: NOW,
        };
        let note = registration.sign(&key()).unwrap().to_string();
        json!({ "kind": "registered", "at": NOW.0, "user": "anon", "note": note })
    }

    fn head(size: u64, root: u8) -> Note {
        let head = Checkpoint::new(ORIGIN, size, [root; 32]).unwrap();
        head.sign(&key()).unwrap()
    }

    fn event(kind: &str, sent_us: u64, note: &Note) -> Value {
        json!({
            "kind": kind, "at": NOW.0 + sent_us, "sent_us": sent_us, "origin": ORIGIN,
            "note": note.to_string(), "held": head(3, 3).to_string(),
        })
    }

    /// The file of heads is rewritten from this: what it leaves out is forgotten.
    #[test]
    fn a_rewritten_history_comes_to_the_same() {
        let witness = CosigningKey::from_seed("w.example", &[2; 32]).unwrap();
        let witnesses = [witness.verifier()];
        let mut cosigned = head(4, 4);
        cosigned
            .add(witness.cosign(cosigned.text(), NOW.0))
            .unwrap();
        let events = [
            event("head", 1, &head(3, 3)),
            event("head", 2, &head(4, 4)),
            event("head", 3, &cosigned),
            event("forked", 4, &head(3, 9)),
            event("shrunk", 5, &head(2, 2)),
            event("head", 6, &head(9, 9)),
            event("head", 7, &head(9, 9)),
        ];
        let read = |events: &[Value]| {
            let mut ledger = Ledger::default();
            for event in [registration()].iter().chain(events) {
                ledger.apply(event, &witnesses).unwrap();
            }
            ledger
        };
        for many in 0..=events.len() {
            let ledger = read(&events[..many]);
            let rewritten: Vec<Value> = ledger.heads().collect();
            assert!(rewritten.len() <= 4);
            assert_eq!(format!("{:?}", read(&rewritten)), format!("{ledger:?}"));
        }
        let ledger = read(&events);
        let trail = ledger.trail(ORIGIN).unwrap();
        let witnessed = trail.witnessed.as_ref().unwrap();
        assert_eq!((witnessed.size, witnessed.by), (4, 1));
        assert_eq!(trail.head.as_ref().unwrap().size, 9);
        assert_eq!(trail.seen_at, Some(NOW.plus(7)));
    }

    #[test]
    fn what_nobody_here_knows_is_not_kept() {
        let stranger = CosigningKey::from_seed("w9.example", &[9; 32]).unwrap();
        let mut note = head(4, 4);
        note.add(stranger.cosign(note.text(), NOW.0)).unwrap();
        let kept = Head::new(&note, &key().verifier(), &[]).unwrap();
        assert_eq!((kept.note, kept.cosigned), (head(4, 4), 0));
    }

    #[test]
    fn events_that_mean_nothing_change_nothing() {
        let mut ledger = Ledger::default();
        for bad in [
            json!(1),
            json!({ "kind": "registered" }),
            json!({ "kind": "registered", "at": 1, "user": "a", "note": "x" }),
            json!({ "kind": "moved", "user": "a", "origin": ORIGIN }),
            event("head", 1, &head(1, 1)),
        ] {
            assert!(!ledger.accepts(&bad), "{bad}");
            assert_eq!(ledger.apply(&bad, &[]), None, "{bad}");
        }
        let with = |name: &str, value: Value| {
            let mut event = registration();
            event[name] = value;
            event
        };
        for bad in [
            with("kind", "refused".into()),
            with("at", "1".into()),
            with("user", Value::Null),
        ] {
            assert!(!ledger.accepts(&bad), "{bad}");
            assert_eq!(ledger.apply(&bad, &[]), None, "{bad}");
        }
        assert!(ledger.accepts(&registration()));
        ledger.apply(&registration(), &[]).unwrap();
        // The second one of an origin is refused, never registered.
        assert!(!ledger.accepts(&registration()));
        assert_eq!(ledger.apply(&registration(), &[]), None);
        let moved = json!({ "kind": "moved", "user": "b", "origin": ORIGIN });
        for good in [with("kind", "refused".into()), moved] {
            assert!(ledger.accepts(&good), "{good}");
        }
        // Heads are no registrations.
        assert!(!ledger.accepts(&event("head", 1, &head(1, 1))));
        assert_eq!(ledger.apply(&event("other", 1, &head(1, 1)), &[]), None);
        assert_eq!(ledger.entries().len(), 1);
    }
}
