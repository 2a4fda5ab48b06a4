//! An auditor asks a running guardian (docs/spec/64-audit-http.md): every request is
//! signed, every answer is bounded in size and time, and nothing in it is believed
//! before the replay has seen it.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use pitser_client::ClientError;
use pitser_client::site::{Reply, Site as Way};
use pitser_evidence::anchors::trusted;
use pitser_evidence::codec::Digest;
use pitser_evidence::line::Line;
use pitser_evidence::sample::{MAX_ANSWER, Question, Shown};
use pitser_tlog::note::{Note, SigningKey, VerifierKey};
use pitser_trail::disk::{self, At, DiskError};
use pitser_trail::serve::Part;
use pitser_trail::{Layout, read};
use serde_json::Value;
use tokio::runtime::Handle;

use super::copy::Copy;
use super::desk::{HandedOver, PIECE, PUBLICATIONS, SEGMENTS, TrailState, WAIT_S, name_of};
use super::follow::{HEAD_MAX, is_anchored};
use super::request::{self, Signed};
use super::sampling::Sampling;
use super::{AuditError, Audited, Auditor, Doubt, Judge, Known, cosigned, named_key};
use crate::Clock;

/// For an answer that nobody waits for at the other end.
const PATIENCE: Duration = Duration::from_secs(30);
/// Opened rows and statements take the guardian longer.
const LONG_PATIENCE: Duration = Duration::from_secs(120);
/// Attempts at one question, and the pause after the first, which doubles.
const ATTEMPTS: u32 = 4;
const PAUSE: Duration = Duration::from_millis(250);
/// Bytes of the state of a trail.
const STATE: usize = (HEAD_MAX as usize) * 2 + SEGMENTS as usize * 256;
/// Letters of what a guardian says, as it is repeated.
const WORDS: usize = 200;

/// Why a guardian's answer cannot be used. Nothing is said of its trail.
#[derive(Debug, thiserror::Error)]
pub enum RemoteError {
    /// It does not answer.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// It does not know the key, or this machine's clock is wrong.
    #[error(
        "{site} does not answer this key: its operator has to name the key under [[auditor]]{clocks}"
    )]
    Stranger {
        /// The guardian.
        site: String,
        /// How the clocks differ, if they do.
        clocks: String,
    },
    /// It answers with a refusal.
    #[error("{site} answered HTTP {status}: {why}")]
    Refused {
        /// The guardian.
        site: String,
        /// The HTTP status.
        status: u16,
        /// In its words.
        why: String,
    },
    /// Its answer is not what the protocol allows.
    #[error("{site} does not answer as a guardian does: {what}. Ask its operator")]
    Unfit {
        /// The guardian.
        site: String,
        /// What is wrong with the answer.
        what: String,
    },
    /// A file of the copy cannot be read or written.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// There are no random numbers.
    #[error("the system gave no random numbers: {0}")]
    Random(getrandom::Error),
}

/// A guardian's HTTP side, for one trail.
pub struct Site {
    way: Way,
    origin: String,
    source: String,
    clock: Clock,
    runtime: Handle,
}

impl fmt::Debug for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Site({}, {})", self.way, self.origin)
    }
}

impl Site {
    /// The trail `origin` at a guardian. Its source is the name after the last `/`.
    pub fn new(way: Way, origin: &str, clock: Clock, runtime: Handle) -> Self {
        let source = origin.rsplit('/').next().unwrap_or(origin);
        Self {
            way,
            origin: origin.to_owned(),
            source: source.to_owned(),
            clock,
            runtime,
        }
    }

    /// How the trail stands, from segment `from` on; with more blocks than `known` under
    /// its head, or after `wait_s` seconds.
    pub(super) fn state(
        &self,
        key: &SigningKey,
        known: u64,
        wait_s: u64,
        from: u32,
    ) -> Result<TrailState, RemoteError> {
        let wait_s = wait_s.min(WAIT_S);
        let target = self.target(&format!("state?known={known}&wait={wait_s}&from={from}"));
        let patience = PATIENCE + Duration::from_secs(wait_s);
        let body = self.get(key, &target, STATE, patience)?;
        let body = body.ok_or_else(|| self.unfit("it does not know how its trail stands"))?;
        let state: TrailState = serde_json::from_slice(&body)
            .map_err(|_| self.unfit("how its trail stands cannot be read"))?;
        match state
            .head
            .as_ref()
            .is_some_and(|h| h.len() as u64 > HEAD_MAX)
            || state.segments.len() > SEGMENTS as usize
        {
            true => Err(self.unfit("its head or its list of segments is too long")),
            false => Ok(state),
        }
    }

