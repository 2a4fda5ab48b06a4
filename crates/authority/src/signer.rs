//! The signing key, wherever it is: a file of this machine, or a device that a
//! program talks to.
//!
//! The program is started once and asked line by line on its standard input; it
//! answers each line by one on its standard output (docs/publications.md):
//!
//! ```text
//! sign-sha256 BASE64     the DigestInfo of SHA-256, 51 bytes (RFC 8017 §9.2, note 1)
//! signature BASE64       the RSASSA-PKCS1-v1_5 signature, as long as the modulus
//! error TEXT             why there is none
//! ```
//! Lines rather than lengths: a few lines of shell can be such a program.
//! No signature is used before it has verified with the certificate.

use std::fmt;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use data_encoding::BASE64;
use pitser_ksi::hash::{Algorithm, hash};
use pitser_ksi::pki::{self, Certificate, PkiError, SignError, Signer};

/// A program that signs with a key which this process never sees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignerCommand {
    /// The program and its arguments; no shell is involved.
    pub command: Vec<String>,
    /// How long one signature may take before the program is stopped.
    pub timeout: Duration,
}

impl SignerCommand {
    /// That program, which has five seconds for a signature.
    pub fn new(command: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self {
            command: command.into_iter().map(Into::into).collect(),
            timeout: Duration::from_secs(5),
        }
    }
}

/// A key whose every signature is checked with its certificate.
pub(crate) struct Checked {
    key: Box<dyn Signer + Send + Sync>,
    certificate: Certificate,
}

impl Checked {
    pub(crate) fn new(key: Box<dyn Signer + Send + Sync>, certificate: Certificate) -> Self {
        Self { key, certificate }
    }

    /// Signs something that is nothing else, to see whether key and certificate are
    /// of one pair.
    ///
    /// # Errors
    /// As [`Signer::sign_sha256_rsa`].
    pub(crate) fn probe(&self) -> Result<(), SignError> {
        let message = b"do this key and this certificate belong together?";
        self.sign_sha256_rsa(message).map(drop)
    }
}

impl Signer for Checked {
    fn public_key_der(&self) -> &[u8] {
        self.key.public_key_der()
    }

    fn sign_sha256_rsa(&self, message: &[u8]) -> Result<Vec<u8>, SignError> {
        let signature = self.key.sign_sha256_rsa(message)?;
        self.certificate
            .verify_rsa(pki::SHA256_WITH_RSA, message, &signature)
            .map_err(|_| SignError(Fault::NoPair.into()))?;
        Ok(signature)
    }
}

impl fmt::Debug for Checked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Checked({})", self.certificate.subject())
    }
}

/// The key behind a [`SignerCommand`].
pub(crate) struct External {
    command: SignerCommand,
    public_key_der: Vec<u8>,
    /// Locked for one signature; `None` until the first, and after a fault.
    running: Mutex<Option<Running>>,
}

impl External {
    /// Starts nothing yet. The public key is the certificate's.
    pub(crate) fn new(command: SignerCommand, certificate: &Certificate) -> Result<Self, PkiError> {
        Ok(Self {
            command,
            public_key_der: certificate.public_key_der()?,
            running: Mutex::new(None),
        })
    }

    /// Asks the program that runs, or a new one if that has ended meanwhile.
    fn ask(&self, question: &str) -> Result<Vec<u8>, Fault> {
        let mut slot = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(running) = slot.as_mut() {
            match running.ask(question, self.command.timeout) {
                Err(Fault::Ended) => tracing::warn!("the signer ended; it is started again"),
                Err(fault @ Fault::Refused(_)) => return Err(fault),
                // What it says from now on may answer what was asked before.
                Err(fault) => {
                    *slot = None;
                    return Err(fault);
                }
                answer => return answer,
            }
        }
        *slot = None;
        let running = slot.insert(Running::start(&self.command)?);
        let answer = running.ask(question, self.command.timeout);
        if answer.as_ref().is_err_and(Fault::ends_it) {
            *slot = None;
        }
        answer
    }
}

impl Signer for External {
    fn public_key_der(&self) -> &[u8] {
        &self.public_key_der
    }

    fn sign_sha256_rsa(&self, message: &[u8]) -> Result<Vec<u8>, SignError> {
        let mut digest_info = SHA256_DIGEST_INFO.to_vec();
        digest_info.extend(hash(Algorithm::Sha256, &[message]).digest());
        let question = format!("sign-sha256 {}\n", BASE64.encode(&digest_info));
        self.ask(&question).map_err(|fault| SignError(fault.into()))
    }
}

/// The program while it runs. Dropping this stops it.
struct Running {
    child: Child,
    questions: ChildStdin,
    answers: Receiver<String>,
}

