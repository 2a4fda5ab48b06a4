//! PDUs over TCP, one after the other, aggregator and extender on one port.
//!
//! A connection is two tasks. The reader takes all messages that it has read
//! together, as long as there are places for requests without an answer: a peer
//! that does not take its answers stops being read. The writer encodes answers as
//! the socket takes them, in any order, and frees their places.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use pitser_ksi::error::DecodeError;
use pitser_ksi::pdu;
use tokio::io::AsyncWriteExt;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout, timeout_at};

use super::answer::{Outlet, Replies, TooLate};
use super::desk::Desk;
use super::lobby::Lobby;
use super::{Service, stopping};
use crate::metrics::{Metrics, Transport};

/// Serves connections until `stop` turns true, then until all are answered.
pub(crate) async fn serve(
    listener: TcpListener,
    service: Arc<Service>,
    mut stop: watch::Receiver<bool>,
) {
    let metrics = Arc::clone(&service.metrics);
    let lobby = Lobby::new(&service.limits, metrics, Transport::Tcp);
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            () = stopping(&mut stop) => break,
            accepted = lobby.next(&listener) => accepted,
            Some(_) = connections.join_next() => continue,
        };
        let (stream, guest) = accepted;
        let (service, stop) = (Arc::clone(&service), stop.clone());
        connections.spawn(async move {
            if let Err(e) = connection(stream, &service, stop).await {
                tracing::debug!(error = %e, "connection ended");
            }
            drop(guest);
        });
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

async fn connection(
    stream: TcpStream,
    service: &Service,
    mut stop: watch::Receiver<bool>,
) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let (read, write) = stream.into_split();
    let (outlet, replies) = Outlet::new(ENCODED_ANSWERS, service.limits.taken_within);
    let places = Arc::new(Semaphore::new(service.limits.pipeline));
    let writing = Writing {
        write,
        replies,
        places: Arc::clone(&places),
        metrics: Arc::clone(&service.metrics),
        patience: service.limits.taken_within,
    };
    let mut writer = tokio::spawn(writing.serve());
    let requests = Requests {
        read,
        buffer: Vec::new(),
        places: &places,
        service,
    };
    let read = tokio::select! {
        read = requests.serve(Desk::new(service, outlet)) => read,
        () = stopping(&mut stop) => Ok(()),
        written = &mut writer => return written?,
    };
    // The reader's end of the queue is gone; the writer ends with the last answer.
    writer.await??;
    read
}

/// One connection's requests.
struct Requests<'s> {
    read: OwnedReadHalf,
    /// What was read and is not taken yet.
    buffer: Vec<u8>,
    /// For requests that are not answered yet.
    places: &'s Semaphore,
    service: &'s Service,
}

impl Requests<'_> {
    /// Until the peer ends, falls silent, or sends what is no message: then where
    /// the next one begins cannot be known.
    async fn serve(mut self, mut desk: Desk<'_>) -> io::Result<()> {
        let idle = self.service.limits.idle;
        // A message must be whole in time, however slowly it comes.
        let mut due = Instant::now() + idle;
        loop {
            match whole_message(&self.buffer) {
                Ok(Some(_)) => {
                    self.wait_for_places(&desk).await;
                    self.take_messages(&mut desk);
                    due = Instant::now() + idle;
                }
                Ok(None) => match timeout_at(due, self.read_more()).await {
                    Err(_) | Ok(Ok(0)) => return Ok(()),
                    Ok(read) => _ = read?,
                },
                Err(_) => {
                    self.wait_for_places(&desk).await;
                    desk.refuse_garbage();
                    return Ok(());
                }
            }
        }
    }

    async fn wait_for_places(&self, desk: &Desk<'_>) {
        let _ = self.places.acquire().await;
        desk.wait_for_place().await;
    }

    /// Takes whole messages as long as they can be answered. There must be places.
    fn take_messages(&mut self, desk: &mut Desk<'_>) {
        let arrived_at = self.service.now();
        let (mut at, mut taken) = (0, 0);
        let free = self.places.available_permits();
        while taken < free && desk.has_place() {
            let Ok(Some(length)) = whole_message(&self.buffer[at..]) else {
                break;
            };
            desk.take(&self.buffer[at..][..length], arrived_at);
            at += length;
            taken += 1;
        }
        desk.flush(arrived_at);
        self.places.forget_permits(taken);
        self.buffer.drain(..at);
    }

    /// Waits for more bytes; returns how many came, 0 at the end.
    async fn read_more(&mut self) -> io::Result<usize> {
        loop {
            if timeout(SILENT, self.read.readable()).await.is_err() {
                if self.buffer.is_empty() {
                    self.buffer = Vec::new();
                }
                self.read.readable().await?;
            }
            self.buffer.reserve(READ);
            match self.read.try_read_buf(&mut self.buffer) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                read => {
                    self.service.metrics.received(*read.as_ref().unwrap_or(&0));
                    return read;
                }
            }
        }
    }
}

/// The length of the message that `bytes` begin with, if all of it is there.
fn whole_message(bytes: &[u8]) -> Result<Option<usize>, DecodeError> {
    Ok(pdu::frame_len(bytes)?.filter(|length| *length <= bytes.len()))
}

/// One connection's answers.
struct Writing {
    write: OwnedWriteHalf,
    replies: Replies,
    places: Arc<Semaphore>,
    metrics: Arc<Metrics>,
    /// A peer that does not take a chunk within this long is cut off.
    patience: Duration,
}

impl Writing {
    /// Until the last answer, or until the peer has left answers lying for too long:
    /// then nothing is kept for it any more, neither here nor by the system.
    async fn serve(mut self) -> io::Result<()> {
        let outcome = self.answers().await;
        if matches!(&outcome, Err(e) if e.kind() == io::ErrorKind::TimedOut) {
            let _ = self.write.as_ref().set_zero_linger();
        }
        outcome
    }

    async fn answers(&mut self) -> io::Result<()> {
        loop {
            // Many connections wait most of the second: meanwhile they have no buffer.
            let mut chunk = Vec::new();
            while chunk.is_empty() || self.replies.has_more() {
                chunk.clear();
                let answers = self.replies.fill(&mut chunk, CHUNK).await;
                let answers =
                    answers.map_err(|TooLate| io::Error::from(io::ErrorKind::TimedOut))?;
                if answers == 0 {
                    return timeout(self.patience, self.write.shutdown()).await?;
                }
                timeout(self.patience, self.write.write_all(&chunk)).await??;
                self.metrics.sent(chunk.len());
                self.places.add_permits(answers);
            }
        }
    }
}

/// Bytes that are read at a time, if they are there.
const READ: usize = 64 << 10;
/// Bytes that are encoded at a time; the socket takes them before there are more.
const CHUNK: usize = 64 << 10;
/// Answers of one connection that may wait encoded: refusals and extensions.
/// Signatures are encoded as they are taken.
const ENCODED_ANSWERS: usize = 1024;
/// After this long without a request a connection gives its buffer back.
const SILENT: Duration = Duration::from_secs(1);