    /// A piece of a file, from byte `from` on; `None` if it is not there.
    pub(super) fn piece(
        &self,
        key: &SigningKey,
        number: u32,
        part: Part,
        from: u64,
    ) -> Result<Option<Vec<u8>>, RemoteError> {
        let name = name_of(part);
        let target = self.target(&format!("segments/{number}/{name}?from={from}"));
        self.get(key, &target, PIECE, PATIENCE)
    }

    /// The newest publications file, if it has one.
    pub(super) fn publications(&self, key: &SigningKey) -> Result<Option<Vec<u8>>, RemoteError> {
        self.get(key, &self.target("publications"), PUBLICATIONS, PATIENCE)
    }

    /// Opens rows.
    pub(super) fn rows(&self, key: &SigningKey, rows: &[u64]) -> Result<Shown, RemoteError> {
        let question = Question {
            rows: rows.to_vec(),
        };
        let body = serde_json::to_vec(&question).expect("numbers have a JSON form");
        let reply = self.ask(key, "sample", body, MAX_ANSWER)?;
        let shown: Shown = serde_json::from_slice(&reply)
            .map_err(|_| self.unfit("the rows that it shows cannot be read"))?;
        match shown.rows.len() == rows.len() {
            true => Ok(shown),
            false => Err(self.unfit("it shows another number of rows")),
        }
    }

    /// Hands a statement over.
    pub(super) fn give(&self, key: &SigningKey, note: &str, head: &str) -> Result<(), RemoteError> {
        let handed = HandedOver {
            head: head.to_owned(),
            note: note.to_owned(),
        };
        let body = serde_json::to_vec(&handed).expect("two texts have a JSON form");
        self.ask(key, "statement", body, ANSWER).map(drop)
    }

    pub(super) fn unfit(&self, what: impl Into<String>) -> RemoteError {
        RemoteError::Unfit {
            site: self.way.to_string(),
            what: what.into(),
        }
    }

    fn target(&self, what: &str) -> String {
        format!("/audit/{}/{what}", self.source)
    }

    fn get(
        &self,
        key: &SigningKey,
        target: &str,
        max: usize,
        patience: Duration,
    ) -> Result<Option<Vec<u8>>, RemoteError> {
        let max = max.max(ANSWER);
        let reply = self.exchange(|| {
            let header = self.authorize(key, "GET", target, b"")?;
            let got = self.way.get(target, &header, max, patience);
            Ok(self.runtime.block_on(got)?)
        })?;
        match reply.status {
            404 => Ok(None),
            _ => self.body(reply).map(Some),
        }
    }

    fn ask(
        &self,
        key: &SigningKey,
        what: &str,
        body: Vec<u8>,
        max: usize,
    ) -> Result<Vec<u8>, RemoteError> {
        let target = self.target(what);
        let reply = self.exchange(|| {
            let header = self.authorize(key, "POST", &target, &body)?;
            let sent = self
                .way
                .post(&target, &header, body.clone(), max, LONG_PATIENCE);
            Ok(self.runtime.block_on(sent)?)
        })?;
        self.body(reply)
    }

    fn authorize(
        &self,
        key: &SigningKey,
        method: &str,
        target: &str,
        body: &[u8],
    ) -> Result<String, RemoteError> {
        let signed = Signed {
            origin: &self.origin,
            method,
            target,
            body,
        };
        let nonce = request::nonce().map_err(RemoteError::Random)?;
        Ok(signed.authorize(key, (self.clock)() / 1000, &nonce))
    }

