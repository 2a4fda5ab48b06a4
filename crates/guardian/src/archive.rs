//! The store that a trail's archived segments are on, for a trail that opens no socket.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError, mpsc};

use pitser_client::store::{S3Options, Store, StoreError};
use pitser_trail::archive::{Archive, ArchiveError};
use tokio::runtime::{Builder, Runtime};

/// An object store that its caller waits for. It is opened when it is first asked:
/// naming one costs nothing, and whoever needs it not hears nothing of it.
pub struct StoreArchive {
    url: String,
    s3: Result<S3Options, String>,
    /// Locked to look at it or to open it.
    opened: Mutex<Option<Arc<Opened>>>,
}

struct Opened {
    store: Store,
    /// Of its own, so that any thread may wait; taken to be ended.
    runtime: Option<Runtime>,
}

impl StoreArchive {
    /// The store at `url`, reached as `s3` says; or why this process cannot reach it, which
    /// whoever asks the store is told.
    pub fn new(url: impl Into<String>, s3: Result<S3Options, String>) -> Arc<Self> {
        Arc::new(Self {
            url: url.into(),
            s3,
            opened: Mutex::default(),
        })
    }

    /// Lets the store do `work`, and waits: no longer than [`Store`] does.
    fn ask<T, F>(&self, work: impl FnOnce(Store) -> F) -> Result<T, ArchiveError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, StoreError>> + Send + 'static,
    {
        let opened = self.opened().map_err(ArchiveError::Failed)?;
        let ended = || ArchiveError::Failed(format!("{}: the program ends", self.url));
        let runtime = opened.runtime.as_ref().ok_or_else(ended)?;
        let (tell, told) = mpsc::channel();
        let work = work(opened.store.clone());
        runtime.spawn(async move {
            let _ = tell.send(work.await);
        });
        told.recv().map_err(|_| ended())?.map_err(|e| match e {
            StoreError::Missing { .. } => ArchiveError::Missing(e.to_string()),
            StoreError::TooLong { .. } => ArchiveError::TooLong(e.to_string()),
            _ => ArchiveError::Failed(e.to_string()),
        })
    }

    /// What could not be opened, as a folder that was not mounted, is tried again.
    fn opened(&self) -> Result<Arc<Opened>, String> {
        let mut opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(opened) = &*opened {
            return Ok(Arc::clone(opened));
        }
        let s3 = self.s3.as_ref().map_err(Clone::clone)?;
        let store = Store::open(&self.url, s3).map_err(|e| e.to_string())?;
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("archive")
            .enable_all()
            .build();
        let runtime = Some(runtime.map_err(|e| e.to_string())?);
        Ok(Arc::clone(
            opened.insert(Arc::new(Opened { store, runtime })),
        ))
    }
}

impl Archive for StoreArchive {
    fn put(&self, name: &str, bytes: Vec<u8>) -> Result<(), ArchiveError> {
        let name = name.to_owned();
        self.ask(|store| async move { store.put(&name, bytes.into()).await.map(|_| ()) })
    }

    fn get(&self, name: &str, max: usize) -> Result<Vec<u8>, ArchiveError> {
        let name = name.to_owned();
        self.ask(move |store| async move { store.get(&name, max).await.map(Into::into) })
    }

    fn name(&self) -> String {
        self.url.clone()
    }
}

impl fmt::Debug for StoreArchive {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StoreArchive({})", self.url)
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        // Nobody waits for anything of it any more, and this may be another runtime's thread.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}
