//! Writing a log signature anew, block by block, while many new seals are made.
//!
//! ```text
//! blocks ──> waiting, in order, each with the seal that is under way ──> file
//! ```
//!
//! What waits is bounded in number and in bytes, whatever the length of the log.

use std::collections::VecDeque;
use std::future::Future;
use std::path::Path;

use pitser_ksi::logsig::Format;
use tokio::task::JoinHandle;

use super::stream::OwnedBlock;
use crate::files::NewFile;
use crate::outcome::Failure;
use crate::output::Progress;

/// A log signature that is being written.
pub(super) struct Reseal {
    file: NewFile,
    waiting: VecDeque<Waiting>,
    /// Length of the blocks that wait.
    waiting_bytes: usize,
    progress: Progress,
    done: Resealed,
}

/// What became of the blocks.
#[derive(Debug, Default)]
pub(super) struct Resealed {
    /// All that were written.
    pub(super) blocks: u64,
    /// Those with a new seal.
    pub(super) sealed: u64,
    /// Those that a seal was wanted for, and none was had.
    pub(super) missed: u64,
    /// The first failure to make a seal. After it no others are asked for.
    pub(super) failure: Option<Failure>,
}

struct Waiting {
    block: OwnedBlock,
    seal: Option<JoinHandle<Made>>,
}

/// A block's new 0904; `None` if it is to keep its own.
pub(super) type Made = Result<Option<Vec<u8>>, Failure>;

impl Reseal {
    /// Starts a file of `format` at `path`, which is replaced only at the end, and
    /// only with `force`.
    pub(super) fn new(path: &Path, force: bool, format: Format) -> Result<Self, Failure> {
        let mut file = NewFile::create(path, force)?;
        file.write(format.magic())?;
        Ok(Self {
            file,
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            progress: Progress::new("blocks"),
            done: Resealed::default(),
        })
    }

    /// Appends a block, with the seal that `make` will make in place of its own.
    pub(super) async fn push(
        &mut self,
        block: OwnedBlock,
        make: Option<impl Future<Output = Made> + Send + 'static>,
    ) -> Result<(), Failure> {
        let make = match make {
            Some(_) if self.done.failure.is_some() => {
                self.done.missed += 1;
                None
            }
            make => make,
        };
        self.waiting_bytes += block.len();
        let seal = make.map(tokio::spawn);
        self.waiting.push_back(Waiting { block, seal });
        while self.waiting.len() > AT_A_TIME || self.waiting_bytes > MOST_BYTES {
            self.write_first().await?;
        }
        Ok(())
    }

    /// Waits for all seals; the file still has to be [`Written::keep`]t.
    pub(super) async fn finish(mut self) -> Result<Written, Failure> {
        while !self.waiting.is_empty() {
            self.write_first().await?;
        }
        self.progress.finish();
        Ok(Written {
            file: self.file,
            done: self.done,
        })
    }

    async fn write_first(&mut self) -> Result<(), Failure> {
        let Some(Waiting { block, seal }) = self.waiting.pop_front() else {
            return Ok(());
        };
        self.waiting_bytes -= block.len();
        let made = match seal {
            None => Ok(None),
            Some(seal) => seal
                .await
                .unwrap_or_else(|_| Err(Failure::Service("a task ended before its work".into()))),
        };
        let block = match made {
            Ok(Some(seal)) => {
                self.done.sealed += 1;
                block.with_seal(&seal)
            }
            Ok(None) => block,
            Err(failure) => {
                self.done.missed += 1;
                self.done.failure.get_or_insert(failure);
                block
            }
        };
        self.file.write(block.bytes())?;
        self.done.blocks += 1;
        self.progress.set(self.done.blocks);
        Ok(())
    }
}

/// A log signature that is whole, but not yet in its place.
pub(super) struct Written {
    file: NewFile,
    /// What became of the blocks.
    pub(super) done: Resealed,
}

impl Written {
    /// Puts it in its place.
    pub(super) fn keep(self) -> Result<Resealed, Failure> {
        self.file.finish()?;
        Ok(self.done)
    }
}

/// Seals under way at a time: as many as fit into one round of a busy service.
const AT_A_TIME: usize = 256;
/// Length of the blocks that may wait for their seals.
const MOST_BYTES: usize = 64 << 20;