impl Running {
    fn start(command: &SignerCommand) -> Result<Self, Fault> {
        let (program, arguments) = command.command.split_first().ok_or(Fault::NoProgram)?;
        let not_started = |source| Fault::NotStarted {
            program: program.clone(),
            source,
        };
        let mut child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(not_started)?;
        let pipes = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let (Some(questions), Some(stdout), Some(stderr)) = pipes else {
            return Err(Fault::Ended);
        };
        // One that talks without being asked is held up after the first line.
        let (sender, answers) = mpsc::sync_channel(1);
        std::thread::spawn(move || hand_over(stdout, &sender));
        std::thread::spawn(move || log(stderr));
        Ok(Self {
            child,
            questions,
            answers,
        })
    }

    fn ask(&mut self, question: &str, timeout: Duration) -> Result<Vec<u8>, Fault> {
        match self.answers.try_recv() {
            Ok(_) => return Err(Fault::Unasked),
            Err(mpsc::TryRecvError::Disconnected) => return Err(Fault::Ended),
            Err(mpsc::TryRecvError::Empty) => {}
        }
        // Shorter than a pipe's buffer, so that writing never waits.
        self.questions
            .write_all(question.as_bytes())
            .map_err(|_| Fault::Ended)?;
        match self.answers.recv_timeout(timeout) {
            Ok(answer) => understand(&answer),
            Err(RecvTimeoutError::Timeout) => Err(Fault::Slow { timeout }),
            Err(RecvTimeoutError::Disconnected) => Err(Fault::Ended),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself; either way nothing of it is left.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Hands lines over until the program ends, or says one that is too long.
fn hand_over(stdout: ChildStdout, sender: &SyncSender<String>) {
    let mut stdout = BufReader::new(stdout);
    loop {
        let mut line = Vec::new();
        let read = (&mut stdout)
            .take(MAX_LINE_BYTES)
            .read_until(b'\n', &mut line);
        if read.is_err() || line.pop() != Some(b'\n') {
            return;
        }
        let line = String::from_utf8_lossy(&line).into_owned();
        if sender.send(line).is_err() {
            return;
        }
    }
}

/// What the program complains about goes into the log.
fn log(stderr: ChildStderr) {
    let mut stderr = BufReader::new(stderr);
    let mut line = Vec::new();
    while let Ok(1..) = (&mut stderr)
        .take(MAX_TEXT_CHARS as u64)
        .read_until(b'\n', &mut line)
    {
        tracing::warn!(signer = printable(&line), "the signer says");
        line.clear();
    }
}

fn understand(answer: &str) -> Result<Vec<u8>, Fault> {
    let answer = answer.trim_end();
    if let Some(reason) = answer.strip_prefix("error ") {
        return Err(Fault::Refused(printable(reason.as_bytes())));
    }
    answer
        .strip_prefix("signature ")
        .and_then(|text| BASE64.decode(text.as_bytes()).ok())
        .ok_or(Fault::Garbled)
}

/// As much of a stranger's text as a log can bear.
pub(crate) fn printable(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text);
    let text = text.trim_end().chars().take(MAX_TEXT_CHARS);
    text.map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// Why a program did not sign.
#[derive(Debug, thiserror::Error)]
enum Fault {
    #[error("the signer's command is empty; name a program")]
    NoProgram,
    #[error("the signer {program} cannot be started: {source}")]
    NotStarted { program: String, source: io::Error },
    #[error("the signer ended; the log has what it said last")]
    Ended,
    #[error(
        "the signer gave no answer within {} ms and was stopped; look at the device, or allow it more time",
        timeout.as_millis()
    )]
    Slow { timeout: Duration },
    #[error("the signer refused: {0}")]
    Refused(String),
    #[error(
        "the signer answered neither `signature BASE64` nor `error TEXT` in a line; it was stopped"
    )]
    Garbled,
    #[error("the signer spoke without being asked; it was stopped")]
    Unasked,
    #[error(
        "what the key signed does not verify with the certificate: they are of two pairs, or the \
         signer does not sign with PKCS#1 v1.5"
    )]
    NoPair,
}

impl Fault {
    fn ends_it(&self) -> bool {
        !matches!(self, Self::Refused(_))
    }
}

/// What precedes a SHA-256 digest in a DigestInfo (RFC 8017 §9.2, note 1).
const SHA256_DIGEST_INFO: [u8; 19] = [
    0x30, 0x31, 0x30, 0x0d, 0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x01, 0x05,
    0x00, 0x04, 0x20,
];
/// The signature of the longest key takes 1 366 letters.
const MAX_LINE_BYTES: u64 = 4096;
const MAX_TEXT_CHARS: usize = 512;