    /// Tries again, each time signed anew, where that may help.
    fn exchange(
        &self,
        mut once: impl FnMut() -> Result<Reply, RemoteError>,
    ) -> Result<Reply, RemoteError> {
        let mut pause = PAUSE;
        for attempt in 1..ATTEMPTS {
            match once() {
                Ok(reply) if matches!(reply.status, 429 | 503) => {}
                // It may have been signed while the guardian was starting.
                Ok(reply) if reply.status == 401 && attempt == 1 => {}
                Ok(reply) => return Ok(reply),
                Err(RemoteError::Client(
                    error @ (ClientError::Connect { .. } | ClientError::Lost { .. }),
                )) => tracing::debug!(%error, "asking again"),
                Err(error) => return Err(error),
            }
            self.runtime
                .block_on(async { tokio::time::sleep(pause).await });
            pause *= 2;
        }
        once()
    }

    fn body(&self, reply: Reply) -> Result<Vec<u8>, RemoteError> {
        if reply.status == 200 {
            return Ok(reply.body.to_vec());
        }
        let said: Value = serde_json::from_slice(&reply.body).unwrap_or_default();
        let site = self.way.to_string();
        if reply.status == 401 {
            let now_ms = said["now_ms"].as_u64().unwrap_or_default();
            let ours_ms = (self.clock)() / 1000;
            let clocks = match now_ms.abs_diff(ours_ms) > request::CLOCKS_MS / 2 && now_ms > 0 {
                true => format!(
                    "; its clock and this one's are {} seconds apart",
                    now_ms.abs_diff(ours_ms) / 1000
                ),
                false => String::new(),
            };
            return Err(RemoteError::Stranger { site, clocks });
        }
        let why = said["error"].as_str().unwrap_or("it does not say why");
        let why = why.chars().filter(|c| !c.is_control()).take(WORDS);
        Err(RemoteError::Refused {
            site,
            status: reply.status,
            why: why.collect(),
        })
    }
}

/// What is known of a trail that begins with this line, if the anchors have it.
fn anchored(
    site: &Site,
    judge: Judge<'_>,
    line: &Line,
    genesis: Digest,
) -> Result<KnownAt, AuditError> {
    let known = Known {
        origin: site.origin.clone(),
        genesis,
        witnesses: Vec::new(),
        quorum: judge.anchors.witness_quorum as usize,
    };
    is_anchored(judge.anchors, &known)?;
    let genesis = line.genesis.as_deref();
    let log_key = named_key(genesis.map(|genesis| genesis.log_key.as_str()), &known)?;
    Ok(KnownAt { known, log_key })
}

/// Bytes of an answer that is no piece of the trail.
const ANSWER: usize = 16 << 10;

/// What is known of a trail before it is fetched.
struct KnownAt {
    known: Known,
    log_key: VerifierKey,
}

/// What a look is about.
#[derive(Clone, Copy)]
struct Asked<'a> {
    site: &'a Site,
    look: Look,
    state: &'a TrailState,
    known: &'a KnownAt,
}

/// What progress is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Bytes were fetched.
    Bytes,
    /// Lines were read.
    Lines,
}

fn remove(copy: &Path) -> Result<(), DiskError> {
    match copy.exists() {
        true => std::fs::remove_dir_all(copy).at(copy, "cannot remove"),
        false => Ok(()),
    }
}

/// Whether the guardian has the statement.
#[derive(Debug)]
pub enum Given {
    /// Now, or since an earlier look.
    Taken,
    /// Not: why.
    Not(RemoteError),
}

/// How a guardian's trail is looked at.
#[derive(Debug, Clone, Copy)]
pub struct Look {
    /// Seconds to wait for a head that is newer than what was signed.
    pub wait_s: u64,
    /// Whether the guardian's publications file is fetched, to judge seals by.
    pub publications: bool,
    /// Rows of a sample; 0: none.
    pub rows: usize,
    /// Seconds between two samples.
    pub rows_every_s: u64,
    /// Of a hundred rows of a sample, so many may be refused; with more, nothing is signed.
    pub refusals_at_most: u8,
}

