//! How commands end: exit codes that scripts rely on, and failures that tell
//! a person what to do.

use pitser_evidence::Code;
use pitser_trail::export::ExportError;
use pitser_trail::keys::KeyError;
use pitser_trail::map::MapError;
use pitser_trail::{ReadError, TrailError};
use std::fmt;
use std::process::ExitCode;

/// The exit codes of every command (DESIGN §6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    /// 0: intact, or done.
    Intact,
    /// 1: tampering was shown, or a finding is open.
    Broken,
    /// 2: cannot be confirmed yet.
    Unconfirmed,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(match exit {
            Exit::Intact => 0,
            Exit::Broken => 1,
            Exit::Unconfirmed => 2,
        })
    }
}

/// Why a command could not do what it was asked.
#[derive(Debug)]
pub(crate) enum Failure {
    /// 3: wrong usage, or input that cannot be read for what it should be.
    Input(String),
    /// 4: a service, a file system or the machine failed.
    Service(String),
    /// 1: tampering was met on the way; the text begins with its code.
    Tampered(String),
}

impl Failure {
    /// Wrong usage or unreadable input.
    pub(crate) fn input(error: impl fmt::Display) -> Self {
        Self::Input(error.to_string())
    }

    /// A failure of a service or of I/O.
    pub(crate) fn service(error: impl fmt::Display) -> Self {
        Self::Service(error.to_string())
    }

    /// A failure to read a trail: tampering, a wrong folder, or the machine.
    pub(crate) fn reading(error: &ReadError) -> Self {
        match error {
            ReadError::Damaged(_) => Self::Tampered(format!(
                "{error}. Keep these files as they are: they are evidence. `pitser trail verify` says more"
            )),
            ReadError::Map(MapError::Segment(error)) => Self::reading(error),
            ReadError::Nothing(_) | ReadError::CutOff(_) | ReadError::Elsewhere(_) => {
                Self::input(error)
            }
            ReadError::Disk(_) | ReadError::Map(_) | ReadError::Archive(_) => Self::service(error),
        }
    }

    /// A failure to open a trail for writing: one to read it, a key that the configuration
    /// does not give, or the machine.
    pub(crate) fn opening(error: TrailError) -> Self {
        match error {
            TrailError::Read(read) => Self::reading(&read),
            TrailError::Keys(key) => Self::keys(key),
            other => Self::service(other),
        }
    }

    fn keys(error: KeyError) -> Self {
        match error {
            KeyError::NoKeeper | KeyError::Absent(_) => Self::input(error),
            other => Self::service(other),
        }
    }

    /// 1, 3 or 4.
    pub(crate) fn code(&self) -> u8 {
        match self {
            Self::Tampered(_) => TAMPERED,
            Self::Input(_) => WRONG_USAGE,
            Self::Service(_) => SERVICE_FAILED,
        }
    }
}

/// Why a trail's contents cannot be shown.
pub(crate) fn unreadable(error: ExportError) -> Failure {
    match error {
        ExportError::Read(read) => Failure::reading(&read),
        ExportError::Keys(key) => Failure::keys(key),
        ExportError::Map(MapError::Segment(error)) => Failure::reading(&error),
        ExportError::UnknownPatient | ExportError::UnknownRecord(_) | ExportError::TooLarge(_) => {
            Failure::input(error)
        }
        ExportError::Block(_) => Failure::Tampered(format!("{} {error}", Code::SealInvalid)),
        other => Failure::service(other),
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Input(text) | Self::Service(text) | Self::Tampered(text) => f.write_str(text),
        }
    }
}

/// Exit code of shown tampering.
const TAMPERED: u8 = 1;
/// Exit code of wrong usage and unreadable input.
pub(crate) const WRONG_USAGE: u8 = 3;
/// Exit code of a failed service, file system or machine.
const SERVICE_FAILED: u8 = 4;

/// What a command returns.
pub(crate) type Outcome = Result<Exit, Failure>;
