//! One TCP connection for many requests: written as they come, answered in any
//! order, told apart by their request ids.
//!
//! A connection is one task. It connects, writes, reads, and tells all who wait
//! when it ends; who stops waiting leaves it as it is. A request that nobody
//! waits for any more is not written, and an answer to it is dropped, so that a
//! service that does not answer costs one queue and no more.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hyper::body::Bytes;
use pitser_ksi::pdu;
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader, BufWriter};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, timeout, timeout_at};

use crate::answer::{self, Answer, Fault, Question};
use crate::endpoint::Key;
use crate::options::Options;
use crate::pace::Pace;

/// A service behind a TCP address; connects when first needed, and again when
/// the connection broke.
#[derive(Debug)]
pub(crate) struct TcpService {
    target: Target,
    /// Locked to look at it or replace it; released before any await.
    link: Mutex<Option<Arc<Link>>>,
}

/// Where a connection leads, and how it is made.
#[derive(Debug, Clone)]
struct Target {
    /// `host:port`.
    address: String,
    key: Key,
    connect_timeout: Duration,
    /// A connection over which nothing comes for so long after a request is not
    /// used any more: it may lead nowhere, which TCP takes minutes to notice.
    patience: Duration,
    pace: Arc<Pace>,
}

impl TcpService {
    pub(crate) fn new(address: String, key: Key, options: &Options) -> Self {
        let target = Target {
            address,
            key,
            connect_timeout: options.connect_timeout,
            patience: options.answer_timeout,
            pace: Arc::default(),
        };
        Self {
            target,
            link: Mutex::default(),
        }
    }

    /// Sends `pdu` and waits for the answer to `question`.
    pub(crate) async fn ask(
        &self,
        question: Question,
        pdu: Bytes,
        deadline: Instant,
    ) -> Result<Answer, Fault> {
        let link = self.link();
        let answer = link.ask(question, pdu, deadline).await;
        if matches!(answer, Err(Fault::TimedOut)) && link.is_silent_for(Duration::ZERO) {
            self.leave(&link);
        }
        answer
    }

    /// Connects if there is no connection.
    pub(crate) async fn probe(&self) -> Result<(), Fault> {
        self.link().opened().await
    }

    fn link(&self) -> Arc<Link> {
        let mut link = self.link.lock().unwrap_or_else(PoisonError::into_inner);
        let usable =
            |link: &&Arc<Link>| link.is_alive() && !link.is_silent_for(self.target.patience);
        match link.as_ref().filter(usable) {
            Some(link) => Arc::clone(link),
            None => Arc::clone(link.insert(Arc::new(Link::start(self.target.clone())))),
        }
    }

    /// The next request takes another connection; who waits on this one goes on.
    fn leave(&self, left: &Arc<Link>) {
        let mut link = self.link.lock().unwrap_or_else(PoisonError::into_inner);
        if link.as_ref().is_some_and(|link| Arc::ptr_eq(link, left)) {
            *link = None;
        }
    }
}

/// One connection, perhaps still being made. Its task ends when it breaks or
/// nobody holds it any more.
#[derive(Debug)]
struct Link {
    outgoing: mpsc::Sender<(Question, Bytes)>,
    waiting: Arc<Waiting>,
    /// Whether the connection was made.
    opened: watch::Receiver<bool>,
}

impl Link {
    fn start(target: Target) -> Self {
        let waiting = Arc::new(Waiting::default());
        let (outgoing, queue) = mpsc::channel(QUEUE);
        let (open, opened) = watch::channel(false);
        tokio::spawn(run(target, Arc::clone(&waiting), queue, open));
        Self {
            outgoing,
            waiting,
            opened,
        }
    }

    fn is_alive(&self) -> bool {
        self.waiting.lock().broken.is_none()
    }

    /// Whether nothing has come for more than `patience` after a request.
    fn is_silent_for(&self, patience: Duration) -> bool {
        let since = self.waiting.lock().silent_since;
        since.is_some_and(|since| since.elapsed() >= patience)
    }

    async fn opened(&self) -> Result<(), Fault> {
        let mut opened = self.opened.clone();
        match opened.wait_for(|opened| *opened).await {
            Ok(_) => Ok(()),
            Err(_) => Err(self.waiting.lock().broken.clone().unwrap_or_else(closed)),
        }
    }

    async fn ask(
        &self,
        question: Question,
        pdu: Bytes,
        deadline: Instant,
    ) -> Result<Answer, Fault> {
        let place = self.waiting.enter(question)?;
        let answered = async {
            // If the task is gone, it has told the place why.
            let _ = self.outgoing.send((question, pdu)).await;
            place.wait().await
        };
        match timeout_at(deadline, answered).await {
            Ok(answer) => answer,
            Err(_) if *self.opened.borrow() => Err(Fault::TimedOut),
            Err(_) => Err(Fault::unreachable(io::ErrorKind::TimedOut.into())),
        }
    }
}

