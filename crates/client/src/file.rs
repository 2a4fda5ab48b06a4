//! Answers from a file: one PDU or several, as a service sent them to somebody.
//!
//! Nothing is sent, so request ids cannot fit: an answer is taken for what it
//! says, if it passes all other checks.

use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use pitser_ksi::pdu;

use crate::answer::{self, Answer, Fault, Question};
use crate::endpoint::Key;

/// A file with answers, read anew for each question.
#[derive(Debug)]
pub(crate) struct FileService {
    path: PathBuf,
    key: Key,
}

impl FileService {
    pub(crate) fn new(path: PathBuf, key: Key) -> Self {
        Self { path, key }
    }

    /// All answers to questions like this one, in the order of the file.
    pub(crate) async fn ask(&self, question: Question) -> Result<Vec<Answer>, Fault> {
        let bytes = read(&self.path, MAX)
            .await
            .map_err(|e| Fault::Read(Arc::new(e)))?;
        let (mut found, mut why_not) = (Vec::new(), None);
        for frame in frames(&bytes) {
            match frame.and_then(|frame| answer::read(frame, self.key.expose())) {
                Ok(answers) => found.extend(answers),
                Err(fault) => why_not = why_not.or(Some(fault)),
            }
        }
        found.retain(|answer| answer.question().is_like(question));
        match (found.is_empty(), why_not) {
            (false, _) => Ok(found),
            (true, Some(fault)) => Err(fault),
            (true, None) => Err(Fault::Unfit(
                "it holds no answer to such a request".to_owned(),
            )),
        }
    }
}

/// The messages of a file. After one whose length cannot be told, nothing follows.
fn frames(mut bytes: &[u8]) -> impl Iterator<Item = Result<&[u8], Fault>> {
    std::iter::from_fn(move || {
        if bytes.is_empty() {
            return None;
        }
        let length = match pdu::frame_len(bytes) {
            Ok(length) => length.unwrap_or(bytes.len()).min(bytes.len()),
            Err(malformed) => {
                bytes = &[];
                return Some(Err(Fault::Malformed(malformed)));
            }
        };
        let (frame, rest) = bytes.split_at(length);
        bytes = rest;
        Some(Ok(frame))
    })
}

/// Reads on another thread, for a file may be on a slow disk; refuses more than
/// `max` bytes.
pub(crate) async fn read(path: &Path, max: usize) -> io::Result<Vec<u8>> {
    let path = path.to_owned();
    let reading = tokio::task::spawn_blocking(move || {
        let mut bytes = Vec::new();
        let limit = u64::try_from(max).unwrap_or(u64::MAX).saturating_add(1);
        std::fs::File::open(path)?
            .take(limit)
            .read_to_end(&mut bytes)?;
        match bytes.len() > max {
            true => Err(io::Error::other(format!("it is longer than {max} bytes"))),
            false => Ok(bytes),
        }
    });
    reading.await.unwrap_or_else(|e| Err(io::Error::other(e)))
}

/// Bytes of a file with answers.
const MAX: usize = 16 << 20;