impl Auditor {
    /// Fetches what is new of the trail at `site` into a copy of his own, replays it up to
    /// the cosigned head, has a sample of rows opened if one is due, and signs, as
    /// [`Auditor::follow`] does. `progress` is told the bytes fetched, then the lines read.
    ///
    /// Nobody is accused because of a copy: what is wrong with it is fetched again from
    /// the genesis on, and replayed.
    ///
    /// # Errors
    /// [`AuditError`]: nothing is signed.
    pub fn follow_site(
        &mut self,
        site: &Site,
        look: Look,
        judge: Judge<'_>,
        progress: &mut dyn FnMut(Step, u64),
    ) -> Result<Audited, AuditError> {
        let known = self.known_at(site, judge)?;
        match self.follow_known(site, look, judge, &known, progress) {
            Err(error) if error.is_of_copy() => match self.served_instead(site, judge, &known) {
                Ok(Some(served)) => {
                    tracing::warn!(%error, "another trail of this name is served, which the anchors have too: it is followed");
                    self.follow_known(site, look, judge, &served, progress)
                }
                _ => Err(error),
            },
            outcome => outcome,
        }
    }

    /// The same, of the trail that begins as is known.
    fn follow_known(
        &mut self,
        site: &Site,
        look: Look,
        judge: Judge<'_>,
        known: &KnownAt,
        progress: &mut dyn FnMut(Step, u64),
    ) -> Result<Audited, AuditError> {
        let genesis = known.known.genesis;
        let signed = self.newest(&genesis)?;
        let signed = signed.map_or(0, |signed| signed.statement.size);
        let state = site.state(&self.key, signed, look.wait_s, 0)?;
        let asked = Asked {
            site,
            look,
            state: &state,
            known,
        };
        let (copy, anew) = (self.copy(&genesis), self.trail(&genesis).join("copy.new"));
        if !judge.anew {
            match self.look(asked, &copy, judge, progress) {
                Err(error) if error.is_of_copy() => {
                    tracing::warn!(%error, "the copy is not what was sealed: the trail is fetched again");
                }
                outcome => return outcome,
            }
        }
        remove(&anew)?;
        let judge = Judge {
            anew: true,
            ..judge
        };
        let outcome = self.look(asked, &anew, judge, progress);
        if outcome.is_ok() {
            remove(&copy)?;
            std::fs::rename(&anew, &copy).at(&copy, "cannot replace")?;
        }
        outcome
    }

    /// What is known of the trail, by the genesis line of the copy that is there, or of
    /// what is served.
    fn known_at(&mut self, site: &Site, judge: Judge<'_>) -> Result<KnownAt, AuditError> {
        let trails = judge.anchors.trails.iter();
        let trails: Vec<_> = trails.filter(|trail| trail.origin == site.origin).collect();
        if trails.is_empty() {
            let doubt = Doubt::UnknownTrail(site.origin.clone());
            return Err(AuditError::Waiting(doubt));
        }
        let mut copied = Vec::new();
        for trail in trails.iter().filter(|_| !judge.anew) {
            let copy = Layout::new(self.copy(&trail.genesis));
            let Ok((line, hash)) = read::genesis(&copy) else {
                continue;
            };
            if hash == trail.genesis {
                let signed = self.newest(&hash)?;
                copied.push((signed.map(|signed| signed.statement.made_at), line, hash));
            }
        }
        // Of several, the one that was signed last is the one that is served.
        let newest = copied.into_iter().max_by_key(|(signed_at, ..)| *signed_at);
        let (line, genesis) = match newest {
            Some((_, line, genesis)) => (line, genesis),
            None => self.served_genesis(site)?,
        };
        anchored(site, judge, &line, genesis)
    }

    /// The trail that is served, if it is another than the one that is known, and the
    /// anchors have both: it was begun anew, and whoever wrote the anchors knows.
    fn served_instead(
        &self,
        site: &Site,
        judge: Judge<'_>,
        known: &KnownAt,
    ) -> Result<Option<KnownAt>, AuditError> {
        let trails = judge.anchors.trails.iter();
        let mut others = trails
            .filter(|trail| trail.origin == site.origin && trail.genesis != known.known.genesis);
        if others.clone().next().is_none() {
            return Ok(None);
        }
        let (line, genesis) = self.served_genesis(site)?;
        match others.any(|trail| trail.genesis == genesis) {
            true => anchored(site, judge, &line, genesis).map(Some),
            false => Ok(None),
        }
    }

