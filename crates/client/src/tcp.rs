//! One TCP connection for many requests: written as they come, answered in any
//! order, told apart by their request ids.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use pitser_ksi::pdu;
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader, BufWriter};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{Mutex as AsyncMutex, mpsc, oneshot};
use tokio::time::{Instant, sleep_until, timeout};

use crate::answer::{self, Answer, Fault, Question};
use crate::endpoint::Key;
use crate::error::ClientError;
use crate::http;

/// A service behind a TCP address; connects when first needed, and again when
/// the connection broke.
#[derive(Debug)]
pub(crate) struct TcpService {
    /// `host:port`.
    address: String,
    key: Key,
    connect_timeout: Duration,
    /// Held while connecting, so that there is one connection.
    state: AsyncMutex<State>,
}

#[derive(Debug)]
struct State {
    link: Option<Arc<Link>>,
    backoff: Backoff,
}

impl TcpService {
    pub(crate) fn new(address: String, key: Key, connect_timeout: Duration) -> Self {
        let state = State {
            link: None,
            backoff: Backoff::default(),
        };
        Self {
            address,
            key,
            connect_timeout,
            state: AsyncMutex::new(state),
        }
    }

    /// Sends `pdu` and waits for the answer to `question`, for ever.
    pub(crate) async fn ask(
        &self,
        question: Question,
        pdu: Vec<u8>,
    ) -> Result<Result<Answer, Fault>, ClientError> {
        let link = self.link().await?;
        Ok(link.ask(question, pdu).await)
    }

    /// Connects if there is no connection.
    pub(crate) async fn link(&self) -> Result<Arc<Link>, ClientError> {
        let mut state = self.state.lock().await;
        if let Some(link) = state.link.as_ref().filter(|link| link.is_alive()) {
            return Ok(Arc::clone(link));
        }
        state.link = None;
        state.backoff.wait().await;
        match http::connect(&self.address, self.connect_timeout).await {
            Ok(stream) => {
                let (read, write) = stream.into_split();
                let link = Arc::new(Link::start(read, write, self.key.clone()));
                state.link = Some(Arc::clone(&link));
                state.backoff = Backoff::connected();
                Ok(link)
            }
            Err(e) => {
                state.backoff.failed();
                Err(e)
            }
        }
    }
}

/// When to connect next: at once, then after pauses that double.
#[derive(Debug, Default)]
struct Backoff {
    failures: u32,
    not_before: Option<Instant>,
}

impl Backoff {
    /// A connection that breaks at once must not be made again without a pause.
    fn connected() -> Self {
        Self {
            failures: 0,
            not_before: Some(Instant::now() + FIRST_PAUSE),
        }
    }

    fn failed(&mut self) {
        let pause = FIRST_PAUSE
            .saturating_mul(1 << self.failures.min(16))
            .min(LONGEST_PAUSE);
        self.failures += 1;
        self.not_before = Some(Instant::now() + pause);
    }

    async fn wait(&self) {
        if let Some(not_before) = self.not_before {
            sleep_until(not_before).await;
        }
    }
}

/// One connection. Its two tasks end when it breaks or nobody holds it any more.
#[derive(Debug)]
pub(crate) struct Link {
    outgoing: mpsc::Sender<Vec<u8>>,
    waiting: Arc<Waiting>,
}

impl Link {
    fn start(read: OwnedReadHalf, write: OwnedWriteHalf, key: Key) -> Self {
        let waiting = Arc::new(Waiting::default());
        let (outgoing, queue) = mpsc::channel(QUEUE);
        tokio::spawn({
            let waiting = Arc::clone(&waiting);
            async move {
                if let Err(e) = write_all(write, queue).await {
                    waiting.fail(&Fault::Lost(e.to_string()));
                }
            }
        });
        tokio::spawn({
            let waiting = Arc::clone(&waiting);
            async move {
                let fault = read_all(read, &waiting, &key).await;
                waiting.fail(&fault);
            }
        });
        Self { outgoing, waiting }
    }

    fn is_alive(&self) -> bool {
        !self.outgoing.is_closed() && self.waiting.lock().broken.is_none()
    }