async fn run(
    target: Target,
    waiting: Arc<Waiting>,
    queue: mpsc::Receiver<(Question, Bytes)>,
    open: watch::Sender<bool>,
) {
    let pace = Arc::clone(&target.pace);
    pace.turn().await;
    let fault = match connect(&target.address, target.connect_timeout).await {
        Ok(stream) => {
            let since = Instant::now();
            open.send_replace(true);
            let fault = converse(stream, queue, &waiting, &target.key).await;
            // One that ends at once must not be made again without a pause; ever
            // longer ones if nothing came of it.
            match fault {
                _ if since.elapsed() >= SETTLED => pace.succeeded(),
                Fault::Lost(_) => pace.failed(),
                _ => pace.hold(),
            }
            fault
        }
        Err(fault) => {
            pace.failed();
            fault
        }
    };
    waiting.fail(&fault);
}

/// Writes requests and hands out answers until one of both cannot go on.
async fn converse(
    stream: TcpStream,
    queue: mpsc::Receiver<(Question, Bytes)>,
    waiting: &Waiting,
    key: &Key,
) -> Fault {
    let (read, write) = stream.into_split();
    let mut reading = std::pin::pin!(read_all(read, waiting, key));
    let written = tokio::select! {
        fault = &mut reading => return fault,
        written = write_all(write, queue, waiting) => written,
    };
    match written {
        Ok(()) => closed(),
        // A service that refuses and hangs up has said why before.
        Err(e) => match timeout(LAST_WORDS, reading).await {
            Ok(fault @ (Fault::Refused { .. } | Fault::Foreign(_))) => fault,
            _ => Fault::Lost(e.to_string()),
        },
    }
}

fn closed() -> Fault {
    Fault::Lost("the connection is closed".to_owned())
}

/// Who waits for which answer.
#[derive(Debug, Default)]
struct Waiting(Mutex<Places>);

#[derive(Debug, Default)]
struct Places {
    open: HashMap<Question, oneshot::Sender<Result<Answer, Fault>>>,
    /// Why no answers come any more.
    broken: Option<Fault>,
    /// When the first request was written since something came.
    silent_since: Option<Instant>,
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

    /// Whether somebody still waits for this, so that it is to be written now.
    fn wants(&self, question: Question) -> bool {
        let mut places = self.lock();
        let is_wanted = places.open.contains_key(&question);
        if is_wanted {
            places.silent_since.get_or_insert_with(Instant::now);
        }
        is_wanted
    }

    /// Something came.
    fn heard(&self) {
        self.lock().silent_since = None;
    }

    /// Hands an answer to whoever waits for it; answers nobody asked for, such as
    /// a configuration that is pushed, are dropped.
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

/// Until nobody holds the link any more.
async fn write_all(
    write: OwnedWriteHalf,
    mut queue: mpsc::Receiver<(Question, Bytes)>,
    waiting: &Waiting,
) -> io::Result<()> {
    let mut write = BufWriter::new(write);
    while let Some((question, pdu)) = queue.recv().await {
        if waiting.wants(question) {
            timeout(WRITE, write.write_all(&pdu)).await??;
        }
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
        waiting.heard();
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
    let lost = |e: io::Error| match e.kind() {
        io::ErrorKind::UnexpectedEof => closed(),
        _ => Fault::Lost(e.to_string()),
    };
    let mut frame = vec![0; HEADER];
    read.read_exact(&mut frame).await.map_err(lost)?;
    let length = pdu::frame_len(&frame)
        .map_err(|malformed| foreign(&frame).unwrap_or(Fault::Malformed(malformed)))?
        .unwrap_or(HEADER);
    frame.resize(length, 0);
    read.read_exact(&mut frame[HEADER..]).await.map_err(lost)?;
    Ok(frame)
}

/// What else such a beginning may be.
fn foreign(start: &[u8]) -> Option<Fault> {
    match start {
        b"HTTP" => Some(Fault::Foreign(
            "it speaks HTTP there; write http:// instead of ksi+tcp://",
        )),
        [0x15, 0x03, ..] => Some(Fault::Foreign(
            "it speaks TLS there; write https:// instead of ksi+tcp://",
        )),
        _ => None,
    }
}

/// Opens a TCP connection without delay for small writes.
pub(crate) async fn connect(address: &str, limit: Duration) -> Result<TcpStream, Fault> {
    let stream = match timeout(limit, TcpStream::connect(address)).await {
        Ok(stream) => stream.map_err(Fault::unreachable)?,
        Err(_) => return Err(Fault::unreachable(io::ErrorKind::TimedOut.into())),
    };
    stream.set_nodelay(true).map_err(Fault::unreachable)?;
    Ok(stream)
}

/// Messages have outer tags above 1F, so their header is always the long one.
const HEADER: usize = 4;
/// Requests that wait to be written.
const QUEUE: usize = 256;
/// A service that takes nothing for this long is given up.
const WRITE: Duration = Duration::from_secs(30);
/// How long a service that takes nothing any more is still listened to.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// A connection that lasts this long was of use.
const SETTLED: Duration = Duration::from_secs(1);
