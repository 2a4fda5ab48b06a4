//! PDUs over TCP, one after the other, aggregator and extender on one port.
//!
//! A connection is two tasks. The reader takes a place in the answer queue
//! before it reads a request, so a peer that does not take its answers stops
//! being read. The writer sends answers as they come, in any order.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use pitser_ksi::pdu;
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader, BufWriter};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;

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
    let (answers, queue) = mpsc::channel(service.limits.pipeline);
    let metrics = Arc::clone(&service.metrics);
    let mut writer = tokio::spawn(write_answers(write, queue, metrics));
    let read = tokio::select! {
        read = read_requests(read, answers, service) => read,
        () = stopping(&mut stop) => Ok(()),
        written = &mut writer => return written?,
    };
    // The reader's end of the queue is gone; the writer ends with the last answer.
    writer.await??;
    read
}

async fn read_requests(
    read: OwnedReadHalf,
    answers: mpsc::Sender<Vec<u8>>,
    service: &Service,
) -> io::Result<()> {
    let mut read = BufReader::new(read);
    loop {
        let Ok(slot) = answers.clone().reserve_owned().await else {
            return Ok(());
        };
        match timeout(service.limits.idle, read_frame(&mut read)).await {
            Err(_) | Ok(Ok(Frame::End)) => return Ok(()),
            Ok(Ok(Frame::Whole(frame))) => service.handle(&frame, slot),
            Ok(Ok(Frame::Garbage)) => {
                service.refuse_garbage(slot);
                return Ok(());
            }
            Ok(Err(e)) => return Err(e),
        }
    }
}

enum Frame {
    Whole(Vec<u8>),
    /// Not the beginning of a PDU: where the next one begins cannot be known.
    Garbage,
    End,
}

/// Reads one PDU, framed by its own header: four bytes, then at most 65,535.
async fn read_frame(read: &mut BufReader<OwnedReadHalf>) -> io::Result<Frame> {
    let mut frame = vec![0; HEADER];
    if read.read(&mut frame[..1]).await? == 0 {
        return Ok(Frame::End);
    }
    read.read_exact(&mut frame[1..]).await?;
    let Ok(Some(length)) = pdu::frame_len(&frame) else {
        return Ok(Frame::Garbage);
    };
    frame.resize(length, 0);
    read.read_exact(&mut frame[HEADER..]).await?;
    Ok(Frame::Whole(frame))
}

async fn write_answers(
    write: OwnedWriteHalf,
    mut queue: mpsc::Receiver<Vec<u8>>,
    metrics: Arc<Metrics>,
) -> io::Result<()> {
    let mut write = BufWriter::new(write);
    while let Some(answer) = queue.recv().await {
        timeout(WRITE, write.write_all(&answer)).await??;
        metrics.sent(answer.len());
        if queue.is_empty() {
            timeout(WRITE, write.flush()).await??;
        }
    }
    timeout(WRITE, write.shutdown()).await?
}

/// Outer PDUs have tags above 1F, so their header is always the long one.
const HEADER: usize = 4;
/// A peer that takes nothing for this long is cut off.
const WRITE: Duration = Duration::from_secs(30);