    fn served_genesis(&self, site: &Site) -> Result<(Line, Digest), AuditError> {
        let piece = site
            .piece(&self.key, 0, Part::Lines, 0)?
            .unwrap_or_default();
        let end = piece.iter().position(|byte| *byte == b'\n');
        let line = end.map(|end| &piece[..end]);
        let decoded = line.and_then(|line| Some((Line::decode(line).ok()?, Line::hash(line))));
        Ok(decoded.ok_or_else(|| site.unfit("its trail begins with no line"))?)
    }

    fn copy(&self, genesis: &Digest) -> PathBuf {
        self.trail(genesis).join("copy")
    }

    fn look(
        &mut self,
        asked: Asked<'_>,
        copy: &Path,
        judge: Judge<'_>,
        progress: &mut dyn FnMut(Step, u64),
    ) -> Result<Audited, AuditError> {
        let Asked {
            site,
            look,
            state,
            known,
        } = asked;
        let head = state
            .head
            .as_ref()
            .ok_or(AuditError::Waiting(Doubt::NoHead))?;
        let note = Note::parse(head.as_bytes())
            .map_err(|e| AuditError::Waiting(Doubt::Unreadable(e.to_string())))?;
        // Before anything is fetched for it.
        let witnessed = Known {
            witnesses: trusted(&judge.anchors.witnesses, &note),
            ..known.known.clone()
        };
        let head = cosigned(&note, &known.log_key, &witnessed)?;
        disk::private_dir(copy)?;
        let layout = Layout::new(copy);
        let mut fetching = Copy {
            site,
            key: &self.key,
            layout: layout.clone(),
            progress: &mut |bytes| progress(Step::Bytes, bytes),
            fetched: 0,
        };
        fetching.fetch(head.size())?;
        disk::replace(&layout.head(), note.to_string().as_bytes())?;
        let publications = match look.publications {
            true => self.publications(site, &layout, state)?,
            false => None,
        };
        let judge = Judge {
            publications: judge.publications.or(publications.as_deref()),
            ..judge
        };
        let sampling = Sampling {
            rows: look.rows,
            every_s: look.rows_every_s,
            refusals_at_most: look.refusals_at_most,
            clock: judge.clock,
            site,
        };
        self.follow_asking(&layout, judge, Some(sampling), &mut |lines| {
            progress(Step::Lines, lines);
        })
    }

    /// The guardian's publications file, fetched if it is another than the copy's.
    fn publications(
        &self,
        site: &Site,
        layout: &Layout,
        state: &TrailState,
    ) -> Result<Option<Vec<u8>>, AuditError> {
        let kept = std::fs::read(layout.publications()).ok();
        let Some(len) = state.publications else {
            return Ok(kept);
        };
        if kept.as_ref().is_some_and(|kept| kept.len() as u64 == len) {
            return Ok(kept);
        }
        let Some(newest) = site.publications(&self.key)? else {
            return Ok(kept);
        };
        disk::replace(&layout.publications(), &newest)?;
        Ok(Some(newest))
    }

    /// Hands the newest statement over, unless the guardian has it.
    ///
    /// # Errors
    /// [`AuditError`] if the auditor's own files cannot be used.
    pub fn hand_over(&mut self, site: &Site, signed: &super::Signed) -> Result<Given, AuditError> {
        let path = self.trail(&signed.statement.genesis).join("given");
        let size = signed.statement.size.to_string();
        if std::fs::read_to_string(&path).is_ok_and(|given| given == size) {
            return Ok(Given::Taken);
        }
        match site.give(&self.key, &signed.note, &signed.head) {
            Ok(()) => {
                disk::replace(&path, size.as_bytes())?;
                Ok(Given::Taken)
            }
            Err(error) => Ok(Given::Not(error)),
        }
    }
}
