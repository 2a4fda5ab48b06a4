//! Requests, sent when they are due, and what became of them.

use std::time::Duration;

use pitser_ksi::hash::{Algorithm, HmacKey, Imprint, hash};
use pitser_ksi::pdu;
use pitser_ksi::time::Second;
use pitser_ksi::tlv::{Element, Writer};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

use super::check::{Checker, Sampled};
use crate::clock;
use crate::outcome::Failure;

/// What is asked for.
pub(super) struct Plan {
    pub(super) address: String,
    pub(super) connections: u32,
    /// Requests a second, on all connections together.
    pub(super) rate: u32,
    pub(super) requests: u64,
    /// All answers of this round are kept, to be verified.
    pub(super) kept_second: Second,
    /// Whether it is remembered when each was due, answered, and signed.
    pub(super) keeps_times: bool,
}

/// What became of it.
#[derive(Default)]
pub(super) struct Load {
    pub(super) answered: u64,
    /// Answers without a signature.
    pub(super) refused: u64,
    /// Answers later than a second after the end of their round.
    pub(super) late: u64,
    pub(super) latency: Histogram,
    /// Answers that were verified meanwhile.
    pub(super) sampled: u64,
    /// The answers of one round, with their imprints.
    pub(super) kept: Vec<(Imprint, Vec<u8>)>,
    /// Of each, if they are kept.
    pub(super) times: Vec<Times>,
    /// How long sending took.
    sending: Duration,
}

/// When a request was due and answered, and the second of its signature.
#[derive(Clone, Copy)]
pub(super) struct Times {
    pub(super) due: Instant,
    pub(super) answered: Instant,
    pub(super) second: Second,
}

impl Load {
    /// Signatures a second.
    pub(super) fn rate(&self) -> f64 {
        self.answered as f64 / self.sending.as_secs_f64()
    }

    fn add(&mut self, other: Self) {
        self.answered += other.answered;
        self.refused += other.refused;
        self.late += other.late;
        self.latency.add(&other.latency);
        self.kept.extend(other.kept);
        self.times.extend(other.times);
        self.sending = self.sending.max(other.sending);
    }
}

/// Puts the load on, and waits for the last answer.
pub(super) async fn run(plan: &Plan, checker: &Checker) -> Result<Load, Failure> {
    let (samples, sampled) = checker.meanwhile();
    let mut connections = JoinSet::new();
    // Everybody is connected before the first request is due.
    let start = Instant::now() + Duration::from_millis(500);
    for number in 0..plan.connections {
        let stream = TcpStream::connect(&plan.address).await;
        let (read, write) = stream.map_err(Failure::service)?.into_split();
        let schedule = Schedule {
            start,
            number: number.into(),
            connections: plan.connections.into(),
            interval_s: 1.0 / f64::from(plan.rate),
            requests: share(plan, number),
        };
        let reader = Reader {
            schedule,
            kept_second: plan.kept_second,
            keeps_times: plan.keeps_times,
            samples: samples.clone(),
            load: Load::default(),
        };
        connections.spawn(async move {
            let sent = tokio::spawn(send(write, schedule));
            let load = reader.read(read).await;
            // Without answers it is told why, not that sending was cut off.
            let load = load?;
            let sending = sent.await.map_err(Failure::service)??;
            Ok::<_, Failure>(Load { sending, ..load })
        });
    }
    drop(samples);
    let mut load = Load::default();
    while let Some(part) = connections.join_next().await {
        load.add(part.map_err(Failure::service)??);
    }
    load.sampled = sampled.finish()?;
    Ok(load)
}

fn share(plan: &Plan, number: u32) -> u64 {
    let (all, number) = (u64::from(plan.connections), u64::from(number));
    plan.requests / all + u64::from(number < plan.requests % all)
}

/// When which of a connection's requests is due.
#[derive(Clone, Copy)]
struct Schedule {
    start: Instant,
    /// Of the connection.
    number: u64,
    connections: u64,
    /// Between two requests, on all connections together.
    interval_s: f64,
    /// On this connection.
    requests: u64,
}

impl Schedule {
    fn due(&self, request: u64) -> Instant {
        let before = request * self.connections + self.number;
        self.start + Duration::from_secs_f64(before as f64 * self.interval_s)
    }

    fn document(&self, request: u64) -> Imprint {
        let (number, request) = (self.number.to_be_bytes(), request.to_be_bytes());
        hash(Algorithm::Sha256, &[&number, &request])
    }
}

/// Sends each request when it is due; returns how long that took in all.
async fn send(mut write: OwnedWriteHalf, schedule: Schedule) -> Result<Duration, Failure> {
    let key = HmacKey::new(KEY);
    let (mut next, mut chunk) = (0, Vec::new());
    while next < schedule.requests {
        // What is due within a moment goes together.
        sleep_until(schedule.due(next).max(Instant::now() + TICK)).await;
        let now = Instant::now();
        chunk.clear();
        while next < schedule.requests && schedule.due(next) <= now && chunk.len() < CHUNK {
            request(&mut chunk, next, schedule.document(next), &key);
            next += 1;
        }
        write.write_all(&chunk).await.map_err(Failure::service)?;
    }
    Ok(schedule.start.elapsed())
}