    async fn ask(&self, question: Question, pdu: Vec<u8>) -> Result<Answer, Fault> {
        let place = self.waiting.enter(question)?;
        if self.outgoing.send(pdu).await.is_err() {
            return Err(Fault::Lost("the connection is closed".to_owned()));
        }
        place.wait().await
    }
}

/// Who waits for which answer.
#[derive(Debug, Default)]
struct Waiting(Mutex<Places>);

#[derive(Debug, Default)]
struct Places {
    open: HashMap<Question, oneshot::Sender<Result<Answer, Fault>>>,
    /// Why no answers come any more.
    broken: Option<Fault>,
}

impl Waiting {
    fn enter(&self, question: Question) -> Result<Place<'_>, Fault> {
        let mut places = self.lock();
        if let Some(fault) = &places.broken {
            return Err(fault.clone());
        }
        let (sender, answer) = oneshot::channel();
        places.open.insert(question, sender);
        Ok(Place {
            waiting: self,
            question,
            answer,
        })
    }

    /// Hands an answer to whoever waits for it; answers nobody asked for are dropped.
    fn resolve(&self, answer: Answer) {
        if let Some(sender) = self.lock().open.remove(&answer.question()) {
            let _ = sender.send(Ok(answer));
        }
    }

    /// Tells all who wait, and all who come later.
    fn fail(&self, fault: &Fault) {
        let mut places = self.lock();
        places.broken.get_or_insert_with(|| fault.clone());
        for (_, sender) in places.open.drain() {
            let _ = sender.send(Err(fault.clone()));
        }
    }

    fn lock(&self) -> MutexGuard<'_, Places> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Somebody who waits. Gives the place up when dropped, as on a time-out.
struct Place<'a> {
    waiting: &'a Waiting,
    question: Question,
    answer: oneshot::Receiver<Result<Answer, Fault>>,
}

impl Place<'_> {
    async fn wait(mut self) -> Result<Answer, Fault> {
        match (&mut self.answer).await {
            Ok(answer) => answer,
            Err(_) => Err(Fault::Lost("the question was asked again".to_owned())),
        }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        // Only this place's own entry: another may have the same question now.
        self.answer.close();
        let mut places = self.waiting.lock();
        if places
            .open
            .get(&self.question)
            .is_some_and(oneshot::Sender::is_closed)
        {
            places.open.remove(&self.question);
        }
    }
}

async fn write_all(
    write: OwnedWriteHalf,
    mut queue: mpsc::Receiver<Vec<u8>>,
) -> std::io::Result<()> {
    let mut write = BufWriter::new(write);
    while let Some(pdu) = queue.recv().await {
        timeout(WRITE, write.write_all(&pdu)).await??;
        if queue.is_empty() {
            timeout(WRITE, write.flush()).await??;
        }
    }
    write.shutdown().await
}

/// Hands out answers until the connection ends or cannot be believed any more.
async fn read_all(read: OwnedReadHalf, waiting: &Waiting, key: &Key) -> Fault {
    let mut read = BufReader::new(read);
    loop {
        let frame = match read_frame(&mut read).await {
            Ok(frame) => frame,
            Err(fault) => return fault,
        };
        match answer::read(&frame, key.expose()) {
            Ok(answers) => answers
                .into_iter()
                .for_each(|answer| waiting.resolve(answer)),
            Err(fault) => return fault,
        }
    }
}

/// Reads one message, at most 65,539 bytes.
async fn read_frame(read: &mut BufReader<OwnedReadHalf>) -> Result<Vec<u8>, Fault> {
    let lost = |e: std::io::Error| Fault::Lost(e.to_string());
    let mut frame = vec![0; HEADER];
    read.read_exact(&mut frame).await.map_err(lost)?;
    let length = pdu::frame_len(&frame)
        .map_err(Fault::Malformed)?
        .unwrap_or(HEADER);
    frame.resize(length, 0);
    read.read_exact(&mut frame[HEADER..]).await.map_err(lost)?;
    Ok(frame)
}

/// Messages have outer tags above 1F, so their header is always the long one.
const HEADER: usize = 4;
/// Requests that wait to be written.
const QUEUE: usize = 256;
/// A service that takes nothing for this long is given up.
const WRITE: Duration = Duration::from_secs(30);
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