fn request(out: &mut Vec<u8>, number: u64, document: Imprint, key: &HmacKey) {
    let from = out.len();
    let mut writer = Writer::behind(std::mem::take(out));
    writer.nested(0x0220, |w| {
        w.nested(0x01, |w| w.string(0x01, LOGIN))
            .nested(0x02, |w| w.integer(0x01, number).imprint(0x02, &document))
            .imprint(0x1f, &Imprint::zero(Algorithm::Sha256))
    });
    *out = writer.finish().expect("a request is short");
    let digest_at = out.len() - Algorithm::Sha256.digest_len();
    let (covered, digest) = out.split_at_mut(digest_at);
    let code = key.mac(Algorithm::Sha256, &[&covered[from..]]);
    digest.copy_from_slice(code.digest());
}

/// Reads one connection's answers.
struct Reader {
    schedule: Schedule,
    kept_second: Second,
    keeps_times: bool,
    samples: std::sync::mpsc::Sender<Sampled>,
    load: Load,
}

impl Reader {
    async fn read(mut self, mut read: OwnedReadHalf) -> Result<Load, Failure> {
        let mut buffer: Vec<u8> = Vec::with_capacity(BUFFER);
        while self.load.answered + self.load.refused < self.schedule.requests {
            buffer.reserve(BUFFER / 2);
            let came = timeout(PATIENCE, read.read_buf(&mut buffer)).await;
            let came = came.map_err(|_| Failure::Service("the authority fell silent".into()))?;
            if came.map_err(Failure::service)? == 0 {
                return Err(Failure::Service("the authority ended a connection".into()));
            }
            let now = Now {
                instant: Instant::now(),
                micros: clock::micros(),
            };
            let mut at = 0;
            while let Some(length) = pdu::frame_len(&buffer[at..]).map_err(Failure::service)? {
                let Some(frame) = buffer.get(at..at + length) else {
                    break;
                };
                self.take(frame, now)?;
                at += length;
            }
            buffer.drain(..at);
        }
        Ok(self.load)
    }

    fn take(&mut self, frame: &[u8], now: Now) -> Result<(), Failure> {
        let seen = glance(frame)
            .ok_or_else(|| Failure::Service("an answer that is none of the protocol".into()))?;
        let Some(second) = seen.second else {
            self.load.refused += 1;
            return Ok(());
        };
        let load = &mut self.load;
        load.answered += 1;
        let due = self.schedule.due(seen.request_id);
        load.latency
            .add_one(now.instant.saturating_duration_since(due));
        if self.keeps_times {
            load.times.push(Times {
                due,
                answered: now.instant,
                second,
            });
        }
        load.late += u64::from(now.micros > (second.0 + 1) * 1_000_000);
        let document = || self.schedule.document(seen.request_id);
        if second == self.kept_second {
            load.kept.push((document(), frame.to_vec()));
        }
        // Requests and connections are both counted: any hundredth will do.
        if (seen.request_id * 31 + self.schedule.number).is_multiple_of(100) {
            let sampled: Sampled = (document(), frame.to_vec());
            // The checker is gone if it found a fault; it will say so at the end.
            let _ = self.samples.send(sampled);
        }
        Ok(())
    }
}

#[derive(Clone, Copy)]
struct Now {
    instant: Instant,
    micros: u64,
}

struct Seen {
    request_id: u64,
    /// The round; none if it was refused.
    second: Option<Second>,
}

/// Looks at the few bytes of an answer that every client has to look at.
fn glance(frame: &[u8]) -> Option<Seen> {
    let outer = Element::expect(frame, 0x0221).ok()?;
    let mut payloads = outer.children().flatten();
    let result = payloads.find(|element| element.tag == 0x02)?;
    let mut fields = result.children().flatten();
    let request_id = fields.next()?.integer().ok()?;
    let chain = fields.find(|element| element.tag == 0x0801);
    let second = chain.and_then(|chain| chain.children().next()?.ok()?.second().ok());
    Some(Seen { request_id, second })
}

/// Durations up to ten seconds, to a tenth of a millisecond.
#[derive(Default)]
pub(super) struct Histogram {
    buckets: Vec<u64>,
}

impl Histogram {
    pub(super) fn add_one(&mut self, duration: Duration) {
        let bucket = (duration.as_micros() / 100).min(100_000) as usize;
        if self.buckets.len() <= bucket {
            self.buckets.resize(bucket + 1, 0);
        }
        self.buckets[bucket] += 1;
    }

    fn add(&mut self, other: &Self) {
        let length = self.buckets.len().max(other.buckets.len());
        self.buckets.resize(length, 0);
        for (own, other) in self.buckets.iter_mut().zip(&other.buckets) {
            *own += other;
        }
    }

    /// The duration that this share of all do not exceed, in ms.
    pub(super) fn quantile_ms(&self, share: f64) -> u64 {
        let all: u64 = self.buckets.iter().sum();
        let wanted = (all as f64 * share).ceil() as u64;
        let mut seen = 0;
        let bucket = self.buckets.iter().position(|count| {
            seen += count;
            seen >= wanted
        });
        (bucket.unwrap_or_default() as u64 + 1).div_ceil(10)
    }
}

/// The user whom `pitser dev` knows.
const LOGIN: &str = "anon";
/// That user's secret.
pub(super) const KEY: &[u8] = b"anon";
/// Bytes that a request's MAC covers.
pub(super) const REQUEST: usize = 58;
/// Bytes that an answer's MAC covers, in a round of 150,000.
pub(super) const ANSWER: usize = 1700;
/// Requests of a connection that are due within this time are sent together.
const TICK: Duration = Duration::from_millis(2);
const CHUNK: usize = 256 << 10;
const BUFFER: usize = 256 << 10;
const PATIENCE: Duration = Duration::from_secs(15);
